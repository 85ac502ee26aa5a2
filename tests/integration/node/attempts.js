// Tries to log in once for each line: host, port, database, user, password, sslmode, CA, certificate, key.
// Answers each with a line: who it was let in as, or the SQLSTATE (if Postgres gave one) and the message.
import fs from "node:fs";
import readline from "node:readline";
import pg from "pg";

const read = (file) => (file ? fs.readFileSync(file) : undefined);

for await (const line of readline.createInterface({ input: process.stdin })) {
  const [host, port, database, user, password, sslmode, ca, cert, key] = line.split("\t");
  const verify = sslmode === "verify-full";
  const tls = { rejectUnauthorized: verify, ca: read(ca), cert: read(cert), key: read(key) };
  const client = new pg.Client({
    host,
    port: Number(port),
    database,
    user,
    password,
    ssl: sslmode === "disable" ? false : tls,
    connectionTimeoutMillis: 10000,
  });
  client.on("error", () => {}); // told by connect()
  let seen;
  try {
    await client.connect();
    const { rows } = await client.query("SELECT current_user AS who");
    seen = [rows[0].who, "", ""];
  } catch (error) {
    const sqlstate = /^[0-9A-Z]{5}$/.test(error.code ?? "") ? error.code : "";
    seen = ["", sqlstate, String(error.message).replace(/\s+/g, " ")];
  }
  await client.end().catch(() => {});
  console.log(seen.join("\t"));
}
