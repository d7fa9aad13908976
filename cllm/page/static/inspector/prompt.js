// The prompt that the chat template makes of a conversation.

import { element } from "../dom.js";

const EXAMPLE = [{ role: "system", content: "You are brief." }, { role: "user", content: "Hello" }];

export function promptSection(app) {
  const { t } = app;
  const box = element("textarea", { id: "messages", rows: 5, spellcheck: false, "aria-label": t("prompt.messages"),
    value: JSON.stringify(EXAMPLE, null, 1) });
  const shown = element("pre.rendered", { tabIndex: 0, "aria-label": t("prompt.rendered") });
  const fault = element("p.failure", { role: "alert", hidden: true });
  const form = element("form", {}, box,
    element("p.actions", {}, element("button", { type: "submit", id: "apply" }, t("prompt.apply"))), fault, shown);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    fault.hidden = true;
    try {
      shown.textContent = (await app.json("apply-template", { messages: JSON.parse(box.value) })).prompt;
    } catch (error) {
      fault.hidden = false;
      fault.textContent = error.message;
    }
  });
  return element("section", { "aria-label": t("prompt.title") }, element("h2", {}, t("prompt.title")), form);
}
