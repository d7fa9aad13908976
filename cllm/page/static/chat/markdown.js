// A message's text: finished blocks as HTML from the server, the rest as text.

import { json } from "../connection.js";
import { element } from "../dom.js";
import { t } from "../texts.js";
import { split } from "./blocks.js";
import { light } from "./light.js";

const WHOLE = 32 * 1024; // bytes that are rendered at once: the server's bound
const known = new Map(); // Markdown to a promise of HTML
const MOST_KNOWN = 500;
let missing = false; // the server has no renderer

// HTML, or null where there is none and text is shown.
function render(markdown) {
  if (missing) return Promise.resolve(null);
  let html = known.get(markdown);
  if (!html) {
    html = json("page/render", { markdown }).then((answer) => answer.html, (error) => {
      missing ||= error.status === 501;
      known.delete(markdown);
      return null;
    });
    known.set(markdown, html);
    if (known.size > MOST_KNOWN) known.delete(known.keys().next().value);
  }
  return html;
}

export class Markdown {
  constructor() {
    this.element = element("div.markdown");
    this.blocks = []; // {text, node}
    this.open = element("p.open");
  }

  // While it grows: blocks are rendered once, the last one stays text.
  grow(text) {
    const { finished, open } = split(text);
    const same = finished.slice(0, this.blocks.length).every((block, i) => this.blocks[i].text === block);
    if (!same) this.clear();
    for (const block of finished.slice(this.blocks.length)) this.append(block);
    this.open.replaceChildren(...light(open));
    if (!this.open.parentNode) this.element.append(this.open);
  }

  // The whole text, which does not change any more.
  async finish(text) {
    const parts = new TextEncoder().encode(text).length <= WHOLE ? [text] : split(text).finished.concat(split(text).open);
    const shown = document.createDocumentFragment();
    for (const part of parts) {
      const html = await render(part);
      if (html === null) shown.append(element("p.open", {}, ...light(part)));
      else shown.append(adopt(html));
    }
    this.blocks = [];
    this.element.replaceChildren(shown);
  }

  append(text) {
    const node = element("div", {}, element("p.open", {}, ...light(text)));
    this.blocks.push({ text, node });
    this.element.insertBefore(node, this.open.parentNode ? this.open : null);
    render(text).then((html) => { if (html !== null) node.replaceChildren(adopt(html)); });
  }

  clear() {
    this.blocks = [];
    this.element.replaceChildren();
  }
}

// The server has sanitized it. Code gets a bar with its language and a button that copies it.
function adopt(html) {
  const parsed = new DOMParser().parseFromString(html, "text/html");
  for (const table of parsed.querySelectorAll("table")) {
    const frame = parsed.createElement("div");
    frame.className = "table";
    frame.tabIndex = 0;
    table.replaceWith(frame);
    frame.append(table);
  }
  const fragment = document.createDocumentFragment();
  fragment.append(...[...parsed.body.childNodes].map((node) => document.adoptNode(node)));
  for (const code of fragment.querySelectorAll("pre > code")) {
    const pre = code.parentNode;
    const copy = element("button", { type: "button", onclick: () => copyText(code.textContent, copy) }, t("copy"));
    const frame = element("figure.code", {}, element("figcaption", {},
      element("span", {}, code.dataset.language ?? ""), copy));
    pre.tabIndex = 0;
    pre.replaceWith(frame);
    frame.append(pre);
  }
  return fragment;
}

export async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // over plain HTTP there is no clipboard
    const area = element("textarea.hidden", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const label = button.textContent;
  button.textContent = t("copied");
  setTimeout(() => (button.textContent = label), 1500);
}
