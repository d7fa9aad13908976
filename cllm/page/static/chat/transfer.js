// Conversations as a JSON file, and back.

import { t } from "../texts.js";
import { newId } from "./conversation.js";
import { settingsOf } from "./settings.js";
import * as store from "./store.js";

const FORMAT = "cllm-conversations";
const ROLES = new Set(["user", "assistant", "tool"]);

export async function exported(records) {
  const all = [];
  for (const record of records) {
    const messages = await store.messagesOf(record.id);
    messages.sort((a, b) => a.created - b.created || a.order - b.order);
    all.push({ ...record, messages });
  }
  return { format: FORMAT, version: 1, conversations: all };
}

// Ids of the new conversations. Throws Error for what is not such a file; then nothing is kept.
export async function imported(text) {
  const file = JSON.parse(text);
  if (file?.format !== FORMAT || file.version !== 1 || !Array.isArray(file.conversations)) {
    throw new Error(t("import.format"));
  }
  const all = file.conversations.map(renewed);
  for (const { record, messages } of all) await store.saveAll(record, messages);
  return all.map(({ record }) => record.id);
}

function renewed({ messages, ...old }) {
  if (!Array.isArray(messages)) throw new Error(t("import.format"));
  const id = newId();
  const ids = new Map(messages.map((message) => [message.id, newId()]));
  const seen = new Set([null]);
  const made = messages.map((message, order) => {
    const parent = message.parent ?? null;
    if (!ROLES.has(message.role) || typeof message.content !== "string" || !seen.has(parent)) {
      throw new Error(t("import.message", { n: order + 1 }));
    }
    seen.add(message.id);
    return {
      id: ids.get(message.id), conversation: id, parent: parent === null ? null : ids.get(parent),
      role: message.role, content: message.content, order,
      state: message.state === "done" ? "done" : "stopped",
      created: Number(message.created) || Date.now(),
      ...(message.form === true && { form: true }),
      ...(typeof message.reasoning === "string" && { reasoning: message.reasoning }),
      ...(typeof message.finish === "string" && { finish: message.finish }),
      ...(typeof message.toolCallId === "string" && { toolCallId: message.toolCallId }),
      ...(Array.isArray(message.toolCalls) && { toolCalls: message.toolCalls.map(call) }),
      ...(Array.isArray(message.files) && { files: message.files.map(
        (each) => ({ name: String(each.name), text: String(each.text) })) }),
      ...(message.stats && { stats: numbers(message.stats) }),
    };
  });
  const record = {
    id, title: String(old.title ?? "").slice(0, 200), created: Number(old.created) || Date.now(),
    updated: Date.now(), leaf: ids.get(old.leaf) ?? made.at(-1)?.id ?? null, settings: settingsOf(old.settings),
  };
  return { record, messages: made };
}

const call = (each) => ({ id: String(each.id), name: String(each.name), arguments: String(each.arguments) });

const numbers = (stats) => Object.fromEntries(
  Object.entries(stats).filter(([, value]) => typeof value === "number"));
