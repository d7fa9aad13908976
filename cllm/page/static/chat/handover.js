// What the chat and the inspector hand to each other: the place of an answer, and a branch.

import { running } from "./answers.js";
import { Conversation } from "./conversation.js";

const PLACE = "cllm-inspect"; // of this tab: the answer that the inspector opens
export const CURRENT = "cllm-conversation"; // of this tab: the conversation that the chat shows

export function inspect(conversation, message) {
  sessionStorage.setItem(PLACE, JSON.stringify([conversation.record.id, message.parent]));
  location.hash = "#/inspector";
}

// {conversation, settings, path, parent} of the answer that was chosen, once; null if there is none.
export async function inspected() {
  const text = sessionStorage.getItem(PLACE);
  sessionStorage.removeItem(PLACE);
  if (!text) return null;
  const [id, parent] = JSON.parse(text);
  const conversation = await loaded(id);
  const path = conversation?.tree.path(parent) ?? [];
  return path.length ? { conversation: id, settings: conversation.record.settings, path, parent } : null;
}

// Show an answer in the chat: as a branch where its conversation is known, or in a new one.
export async function showInChat({ conversation: id, settings, path, parent }, fields) {
  let conversation = id && (await loaded(id));
  if (conversation?.tree.nodes.has(parent)) {
    conversation.save(conversation.add("assistant", parent, fields));
  } else {
    conversation = Conversation.create(settings);
    parent = null;
    for (const { role, content, files, toolCalls, toolCallId } of path) {
      const message = conversation.add(role, parent, { content,
        ...(files && { files }), ...(toolCalls && { toolCalls }), ...(toolCallId && { toolCallId }) });
      conversation.save(message);
      parent = message.id;
    }
    conversation.save(conversation.add("assistant", parent, fields));
  }
  await conversation.saving;
  sessionStorage.setItem(CURRENT, conversation.record.id);
  location.hash = "#/chat";
}

// A conversation whose answer still arrives is the one that grows, not a copy.
async function loaded(id) {
  const live = [...running.values()].find((answer) => answer.conversation.record.id === id);
  return live?.conversation ?? Conversation.load(id);
}
