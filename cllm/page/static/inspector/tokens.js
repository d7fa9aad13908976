// The tokens of any text.

import { element } from "../dom.js";

export function tokensSection(app) {
  const { t } = app;
  const box = element("textarea", { id: "tokenize", rows: 3, "aria-label": t("tokens.text"), placeholder: t("tokens.text") });
  const special = element("input", { type: "checkbox", id: "special" });
  const count = element("p.count", { role: "status" });
  const list = element("p.tokens.plain");
  let asked = 0;
  let timer = null;

  async function refresh() {
    const mine = ++asked;
    try {
      const { tokens } = box.value
        ? await app.json("tokenize", { content: box.value, with_pieces: true, add_special: special.checked })
        : { tokens: [] };
      if (mine !== asked) return;
      count.textContent = t("tokens.count", { n: tokens.length, characters: [...box.value].length });
      list.replaceChildren(...tokens.map(({ id, piece }, number) => element(`span.token.turn${number % 4}`,
        { title: String(id) }, visible(piece))));
    } catch (error) {
      app.notify(error.message, "error");
    }
  }
  box.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(refresh, 150);
  });
  special.addEventListener("change", refresh);
  return element("section", { "aria-label": t("tokens") }, element("h2", {}, t("tokens")), box,
    element("label.check", {}, special, t("tokens.special")), count, list);
}

// A piece is text, or the bytes of a part of a character.
export function visible(piece) {
  if (typeof piece !== "string") return piece.map((byte) => `<${byte.toString(16).padStart(2, "0")}>`).join("");
  return piece.replaceAll("\n", "⏎\n").replaceAll("\t", "⇥") || "∅";
}
