// Conversations and their messages in IndexedDB.

const NAME = "cllm";
const VERSION = 1;

let opened = null;

function open() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      const messages = request.result.createObjectStore("messages", { keyPath: "id" });
      messages.createIndex("conversation", "conversation");
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function run(mode, work) {
  const database = await open();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(["conversations", "messages"], mode);
    const request = work(transaction.objectStore("conversations"), transaction.objectStore("messages"));
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

export async function conversations() {
  const all = await run("readonly", (store) => store.getAll());
  return all.sort((a, b) => b.updated - a.updated);
}

export const conversation = (id) => run("readonly", (store) => store.get(id));

export const messagesOf = (id) =>
  run("readonly", (_, store) => store.index("conversation").getAll(id));

export const saveConversation = (record) => run("readwrite", (store) => store.put(record));

export const saveMessages = (messages) => run("readwrite", (_, store) => {
  for (const message of messages) store.put(message);
});

export const saveAll = (record, messages) => run("readwrite", (store, inner) => {
  store.put(record);
  for (const message of messages) inner.put(message);
});

export const removeConversation = (id) => run("readwrite", (store, messages) => {
  store.delete(id);
  messages.index("conversation").openKeyCursor(IDBKeyRange.only(id)).onsuccess = (event) => {
    const cursor = event.target.result;
    if (!cursor) return;
    messages.delete(cursor.primaryKey);
    cursor.continue();
  };
});

// Ids of conversations with a message that contains the text, in any letter case.
export async function containing(text) {
  const wanted = text.toLowerCase();
  const found = new Set();
  await run("readonly", (_, messages) => {
    messages.openCursor().onsuccess = (event) => {
      const cursor = event.target.result;
      if (!cursor) return;
      if (cursor.value.content.toLowerCase().includes(wanted)) found.add(cursor.value.conversation);
      cursor.continue();
    };
  });
  return found;
}
