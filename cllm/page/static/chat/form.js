// An answer that follows a JSON schema, as a form: one field for each value.

import { element } from "../dom.js";

const LONG = 60; // characters from which a text gets several lines

// The form, or null if the text is not an object or a list in JSON.
export function formOf(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    return null;
  }
  return value !== null && typeof value === "object" ? element("div.form", {}, ...parts(value)) : null;
}

function parts(value) {
  const named = Array.isArray(value) ? value.map((each, number) => [String(number + 1), each]) : Object.entries(value);
  return named.map(([name, each]) => (each !== null && typeof each === "object"
    ? element("fieldset", {}, element("legend", {}, name), ...parts(each))
    : element("label", {}, element("span", {}, name), field(each))));
}

function field(value) {
  if (typeof value === "boolean") return element("input", { type: "checkbox", checked: value, disabled: true });
  const text = value === null ? "–" : String(value);
  if (text.length < LONG && !text.includes("\n")) return element("input", { value: text, readOnly: true });
  return element("textarea", { value: text, readOnly: true, rows: 3 });
}
