// What the user sets for a conversation: system prompt, sampling, JSON schema, tools.

import { element } from "../dom.js";
import { t } from "../texts.js";

const STORED = "cllm-settings"; // of the conversation used last, for the next new one
const NUMBERS = {
  temperature: "0.05", top_p: "0.01", top_k: "1", min_p: "0.01", max_tokens: "1", seed: "1",
  repeat_penalty: "0.01", presence_penalty: "0.1", frequency_penalty: "0.1",
};
const TEXTS = ["system", "schema", "tools"];

// Only what is known, as text.
export function settingsOf(value) {
  const found = {};
  for (const name of [...TEXTS, ...Object.keys(NUMBERS)]) {
    if (["string", "number"].includes(typeof value?.[name])) found[name] = String(value[name]);
  }
  return found;
}

export function lastSettings() {
  try {
    return settingsOf(JSON.parse(localStorage.getItem(STORED) ?? "{}"));
  } catch {
    return {};
  }
}

// Shows the dialog; changed(settings) is called if the user accepts.
export function editSettings(settings, props, changed) {
  const defaults = props?.default_generation_settings?.params ?? {};
  const inputs = {};
  const area = (name, rows) => {
    inputs[name] = element("textarea", { id: `set-${name}`, rows, value: settings[name] ?? "", spellcheck: name === "system" });
    return [element("label", { htmlFor: `set-${name}` }, t(`set.${name}`)), inputs[name]];
  };
  const numbers = Object.entries(NUMBERS).map(([name, step]) => {
    const standard = name === "seed" ? undefined : defaults[name];
    inputs[name] = element("input", { type: "number", id: `set-${name}`, step, value: settings[name] ?? "",
      placeholder: standard === undefined || standard === -1 ? t(name === "seed" ? "set.random" : "set.none") : String(Number(Number(standard).toFixed(4))) });
    return element("div", {}, element("label", { htmlFor: `set-${name}` }, t(`set.${name}`)), inputs[name]);
  });
  const fault = element("p.failure", { role: "alert", hidden: true });
  const form = element("form", { method: "dialog", noValidate: true }, element("h2", {}, t("settings")),
    ...area("system", 3), element("div.numbers", {}, ...numbers), element("p.hint", {}, t("set.hint")),
    ...area("schema", 3), ...area("tools", 3), fault,
    element("p.actions", {},
      element("button", { type: "button", onclick: () => dialog.close() }, t("cancel")),
      element("button.primary", { type: "submit" }, t("ok"))));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const given = {};
    for (const [name, input] of Object.entries(inputs)) {
      if (input.value.trim()) given[name] = input.value.trim();
    }
    for (const name of ["schema", "tools"]) {
      try {
        if (given[name]) JSON.parse(given[name]);
      } catch (error) {
        fault.hidden = false;
        fault.textContent = `${t(`set.${name}`)}: ${error.message}`;
        inputs[name].focus();
        return;
      }
    }
    localStorage.setItem(STORED, JSON.stringify(given));
    changed(given);
    dialog.close();
  });
  const dialog = element("dialog.settings", { "aria-label": t("settings"), onclose: () => dialog.remove() }, form);
  document.body.append(dialog);
  dialog.showModal();
}
