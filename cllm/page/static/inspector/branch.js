// One way an answer goes: tokens with their alternatives, and the request that adds to them.

import { messageOf, request, ServerError } from "../connection.js";
import { events } from "../chat/sse.js";
import { bodyOf } from "../chat/completion.js";

export class Branch {
  // tokens: those it shares with the branch it began at, and the alternative; from: their number.
  constructor(conversation, tokens = [], label = "") {
    this.conversation = conversation; // {settings, path}
    this.tokens = tokens;
    this.from = tokens.length;
    this.label = label;
    this.finish = null; // why it ended
  }

  // The branch that continues from an alternative at a place; null if the text so far would end
  // within a character.
  at(place, alternative) {
    const chosen = { ...this.tokens[place], ...alternative, chosen: true };
    const tokens = [...this.tokens.slice(0, place), chosen];
    return textOf(tokens) === null ? null : new Branch(this.conversation, tokens, alternative.token);
  }

  async run(most, changed, signal) {
    const { settings, path } = this.conversation;
    const messages = [...path];
    if (this.tokens.length) messages.push({ role: "assistant", content: textOf(this.tokens) });
    const body = { ...bodyOf(settings, messages), logprobs: true, top_logprobs: 8 };
    if (most) body.max_tokens = most;
    const response = await request("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
    if (!response.ok) throw new ServerError(response.status, await messageOf(response));
    for await (const event of events(response)) {
      if (event.error) throw new ServerError(500, event.error.message);
      this.finish = event.choices?.[0]?.finish_reason ?? this.finish;
      const added = event.choices?.[0]?.logprobs?.content ?? [];
      this.tokens.push(...added);
      if (added.length) changed();
    }
  }
}

// The text of tokens; null if it ends within a character or a token has no text.
export function textOf(tokens) {
  if (tokens.some((token) => token.bytes && !token.bytes.length)) return null;
  const encoder = new TextEncoder();
  const bytes = tokens.flatMap((token) => token.bytes ?? [...encoder.encode(token.token)]);
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(new Uint8Array(bytes));
  } catch {
    return null;
  }
}
