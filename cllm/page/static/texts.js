// The page's texts in English and Chinese.

import { en } from "./texts_en.js";
import { zh } from "./texts_zh.js";

const STORED = "cllm-language";
const texts = { en: { ...en }, zh: { ...zh } };

let chosen = localStorage.getItem(STORED) ?? (navigator.language.startsWith("zh") ? "zh" : "en");
document.documentElement.lang = chosen;

export function language() {
  return chosen;
}

export function setLanguage(name) {
  chosen = name;
  localStorage.setItem(STORED, name);
  document.documentElement.lang = name;
}

export function addTexts(more) {
  for (const [name, pairs] of Object.entries(more)) Object.assign(texts[name], pairs);
}

// The text of a key; {name} in it becomes values.name.
export function t(key, values = {}) {
  const text = texts[chosen][key] ?? texts.en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (found, name) => String(values[name] ?? found));
}
