// The list of conversations: search, open, rename, delete, import and export.

import { chooseFiles, download, element, signButton } from "../dom.js";
import { t } from "../texts.js";
import * as store from "./store.js";
import { exported, imported } from "./transfer.js";

export class Sidebar {
  // open(id or null), removed(id), renamed(record), complain(text).
  constructor(actions) {
    this.actions = actions;
    this.current = null;
    this.search = element("input", { type: "search", id: "search", placeholder: t("search"), "aria-label": t("search"),
      oninput: () => this.refresh() });
    this.list = element("ul.conversations", { "aria-label": t("conversations") });
    this.element = element("aside.sidebar", { "aria-label": t("conversations") },
      element("div.row", {},
        element("button.primary", { type: "button", id: "new", onclick: () => actions.open(null) }, t("new"))),
      this.search, this.list,
      element("div.row", {},
        element("button", { type: "button", id: "import", onclick: () => this.import() }, t("import")),
        element("button", { type: "button", id: "export", onclick: () => this.export() }, t("export.all"))));
    this.asked = 0;
  }

  async refresh(current = this.current) {
    this.current = current;
    const asked = ++this.asked;
    const wanted = this.search.value.trim();
    const [all, inside] = await Promise.all([
      store.conversations(), wanted ? store.containing(wanted) : null]);
    if (asked !== this.asked) return;
    const shown = all.filter((record) => !wanted || inside.has(record.id)
      || record.title.toLowerCase().includes(wanted.toLowerCase()));
    this.list.replaceChildren(...shown.map((record) => this.row(record)));
  }

  row(record) {
    const title = record.title || t("untitled");
    return element("li", {},
      element("button.title", { type: "button", "aria-current": record.id === this.current ? "true" : undefined,
        onclick: () => this.actions.open(record.id) }, title),
      signButton("✎", t("rename.of", { title }), () => this.rename(record)),
      signButton("↓", t("export.of", { title }), async () =>
        download("conversation.json", await exported([record]))),
      signButton("×", t("delete.of", { title }), () => this.remove(record)));
  }

  async rename(record) {
    const title = await this.ask(t("rename"), element("input", { value: record.title, "aria-label": t("rename") }));
    if (!title) return;
    await this.actions.renamed(record, title);
    this.refresh();
  }

  async remove(record) {
    if ((await this.ask(t("delete.sure", { title: record.title || t("untitled") }))) === null) return;
    await this.actions.removed(record.id);
    await store.removeConversation(record.id);
    this.refresh();
  }

  // The input's value, "" without an input; null if cancelled.
  ask(question, input = null) {
    return new Promise((resolve) => {
      let answer = null;
      const form = element("form", { method: "dialog" }, element("h2", {}, question), input,
        element("p.actions", {},
          element("button", { type: "button", onclick: () => dialog.close() }, t("cancel")),
          element("button.primary", { type: "submit" }, t("ok"))));
      form.addEventListener("submit", () => (answer = input?.value.trim() ?? ""));
      const dialog = element("dialog", { "aria-label": question, onclose: () => { dialog.remove(); resolve(answer); } }, form);
      document.body.append(dialog);
      dialog.showModal();
      input?.select();
    });
  }

  async export() {
    download("conversations.json", await exported(await store.conversations()));
  }

  async import() {
    for (const { name, text } of await chooseFiles("application/json,.json", true)) {
      try {
        const ids = await imported(text);
        if (ids.length) await this.actions.open(ids[0]);
      } catch (error) {
        this.actions.complain(`${name}: ${error.message}`);
      }
    }
    this.refresh();
  }
}
