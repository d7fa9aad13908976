// An answer whose tokens are coloured by probability; each alternative begins a branch.

import { showInChat } from "../chat/handover.js";
import { element } from "../dom.js";
import { Branch, textOf } from "./branch.js";
import { visible } from "./tokens.js";

const LEVELS = 6; // classes p0 (unlikely) to p5 (certain)

export class Probabilities {
  // place: of an answer of the chat, or null.
  constructor(app, place) {
    this.app = app;
    const { t } = app;
    this.branches = [];
    this.current = null;
    this.running = null;
    this.conversation = place;
    this.box = element("textarea", { id: "question", rows: 2, "aria-label": t("ask"), placeholder: t("ask"),
      value: this.conversation?.path.findLast(({ role }) => role === "user")?.content ?? "" });
    this.most = element("input", { id: "most", type: "number", min: 1, value: 60 });
    this.warmth = element("input", { id: "warmth", type: "number", min: 0, step: "0.1", placeholder: "0.8",
      value: this.conversation?.settings.temperature ?? "" });
    this.start = element("button.primary", { type: "submit", id: "run" }, t("run"));
    this.stop = element("button", { type: "button", id: "halt", hidden: true, onclick: () => this.running?.abort() }, t("halt"));
    this.form = element("form", {}, this.box, element("div.fields", {},
      element("div", {}, element("label", { htmlFor: "most" }, t("most")), this.most),
      element("div", {}, element("label", { htmlFor: "warmth" }, t("warmth")), this.warmth),
      element("p.actions", {}, this.stop, this.start)));
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.ask(); });
    this.tabs = element("div.branchlist", { role: "group", "aria-label": t("branchlist") });
    this.text = element("p.tokens", { role: "group", "aria-label": t("answer") });
    this.chat = element("button", { type: "button", id: "to-chat", hidden: true, onclick: () => this.toChat() }, t("to.chat"));
    this.detail = element("div.detail", { role: "region", "aria-live": "polite", "aria-label": t("alternatives") });
    this.element = element("section", { "aria-label": t("probabilities") }, element("h2", {}, t("probabilities")),
      element("p.hint", {}, t("probabilities.hint")), this.form, this.tabs, this.text, this.chat, this.detail, legend(t));
  }

  end() {
    this.running?.abort();
  }

  ask() {
    const content = this.box.value.trim();
    if (!content || this.running) return;
    const given = this.conversation ?? { settings: {}, path: [{ role: "user", content }] };
    const path = given.path.map((message) => ({ ...message }));
    const last = path.findLast(({ role }) => role === "user");
    const changed = last && last.content !== content;
    if (last) last.content = content;
    this.branches = [];
    const settings = { ...given.settings, temperature: this.warmth.value };
    // Another question is another conversation in the chat.
    this.run(new Branch({ ...(!changed && given), settings, path }));
  }

  // The shown branch as an answer in the chat.
  toChat() {
    const { conversation, tokens, finish } = this.current;
    let size = tokens.length;
    while (size && textOf(tokens.slice(0, size)) === null) size -= 1; // an end, or a part of a character
    showInChat(conversation, { content: textOf(tokens.slice(0, size)),
      state: finish ? "done" : "stopped", ...(finish && { finish }) })
      .catch((error) => this.app.notify(error.message, "error"));
  }

  async run(branch) {
    this.branches.push(branch);
    this.show(branch);
    this.running = new AbortController();
    this.busy(true);
    try {
      await branch.run(Number(this.most.value) || null, () => this.grow(branch), this.running.signal);
    } catch (error) {
      if (!this.running.signal.aborted) this.app.notify(error.message, "error");
    }
    this.running = null;
    this.busy(false);
  }

  busy(busy) {
    this.start.hidden = busy;
    this.stop.hidden = !busy;
    this.chat.hidden = busy || !this.current?.tokens.length;
    this.text.setAttribute("aria-busy", String(busy));
  }

  show(branch) {
    this.current = branch;
    const { t } = this.app;
    this.detail.replaceChildren();
    this.tabs.replaceChildren(...this.branches.map((each, number) => element("button", {
      type: "button", "aria-pressed": String(each === branch), onclick: () => this.show(each) },
    each.from ? t("branch.from", { n: number + 1, place: each.from, token: visible(each.label) }) : t("branch.first"))));
    this.text.replaceChildren();
    this.grow(branch);
  }

  grow(branch) {
    if (branch !== this.current) return;
    for (let place = this.text.children.length; place < branch.tokens.length; place++) {
      this.text.append(this.span(branch, place));
    }
  }

  span(branch, place) {
    const token = branch.tokens[place];
    const level = Math.min(LEVELS - 1, Math.floor(Math.exp(token.logprob) * LEVELS));
    const span = element(`span.token.p${level}${token.chosen ? ".chosen" : ""}`,
      { tabIndex: 0, role: "button", "aria-label": `${visible(token.token)} ${percent(token.logprob)}` }, visible(token.token));
    const open = () => this.alternatives(branch, place, span);
    span.addEventListener("mouseenter", open);
    span.addEventListener("focus", open);
    span.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      this.detail.querySelector("button:not(:disabled)")?.focus();
    });
    return span;
  }

  alternatives(branch, place, span) {
    const { t } = this.app;
    this.text.querySelector(".open")?.classList.remove("open");
    span.classList.add("open");
    const rows = (branch.tokens[place].top_logprobs ?? []).map((alternative) => {
      const next = branch.at(place, alternative);
      const same = alternative.token === branch.tokens[place].token;
      const meter = element("meter", { min: 0, max: 1, value: Math.exp(alternative.logprob), "aria-hidden": "true" });
      return element("li", {}, element("button", { type: "button", disabled: !next || same,
        title: next ? t("continue.from") : t("continue.not"),
        onclick: () => { if (!this.running) this.run(next); } }, visible(alternative.token)),
      meter, element("span", {}, percent(alternative.logprob)), same && element("span.hint", {}, t("taken")));
    });
    this.detail.replaceChildren(element("h3", {}, t("place", { n: place + 1 })), element("ul", {}, ...rows));
  }
}

function percent(logprob) {
  return `${(100 * Math.exp(logprob)).toFixed(1)} %`;
}

function legend(t) {
  return element("p.legend", {}, t("legend"), ...Array.from({ length: LEVELS }, (_, level) =>
    element(`span.token.p${level}`, {}, `${Math.round((100 * level) / LEVELS)}–${Math.round((100 * (level + 1)) / LEVELS)} %`)));
}
