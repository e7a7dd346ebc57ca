// The npm package `openai`, called as its users call it.
import OpenAI from "openai";
import { main, order } from "./common.mjs";

const RESOURCES = {
  chat: (client) => client.chat.completions,
  completions: (client) => client.completions,
  embeddings: (client) => client.embeddings,
};

async function collect(items) {
  const collected = [];
  for await (const item of items) collected.push(item);
  return collected;
}

/** One request. The answer to a streamed one is the list of its chunks. */
async function create(client, { resource, body, headers }) {
  const asked = RESOURCES[resource](client).create(body, { headers });
  const { data, response, request_id } = await asked.withResponse();
  const answer = body.stream ? await collect(data) : data;
  return { answer, requestId: request_id, ownRequestId: data._request_id, headers: Object.fromEntries(response.headers) };
}

async function createAtOnce(client, { requests }) {
  return Promise.all(requests.map((request) => create(client, request)));
}

/** The helper that puts a stream together. */
async function accumulate(client, { body, headers }) {
  const stream = client.chat.completions.stream(body, { headers });
  const pieces = [];
  stream.on("content", (piece) => pieces.push(piece));
  return { completion: await stream.finalChatCompletion(), pieces };
}

/** The helper that calls the tools and sends their results back. */
async function runTools(client, { body, tool, result, options }) {
  const calls = [];
  const call = (args) => {
    calls.push(args);
    return JSON.stringify(result);
  };
  const tools = [{ type: "function", function: { ...tool, function: call, parse: JSON.parse } }];
  const runner = client.chat.completions.runTools({ ...body, tools }, options);
  await runner.done();
  return { calls, messages: runner.messages };
}

async function models(client, { model }) {
  return { listed: await collect(client.models.list()), retrieved: await client.models.retrieve(model) };
}

/** A plain request that is aborted when the test orders it. */
async function abort(client, { body, headers }) {
  const controller = new AbortController();
  order().then(() => controller.abort());
  return client.chat.completions.create(body, { headers, signal: controller.signal });
}

/** A stream that is aborted when the test orders it, but not before something has come. */
async function abortStream(client, { body, headers }) {
  const controller = new AbortController();
  let chunkCount = 0;
  for await (const _ of await client.chat.completions.create(body, { headers, signal: controller.signal })) {
    if (++chunkCount === 1) order().then(() => controller.abort());
  }
  return { chunkCount };
}

/** A stream whose loop is left. */
async function leave(client, { body, headers, after }) {
  let chunkCount = 0;
  for await (const _ of await client.chat.completions.create(body, { headers })) {
    if (++chunkCount === after) break;
  }
  return { chunkCount };
}

function connect({ baseURL, fetchOptions }) {
  return new OpenAI({ baseURL, fetchOptions, apiKey: "any", maxRetries: 0 });
}

function describe({ status, code, type, param, requestID }) {
  return { status, code, type, param, requestID };
}

await main({ create, createAtOnce, accumulate, runTools, models, abort, abortStream, leave }, connect, describe);
