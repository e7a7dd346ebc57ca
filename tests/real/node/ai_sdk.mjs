// The npm package `ai` with `@ai-sdk/openai-compatible`, called as its users call it.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, jsonSchema, streamText, tool } from "ai";
import { main, order } from "./common.mjs";

/** What all calls for a text have in common; `more` goes into the body as it is. */
function asked(provider, { model, more, tools, ...rest }) {
  const described = Object.entries(tools ?? {}).map(([name, { description, parameters }]) => [
    name,
    tool({ description, inputSchema: jsonSchema(parameters) }),
  ]);
  return {
    ...rest,
    model: provider.chatModel(model),
    tools: tools && Object.fromEntries(described),
    providerOptions: { router: more },
    maxRetries: 0,
  };
}

async function plain(provider, input) {
  const { text, finishReason, usage, toolCalls, response } = await generateText(asked(provider, input));
  return { text, finishReason, usage, toolCalls, headers: response.headers };
}

async function stream(provider, input) {
  const result = streamText({ ...asked(provider, input), onError: () => {} });
  const pieces = [];
  for await (const part of result.fullStream) {
    if (part.type === "error") throw part.error;
    if (part.type === "text-delta") pieces.push(part.text);
  }
  const { headers } = await result.response;
  const [finishReason, usage, toolCalls] = [await result.finishReason, await result.usage, await result.toolCalls];
  return { text: pieces.join(""), pieces, finishReason, usage, toolCalls, headers };
}

/** A stream that is aborted when the test orders it, but not before text has come. */
async function abort(provider, input) {
  const controller = new AbortController();
  const result = streamText({ ...asked(provider, input), abortSignal: controller.signal, onError: () => {} });
  const kinds = new Set();
  for await (const part of result.fullStream) {
    if (part.type === "text-delta" && !kinds.has(part.type)) order().then(() => controller.abort());
    kinds.add(part.type);
  }
  return { kinds: [...kinds] };
}

async function embed(provider, { model, values }) {
  const { embeddings, usage } = await embedMany({ model: provider.embeddingModel(model), values, maxRetries: 0 });
  return { embeddings, usage };
}

function connect({ baseURL, fetchOptions }) {
  const send = (url, options) => fetch(url, { ...options, ...fetchOptions });
  return createOpenAICompatible({ name: "router", baseURL, apiKey: "any", includeUsage: true, fetch: send });
}

function describe({ statusCode, responseHeaders, data, isRetryable }) {
  return { statusCode, requestId: responseHeaders?.["x-request-id"], data, isRetryable };
}

await main({ plain, stream, abort, embed }, connect, describe);
