// What the programs here share: they are told where to send requests and which scenarios to go through, each with its
// input, and print one line of JSON for each.
import { createInterface } from "node:readline";
import { Agent } from "undici";

const UNIX = "unix://";
const orders = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

/** Resolve as soon as the test orders something. */
export async function order() {
  await orders.next();
}

/** The base URL for http://host:port or unix:///path, and what fetch() needs besides to get there. */
function place(where) {
  if (!where.startsWith(UNIX)) return { baseURL: `${where}/v1`, fetchOptions: {} };
  const dispatcher = new Agent({ connect: { socketPath: where.slice(UNIX.length) } });
  return { baseURL: "http://localhost/v1", fetchOptions: { dispatcher } };
}

/**
 * Go through the scenarios that the command line names. What one returns is printed as "result", what it throws as
 * "error". The process lives on until its input ends, so that nothing it leaves behind is tidied up by its end.
 */
export async function main(scenarios, connect, describe) {
  const [where, steps] = process.argv.slice(2);
  const client = connect(place(where));
  for (const [scenario, input] of JSON.parse(steps)) {
    let said;
    try {
      said = { result: await scenarios[scenario](client, input) };
    } catch (error) {
      said = { error: { kind: error.constructor.name, message: error.message, ...describe(error) } };
    }
    process.stdout.write(`${JSON.stringify(said)}\n`);
  }
  while (!(await orders.next()).done);
  process.exit(0); // a kept connection would hold it for seconds
}
