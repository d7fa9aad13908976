// The inspector: probabilities of an answer's tokens, tokenization, the rendered prompt.

import { inspected } from "../chat/handover.js";
import { element } from "../dom.js";
import { Probabilities } from "./probabilities.js";
import { promptSection } from "./prompt.js";
import { texts } from "./texts.js";
import { tokensSection } from "./tokens.js";

export async function mount(root, app) {
  app.addTexts(texts);
  await app.style(new URL("inspector.css", import.meta.url));
  const place = await inspected(); // what the chat hands over
  const probabilities = new Probabilities(app, place);
  root.append(element("div.sections", {}, element("h1", {}, app.t("nav.inspector")),
    probabilities.element, tokensSection(app), promptSection(app, place)));
  return () => probabilities.end();
}
