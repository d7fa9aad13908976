// The page: its bar, its views by the address's hash, and what views share.

import { base, forgetKey, json, request } from "./connection.js";
import { element, signButton } from "./dom.js";
import { addTexts, language, setLanguage, t } from "./texts.js";
import { setUpTheme, turnTheme } from "./theme.js";

// A view is a module with mount(root, app), which returns a function that unmounts it.
const VIEWS = {
  chat: "./chat/view.js",
  inspector: "./inspector/view.js",
  monitor: "./monitor/view.js",
  bench: "./bench/view.js",
};

export const app = {
  base,
  fetch: request, // as fetch(); adds the key and asks for one
  json, // (path, body): the JSON of the response; throws ServerError
  t, // (key, values): the text in the user's language
  addTexts, // ({en: {…}, zh: {…}}): texts of a view
  language,
  model: null, // {name, props} once it is known
  ready: null, // resolves to app.model
  notify,
  style, // (url): loads a style sheet once
};

let unmount = null;
let shown = 0;

function notify(text, kind = "info") {
  const notice = element(`p.notice.${kind}`, {}, text);
  document.getElementById("notices").append(notice);
  setTimeout(() => notice.remove(), 8000);
}

function style(url) {
  const href = String(url);
  const known = [...document.styleSheets].find((sheet) => sheet.href === href);
  if (known) return Promise.resolve();
  return new Promise((resolve, reject) => document.head.append(
    element("link", { rel: "stylesheet", href, onload: resolve, onerror: reject })));
}

async function loadModel() {
  for (;;) {
    try {
      const props = await json("props");
      app.model = { name: props.model_alias, props };
      document.getElementById("model").textContent = app.model.name;
      return app.model;
    } catch (error) {
      if (error.status !== 503) throw error;
      document.getElementById("model").textContent = t("loading");
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

function drawBar() {
  const route = routeOf();
  const links = Object.keys(VIEWS).map((name) => element("a", {
    href: `#/${name}`, "aria-current": name === route ? "page" : undefined }, t(`nav.${name}`)));
  document.getElementById("bar").replaceChildren(
    element("strong.name", {}, "cLLM"),
    element("nav", { "aria-label": t("nav") }, ...links),
    element("span.model", { id: "model" }, app.model?.name ?? ""),
    signButton("文/A", `文/A: ${t("language")}`, () => { setLanguage(language() === "zh" ? "en" : "zh"); show(); },
      { id: "language" }),
    signButton("◐", t("theme"), turnTheme, { id: "theme" }));
  document.getElementById("skip").textContent = t("skip");
}

function routeOf() {
  const name = location.hash.replace(/^#\//, "").split("/")[0];
  return name in VIEWS ? name : "chat";
}

async function show() {
  const mine = ++shown;
  unmount?.();
  unmount = null;
  drawBar();
  const root = element(`div.root.${routeOf()}`);
  document.getElementById("view").replaceChildren(root);
  document.title = `${t(`nav.${routeOf()}`)} – cLLM`;
  try {
    const view = await import(VIEWS[routeOf()]);
    if (mine !== shown) return;
    const end = await view.mount(root, app);
    if (mine === shown) unmount = end;
    else end?.();
  } catch (error) {
    root.replaceChildren(element("p.failure", { role: "alert" }, `${t("view.failed")} ${error.message}`));
  }
}

document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("view").focus();
});
setUpTheme();
app.forgetKey = forgetKey;
app.ready = loadModel();
app.ready.catch((error) => notify(error.message, "error"));
addEventListener("hashchange", show);
show();
