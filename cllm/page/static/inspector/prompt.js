// The prompt that the chat template makes of a conversation, with its special tokens.

import { bodyOf } from "../chat/completion.js";
import { element } from "../dom.js";
import { visible } from "./tokens.js";

const EXAMPLE = [{ role: "system", content: "You are brief." }, { role: "user", content: "Hello" }];

// place: of an answer of the chat, or null.
export function promptSection(app, place) {
  const { t } = app;
  const messages = place ? bodyOf(place.settings, place.path).messages : EXAMPLE;
  const box = element("textarea", { id: "messages", rows: 5, spellcheck: false, "aria-label": t("prompt.messages"),
    value: JSON.stringify(messages, null, 1) });
  const shown = element("pre.rendered", { tabIndex: 0, role: "group", "aria-label": t("prompt.rendered") });
  const fault = element("p.failure", { role: "alert", hidden: true });
  const form = element("form", {}, box,
    element("p.actions", {}, element("button", { type: "submit", id: "apply" }, t("prompt.apply"))), fault, shown);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    fault.hidden = true;
    try {
      const { prompt } = await app.json("apply-template", { messages: JSON.parse(box.value) });
      shown.replaceChildren(...(await pieces(app, prompt)));
    } catch (error) {
      fault.hidden = false;
      fault.textContent = error.message;
    }
  });
  return element("section", { "aria-label": t("prompt.title") }, element("h2", {}, t("prompt.title")), form);
}

// A special token is one that the prompt has only where such tokens are recognized, in brackets.
async function pieces(app, prompt) {
  const [all, plain] = await Promise.all([true, false].map((special) =>
    app.json("tokenize", { content: prompt, with_pieces: true, parse_special: special })));
  const ordinary = new Set(plain.tokens.map(({ id }) => id));
  return all.tokens.map(({ id, piece }) => {
    const special = !ordinary.has(id) && /^[<[].+[>\]]$/.test(piece);
    return element(`span.token${special ? ".special" : ""}`, { title: String(id) }, visible(piece));
  });
}
