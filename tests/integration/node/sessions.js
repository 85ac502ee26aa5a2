// Eight clients with named statements: the same names, other texts, and each client's own settings.
// Takes a URL, the clients as JSON, the text that asks for the session, and "in turns" or "at once".
// Prints what each client saw as one JSON list; the test compares it.
import pg from "pg";

const [connectionString, people, session, order] = process.argv.slice(2);
const rounds = 5;

const program = async function* (person) {
  const seen = { own: [], inside: [], session: [], error: [] };
  const client = new pg.Client({ connectionString, application_name: person.application, options: person.options });
  await client.connect();
  yield;
  await client.query("SELECT set_config('app.tenant', $1, false)", [person.tenant]);
  for (let round = 0; round < rounds; round++) {
    yield;
    const own = await client.query({ name: "own", text: person.text, values: [round] });
    seen.own.push(Object.values(own.rows[0])[0]);
    yield;
    seen.session.push((await client.query({ name: "session", text: session, rowMode: "array" })).rows[0]);
    yield;
    const zero = { name: "fails", text: "SELECT 1/$1::int", values: [0] };
    seen.error.push(await client.query(zero).catch((error) => error.code));
    yield;
    await client.query("BEGIN");
    await client.query("SET timezone = 'Asia/Pyongyang'");
    const inside = await client.query({ name: `round ${round}`, text: person.text, values: [round] });
    seen.inside.push(Object.values(inside.rows[0])[0]);
    await client.query("ROLLBACK");
  }
  // The driver itself objects to another text under a name that it has prepared.
  const renamed = { name: "own", text: "SELECT 'another'", values: [] };
  seen.renamed = await client.query(renamed).catch((error) => error.message.includes("must be unique"));
  yield;
  await client.end();
  return seen;
};

const run = async (programs) => {
  const results = [];
  let running = programs.map((each, index) => [each, index]);
  while (running.length > 0) {
    const next = [];
    for (const [each, index] of running) {
      const { done, value } = await each.next();
      if (done) results[index] = value;
      else next.push([each, index]);
    }
    running = next;
  }
  return results;
};

const programs = JSON.parse(people).map(program);
const groups = order === "in turns" ? [programs] : programs.map((each) => [each]);
console.log(JSON.stringify((await Promise.all(groups.map(run))).flat()));
