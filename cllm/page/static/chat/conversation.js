// One conversation: its record, its tree, and how both are kept.

import * as store from "./store.js";
import { Tree } from "./tree.js";

const UNSAVED = "cllm-unsaved"; // what the page held when it was left; written synchronously
let order = 0;

export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, "0")).join("");
}

export class Conversation {
  constructor(record, messages) {
    this.record = record;
    this.tree = new Tree(messages);
    this.saving = Promise.resolve();
  }

  static create(settings) {
    const now = Date.now();
    return new Conversation(
      { id: newId(), title: "", created: now, updated: now, leaf: null, settings }, []);
  }

  static async load(id) {
    const record = await store.conversation(id);
    return record ? new Conversation(record, await store.messagesOf(id)) : null;
  }

  get path() {
    return this.tree.path(this.record.leaf);
  }

  add(role, parent, fields = {}) {
    const message = {
      id: newId(), conversation: this.record.id, parent, role, content: "", state: "done",
      created: Date.now(), order: order++, ...fields,
    };
    this.tree.add(message);
    this.record.leaf = message.id;
    if (!this.record.title && role === "user") this.record.title = message.content.trim().slice(0, 60);
    return message;
  }

  // Show the branch with this message.
  select(message) {
    this.record.leaf = this.tree.leafBelow(message.id);
    return this.save();
  }

  save(...messages) {
    if (messages.length) this.record.updated = Date.now();
    const record = { ...this.record };
    const copies = messages.map((message) => ({ ...message }));
    this.saving = this.saving.catch(() => {}).then(() => store.saveAll(record, copies));
    return this.saving;
  }
}

// What a page that is being left keeps of an answer; a write to IndexedDB might not finish.
export function keepUnsaved(message) {
  try {
    localStorage.setItem(UNSAVED, JSON.stringify(message));
  } catch { /* larger than the room; the last regular save remains */ }
}

export async function recoverUnsaved() {
  const text = localStorage.getItem(UNSAVED);
  if (!text) return;
  localStorage.removeItem(UNSAVED);
  await store.saveMessages([JSON.parse(text)]);
}
