// The chat view: joins the list of conversations, the messages and the composer.

import { element, signButton } from "../dom.js";
import { Answer, interrupted, running } from "./answers.js";
import { Composer } from "./composer.js";
import { Conversation, recoverUnsaved } from "./conversation.js";
import { CURRENT, inspect } from "./handover.js";
import { Messages } from "./messages.js";
import { editSettings, lastSettings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { texts } from "./texts.js";

export async function mount(root, app) {
  app.addTexts(texts);
  await Promise.all(["chat.css", "markdown.css"].map((name) => app.style(new URL(name, import.meta.url))));
  const chat = new Chat(root, app);
  await chat.begin();
  return () => chat.end();
}

class Chat {
  constructor(root, app) {
    this.app = app;
    this.root = root;
    this.conversation = null;
    this.aborting = new AbortController(); // ends listeners
    this.composer = new Composer({
      send: (text, files) => this.send(text, files), stop: () => this.stop(),
      complain: (text) => app.notify(text, "error") });
    this.sidebar = new Sidebar({
      open: (id) => this.open(id, true), removed: (id) => this.removed(id),
      renamed: (record, title) => this.rename(record, title),
      complain: (text) => app.notify(text, "error") });
    this.messages = new Messages(this.actions());
    this.title = element("h1.title");
    const menu = signButton("☰", app.t("conversations"), () => this.showSidebar(!root.classList.contains("listing")), { id: "menu" });
    root.append(this.sidebar.element, element("section.talk", { "aria-label": app.t("nav.chat") },
      element("div.head", {}, menu, this.title,
        signButton("⚙", app.t("settings"), () => this.settings(), { id: "settings" })),
      this.messages.element, this.composer.element));
    const { signal } = this.aborting;
    addEventListener("keydown", (event) => this.key(event), { signal });
  }

  actions() {
    return {
      siblings: (message) => this.conversation.tree.siblings(message),
      isAnswered: (message) => this.conversation.tree.children.get(message.id).length > 0,
      select: async (message) => { await this.conversation.select(message); this.draw(); },
      regenerate: (message) => this.answer(message.parent),
      resume: (message) => this.resume(message),
      edit: (message, text) => this.edit(message, text),
      answerCalls: (message, results) => this.answerCalls(message, results),
      inspect: (message) => inspect(this.conversation, message),
    };
  }

  async begin() {
    await recoverUnsaved();
    for (const [id, message] of interrupted()) await this.restart(id, message);
    await this.open(sessionStorage.getItem(CURRENT), false);
    await this.sidebar.refresh();
    this.composer.box.focus();
  }

  end() {
    this.aborting.abort();
    this.messages.end();
  }

  // Continue what was being received when the page was reloaded.
  async restart(id, messageId) {
    const conversation = await Conversation.load(id);
    const message = conversation?.tree.nodes.get(messageId);
    if (!message || message.state === "done") return;
    if (!message.content && message.toolCalls) {
      message.state = "stopped"; // kept; a call cannot be continued, so another answer begins
      await conversation.save(message);
      this.start(conversation, conversation.add("assistant", message.parent, { state: "streaming" }));
    } else {
      this.start(conversation, message);
    }
  }

  async open(id, focus) {
    const live = [...running.values()].find((answer) => answer.conversation.record.id === id);
    this.conversation = live?.conversation ?? (id && (await Conversation.load(id))) ?? null;
    this.conversation ||= Conversation.create(lastSettings());
    sessionStorage.setItem(CURRENT, this.conversation.record.id);
    this.showSidebar(false);
    this.messages.clear();
    this.draw(true);
    this.sidebar.refresh(this.conversation.record.id);
    if (focus) this.composer.box.focus();
  }

  draw(toEnd = false) {
    const { conversation } = this;
    this.title.textContent = conversation.record.title || this.app.t("untitled");
    this.messages.show(conversation.path, toEnd);
    const answer = this.current();
    this.composer.setBusy(Boolean(answer));
    if (answer) this.follow(answer);
  }

  current() {
    return [...running.values()].find((answer) => answer.conversation === this.conversation);
  }

  follow(answer) {
    if (answer.followed === this) return;
    answer.followed = this;
    const { signal } = this.aborting;
    answer.addEventListener("change", () => {
      if (answer.conversation === this.conversation) this.messages.update(answer.message);
    }, { signal });
    answer.addEventListener("end", () => {
      if (answer.conversation !== this.conversation) return;
      this.draw();
      this.messages.update(answer.message);
      this.messages.announce(this.app.t(answer.message.state === "done" ? "answered" : "stopped"));
      this.sidebar.refresh();
    }, { signal });
  }

  send(text, files) {
    const { conversation } = this;
    const message = conversation.add("user", conversation.record.leaf, {
      content: text, ...(files.length && { files }) });
    if (!conversation.record.title) conversation.record.title = files[0]?.name ?? "";
    conversation.save(message);
    return this.answer(message.id);
  }

  answer(parent) {
    const { conversation } = this;
    if (this.current()) return false;
    return this.start(conversation, conversation.add("assistant", parent, { state: "streaming" }));
  }

  start(conversation, message) {
    let answer;
    try {
      answer = new Answer(conversation, message).start();
    } catch (error) {
      message.state = "stopped";
      message.error = error.message;
      conversation.save(message);
    }
    if (conversation === this.conversation) {
      this.draw(true);
      this.sidebar.refresh(conversation.record.id);
    }
    return Boolean(answer);
  }

  resume(message) {
    if (this.current()) return;
    if (message.content || message.reasoning) this.start(this.conversation, message);
    else this.answer(message.parent);
  }

  edit(message, text) {
    if (this.current()) return;
    const edited = this.conversation.add("user", message.parent, {
      content: text.trim(), ...(message.files && { files: message.files }) });
    this.conversation.save(edited);
    this.answer(edited.id);
  }

  answerCalls(message, results) {
    let parent = message.id;
    message.toolCalls.forEach((call, number) => {
      const result = this.conversation.add("tool", parent, { content: results[number], toolCallId: call.id });
      this.conversation.save(result);
      parent = result.id;
    });
    this.answer(parent);
  }

  stop() {
    this.current()?.stop();
  }

  settings() {
    const { record } = this.conversation;
    editSettings(record.settings, this.app.model?.props, (settings) => {
      record.settings = settings;
      if (record.leaf) this.conversation.save();
    });
  }

  async rename(record, title) {
    const conversation = record.id === this.conversation.record.id ? this.conversation : await Conversation.load(record.id);
    conversation.record.title = title;
    await conversation.save();
    this.title.textContent = this.conversation.record.title || this.app.t("untitled");
  }

  async removed(id) {
    const answer = [...running.values()].find((each) => each.conversation.record.id === id);
    answer?.stop();
    await answer?.ended;
    if (id === this.conversation.record.id) await this.open(null, true);
  }

  showSidebar(listing) {
    this.root.classList.toggle("listing", listing);
    document.getElementById("menu")?.setAttribute("aria-expanded", String(listing));
    if (listing) this.sidebar.search.focus();
  }

  key(event) {
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Escape") {
      if (this.root.classList.contains("listing")) this.showSidebar(false);
      else this.stop();
    } else if (event.ctrlKey && event.shiftKey && event.key.toLowerCase() === "o") {
      event.preventDefault();
      this.open(null, true);
    }
  }
}
