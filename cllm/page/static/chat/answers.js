// Answers that are being received. They go on while another conversation or view is shown.

import { bodyOf, complete } from "./completion.js";
import { keepUnsaved } from "./conversation.js";

const STREAMING = "cllm-streaming"; // of this tab: [conversation id, message id] of each
const SAVE_EVERY = 100; // ms

export const running = new Map(); // by message id
let leaving = false;

addEventListener("pagehide", () => {
  leaving = true;
  for (const answer of running.values()) keepUnsaved(answer.message);
});
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

function remember() {
  const all = [...running.values()].map(({ conversation, message }) => [conversation.record.id, message.id]);
  sessionStorage.setItem(STREAMING, JSON.stringify(all));
}

// What was being received when this tab was reloaded.
export function interrupted() {
  const all = JSON.parse(sessionStorage.getItem(STREAMING) ?? "[]");
  return all.filter(([, id]) => !running.has(id));
}

export class Answer extends EventTarget {
  // message: empty, or the beginning of an answer, which is continued.
  constructor(conversation, message) {
    super();
    this.conversation = conversation;
    this.message = message;
    this.aborting = new AbortController();
    this.timer = null;
    this.ended = null;
  }

  // Throws SyntaxError if a setting is not JSON.
  start() {
    const { conversation, message } = this;
    const before = conversation.tree.path(message.id);
    const begun = Boolean(message.content || message.reasoning);
    const path = begun ? before : before.slice(0, -1);
    bodyOf(conversation.record.settings, path);
    message.state = "streaming";
    message.form = Boolean(conversation.record.settings.schema);
    message.error = undefined;
    if (begun) message.stats = { ...message.stats, before: message.stats?.pieces ?? 0 };
    running.set(message.id, this);
    remember();
    this.ended = this.run(path);
    return this;
  }

  async run(path) {
    const { conversation, message } = this;
    try {
      await conversation.save(message);
      await complete(conversation.record.settings, path, message, () => this.changed(), this.aborting.signal);
      message.state = "done";
    } catch (error) {
      if (leaving) return;
      message.state = "stopped";
      if (!this.aborting.signal.aborted) message.error = error.message || "cut";
    }
    clearTimeout(this.timer);
    running.delete(message.id);
    remember();
    await conversation.save(message).catch(() => {});
    this.dispatchEvent(new Event("end"));
  }

  stop() {
    this.aborting.abort();
  }

  changed() {
    this.timer ??= setTimeout(() => {
      this.timer = null;
      if (!leaving) this.conversation.save(this.message).catch(() => {});
    }, SAVE_EVERY);
    this.dispatchEvent(new Event("change"));
  }
}
