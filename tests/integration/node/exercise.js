// What functions on Node do with Postgres: a Client for one invocation, a Pool of one, errors, transactions.
// Prints one JSON object of what it saw; the test compares it.
import pg from "pg";

const connectionString = process.argv[2];
const seen = {};

const client = new pg.Client({ connectionString });
await client.connect();
seen.simple = (await client.query("SELECT 1 AS one, 'x' AS x")).rows;
seen.parameters = (await client.query("SELECT $1::int + 1 AS sum, $2::jsonb AS json", [41, { a: [1, 2] }])).rows;
seen.multiple = (await client.query("SELECT 1 AS a; SELECT 2 AS b")).map((result) => result.rows[0]);
seen.error = await client.query("SELECT 1/0").catch((error) => error.code);
seen.parameterError = await client.query("SELECT 1/$1::int", [0]).catch((error) => error.code);
await client.query("BEGIN");
await client.query("CREATE TEMP TABLE taken (amount int) ON COMMIT DROP");
await client.query("INSERT INTO taken SELECT generate_series(1, $1::int)", [1000]);
seen.transaction = (await client.query("SELECT sum(amount)::int AS sum FROM taken")).rows;
await client.query("COMMIT");
// Queued by the driver, sent one after the other on the same connection.
const queued = Array.from({ length: 50 }, (_, i) => client.query("SELECT $1::int AS i", [i]));
seen.queued = (await Promise.all(queued)).map((result) => result.rows[0].i);
await client.end();

// A new connection for each request, many at a time.
const requests = Array.from({ length: 40 }, async (_, i) => {
  const one = new pg.Client({ connectionString });
  await one.connect();
  const { rows } = await one.query("SELECT $1::int AS i, pg_sleep(0.01)", [i]);
  await one.end();
  return rows[0].i;
});
seen.connections = await Promise.all(requests);

const pool = new pg.Pool({ connectionString, max: 1 });
const pooled = Array.from({ length: 20 }, (_, i) => pool.query("SELECT $1::text AS i", [`value ${i}`]));
seen.pooled = (await Promise.all(pooled)).map((result) => result.rows[0].i);
await pool.end();

console.log(JSON.stringify(seen));
