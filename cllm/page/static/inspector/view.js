// The inspector: probabilities of an answer's tokens, tokenization, the rendered prompt.

import { element } from "../dom.js";
import { Probabilities } from "./probabilities.js";
import { promptSection } from "./prompt.js";
import { texts } from "./texts.js";
import { tokensSection } from "./tokens.js";

export async function mount(root, app) {
  app.addTexts(texts);
  await app.style(new URL("inspector.css", import.meta.url));
  const probabilities = new Probabilities(app);
  root.append(element("div.sections", {}, probabilities.element, tokensSection(app), promptSection(app)));
  return () => probabilities.end();
}
