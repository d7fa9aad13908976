// One answer: the request for it, and the stream that fills its message.

import { messageOf, request, ServerError } from "../connection.js";
import { events } from "./sse.js";

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed", "repeat_penalty",
  "presence_penalty", "frequency_penalty"];

export function fileText(file) {
  const fence = "`".repeat(Math.max(3, ...(file.text.match(/`{3,}/g) ?? []).map((run) => run.length + 1)));
  return `File ${file.name}:\n${fence}\n${file.text}\n${fence}`;
}

function asSent(message) {
  const files = (message.files ?? []).map(fileText);
  const sent = { role: message.role, content: [...files, message.content].filter(Boolean).join("\n\n") };
  if (message.reasoning && !message.content && !message.toolCalls) sent.reasoning_content = message.reasoning;
  if (message.toolCalls?.length) {
    sent.tool_calls = message.toolCalls.map(({ id, name, arguments: given }) => (
      { id, type: "function", function: { name, arguments: given } }));
  }
  if (message.toolCallId) sent.tool_call_id = message.toolCallId;
  return sent;
}

// path: the messages before the answer, and the answer itself if it is continued.
export function bodyOf(settings, path) {
  const messages = path.map(asSent);
  if (settings.system) messages.unshift({ role: "system", content: settings.system });
  const body = { messages, stream: true, stream_options: { include_usage: true } };
  for (const name of NUMBERS) {
    if (settings[name] !== undefined && settings[name] !== "") body[name] = Number(settings[name]);
  }
  if (settings.schema) {
    body.response_format = { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(settings.schema) } };
  }
  if (settings.tools) body.tools = JSON.parse(settings.tools);
  return body;
}

// Fills the message; `changed` is called after each piece. Throws ServerError and AbortError.
export async function complete(settings, path, message, changed, signal) {
  const begun = performance.now();
  const response = await request("v1/chat/completions", {
    method: "POST", body: JSON.stringify(bodyOf(settings, path)), signal });
  if (!response.ok) throw new ServerError(response.status, await messageOf(response));
  const stats = { pieces: 0, ...message.stats };
  message.stats = stats;
  let first = null;
  let finish = null;
  for await (const event of events(response)) {
    if (event.error) throw new ServerError(event.error.code ?? 500, event.error.message ?? String(event.error));
    const choice = event.choices?.[0];
    if (choice?.delta && addDelta(message, choice.delta)) {
      first ??= performance.now();
      stats.first ??= (first - begun) / 1000;
      stats.pieces += 1;
      changed();
    }
    finish = choice?.finish_reason ?? finish;
    if (event.usage) noteUsage(stats, event.usage, first, performance.now());
  }
  if (finish === null) throw new ServerError(0, "");
  message.finish = finish;
}

function noteUsage(stats, usage, first, now) {
  stats.tokens = (stats.before ?? 0) + usage.completion_tokens;
  stats.prompt = usage.prompt_tokens;
  stats.cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const seconds = (now - (first ?? now)) / 1000;
  if (seconds > 0 && usage.completion_tokens > 1) stats.speed = (usage.completion_tokens - 1) / seconds;
}

function addDelta(message, delta) {
  if (delta.content) message.content += delta.content;
  if (delta.reasoning_content) message.reasoning = (message.reasoning ?? "") + delta.reasoning_content;
  for (const part of delta.tool_calls ?? []) {
    message.toolCalls ??= [];
    const call = (message.toolCalls[part.index ?? 0] ??= { id: "", name: "", arguments: "" });
    call.id = part.id ?? call.id;
    call.name += part.function?.name ?? "";
    call.arguments += part.function?.arguments ?? "";
  }
  return Boolean(delta.content || delta.reasoning_content || delta.tool_calls);
}
