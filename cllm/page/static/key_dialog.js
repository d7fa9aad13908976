// The dialog that asks for an API key.

import { element } from "./dom.js";
import { t } from "./texts.js";

// The key, or null if the user gives none. refused: a key was sent and is wrong.
export function askForKey(refused) {
  return new Promise((resolve) => {
    const input = element("input", { type: "password", id: "key", autocomplete: "off", required: true });
    const form = element("form", { method: "dialog" },
      element("h2", {}, t("key.title")),
      element("p", { role: refused ? "alert" : undefined }, t(refused ? "key.wrong" : "key.needed")),
      element("label", { htmlFor: "key" }, t("key.label")), input,
      element("p.actions", {},
        element("button", { type: "button", onclick: () => dialog.close() }, t("cancel")),
        element("button.primary", { type: "submit" }, t("ok"))));
    let given = null;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      given = input.value.trim() || null;
      dialog.close();
    });
    const dialog = element("dialog.key", { "aria-label": t("key.title") }, form);
    dialog.addEventListener("close", () => { dialog.remove(); resolve(given); });
    document.body.append(dialog);
    dialog.showModal();
    input.focus();
  });
}
