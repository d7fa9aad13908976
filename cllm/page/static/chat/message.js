// One message as an article: text, reasoning, tool calls, counts and what can be done with it.

import { element, signButton } from "../dom.js";
import { t } from "../texts.js";
import { formOf } from "./form.js";
import { Markdown, copyText } from "./markdown.js";
import { statistics } from "./statistics.js";

export class MessageView {
  // actions: the functions of the view that a message's buttons call.
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.rich = false;
    this.text = element("div.text", {}, element("p.open", {}, message.content));
    this.element = element(`article.message.${message.role}`, { "aria-label": t(`role.${message.role}`) },
      element("h2.role", {}, t(`role.${message.role}`)), this.text);
    this.element.dataset.id = message.id;
    this.frame = null;
  }

  // Called when it comes near to what is visible.
  enrich() {
    if (this.rich) return;
    this.rich = true;
    this.draw();
  }

  // After the message has changed; at most once a frame.
  update() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.rich = true;
      this.draw();
    });
  }

  draw() {
    const { message } = this;
    const streaming = message.state === "streaming";
    this.element.setAttribute("aria-busy", String(streaming));
    this.reasoning();
    this.calls();
    if (message.role === "assistant") {
      this.markdown ??= new Markdown();
      const form = message.form && !streaming ? formOf(message.content) : null;
      if (form) {
        this.text.replaceChildren(form, element("details.json", {}, element("summary", {}, "JSON"), this.markdown.element));
      } else if (!this.markdown.element.matches(".text > *")) {
        this.text.replaceChildren(this.markdown.element);
      }
      if (streaming) this.markdown.grow(message.content);
      else this.markdown.finish(message.content);
    } else {
      this.text.replaceChildren(
        ...(message.files ?? []).map((file) => element("details.file", {},
          element("summary", {}, file.name), element("pre", { tabIndex: 0 }, file.text))),
        element("p.open", {}, message.content));
    }
    this.foot?.remove();
    this.foot = this.footer(streaming);
    this.element.append(this.foot);
  }

  reasoning() {
    if (!this.message.reasoning) return;
    if (!this.thoughts) {
      this.thoughts = element("details.reasoning", {}, element("summary", {}, t("reasoning")), element("p.open"));
      this.text.before(this.thoughts);
    }
    this.thoughts.lastChild.textContent = this.message.reasoning;
  }

  calls() {
    const calls = (this.message.toolCalls ?? []).filter(Boolean);
    if (!calls.length) return;
    const answered = this.actions.isAnswered(this.message);
    const boxes = [];
    const shown = calls.map((call, number) => element("details.call", { open: true },
      element("summary", {}, `${t("call")} ${call.name}`), element("pre", { tabIndex: 0 }, call.arguments),
      !answered && this.message.state !== "streaming" && (boxes[number] = element("textarea",
        { rows: 2, "aria-label": t("call.result", { name: call.name }), placeholder: t("call.result", { name: call.name }) }))));
    if (boxes.length) {
      shown.push(element("button", { type: "button", onclick: () =>
        this.actions.answerCalls(this.message, boxes.map((box) => box.value)) }, t("call.send")));
    }
    this.callList?.remove();
    this.callList = element("div.calls", {}, ...shown);
    this.text.after(this.callList);
  }

  footer(streaming) {
    const { message, actions } = this;
    const parts = [];
    const siblings = actions.siblings(message);
    if (siblings.length > 1) {
      const at = siblings.indexOf(message);
      parts.push(element("span.branches", { role: "group", "aria-label": t("branches") },
        signButton("‹", t("branch.earlier"), () => actions.select(siblings[at - 1]), { disabled: at === 0 }),
        element("span", {}, `${at + 1}/${siblings.length}`),
        signButton("›", t("branch.later"), () => actions.select(siblings[at + 1]), { disabled: at === siblings.length - 1 })));
    }
    if (!streaming) {
      const copy = element("button", { type: "button", onclick: () => copyText(message.content, copy) }, t("copy"));
      parts.push(copy);
      if (message.role === "user") parts.push(this.button("edit", () => this.edit()));
      if (message.role === "assistant") {
        parts.push(this.button("regenerate", () => actions.regenerate(message)));
        if (message.state !== "done" || message.finish === "length") {
          parts.push(this.button("continue", () => actions.resume(message)));
        }
        parts.push(this.button("inspect", () => actions.inspect(message)));
      }
    }
    if (message.error) {
      parts.push(element("span.error", { role: "alert" }, message.error === "cut" ? t("cut") : message.error));
    }
    const numbers = statistics(message);
    if (numbers) parts.push(element("span.statistics", {}, numbers));
    return element("footer", {}, ...parts);
  }

  button(key, onclick) {
    return element("button", { type: "button", onclick, className: key }, t(key));
  }

  edit() {
    const box = element("textarea", { value: this.message.content, "aria-label": t("edit"), rows: 4 });
    const form = element("form.edit", {}, box, element("p.actions", {},
      element("button", { type: "button", onclick: () => this.draw() }, t("cancel")),
      element("button.primary", { type: "submit" }, t("edit.send"))));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.actions.edit(this.message, box.value);
    });
    box.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { this.draw(); event.stopPropagation(); }
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); form.requestSubmit(); }
    });
    this.text.replaceChildren(form);
    box.focus();
  }
}
