// The page of /docs: shows what openapi.json says, and sends requests to try them.

const byId = (id) => document.getElementById(id);

/** An element with properties and children; strings become text, never markup. */
function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

function headers() {
  const key = byId("key").value.trim();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

let spec = null;

const resolved = (schema) =>
  schema && schema.$ref ? spec.components.schemas[schema.$ref.split("/").pop()] : schema ?? {};

/** What a schema takes, in words. */
function words(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.anyOf) {
    const kinds = schema.anyOf.filter((each) => each.type !== "null").map(words);
    return [...new Set(kinds)].join(" | ");
  }
  if (schema.type === "array") return `list of ${schema.items ? words(schema.items) : "any"}`;
  const least = schema.minimum ?? schema.exclusiveMinimum;
  const range = least === undefined && schema.maximum === undefined
    ? "" : ` (${least ?? "…"} to ${schema.maximum ?? "…"})`;
  return (schema.type ?? "any") + range;
}

/** The types that a schema mentions. */
function mentioned(schema, found = new Set()) {
  for (const [name, value] of Object.entries(schema ?? {})) {
    if (name === "$ref") found.add(value.split("/").pop());
    else if (value && typeof value === "object") mentioned(value, found);
  }
  return found;
}

function fieldsOf(schema) {
  const required = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties ?? {}).map(([name, field]) =>
    make("tr", {},
      make("td", {}, make("code", {}, name), required.has(name) ? " *" : ""),
      make("td", {}, words(field)),
      make("td", { className: "quiet" },
        field.default === undefined || field.default === null ? "" : JSON.stringify(field.default)),
    ));
  if (!rows.length) return make("p", { className: "quiet" }, words(schema));
  const head = ["field (* required)", "takes", "default"].map((name) => make("th", {}, name));
  return make("table", {}, make("tr", {}, ...head), ...rows);
}

/** A schema's fields, and below them those of the types that it mentions. */
function described(schema) {
  const types = [...mentioned(resolved(schema))].map((name) => {
    const inner = spec.components.schemas[name];
    const text = inner.description ? ` ${inner.description}` : "";
    return make("details", {},
      make("summary", {}, make("code", {}, name), make("span", { className: "quiet" }, text)),
      make("div", {}, fieldsOf(inner)));
  });
  return [fieldsOf(resolved(schema)), ...types];
}

/** Sends a request and shows the answer as it comes. */
async function send(method, path, body, output) {
  output.hidden = false;
  output.textContent = "…";
  const started = performance.now();
  try {
    const answer = await fetch(path, { method, headers: headers(), body });
    const head = `${answer.status} ${answer.statusText}`;
    const reader = answer.body?.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (let part; reader && !(part = await reader.read()).done;) {
      text += part.value;
      output.textContent = `${head}\n\n${text}`;
    }
    try {
      text = JSON.stringify(JSON.parse(text), null, 2);
    } catch { /* not JSON: events or text */ }
    output.textContent = `${head}, ${Math.round(performance.now() - started)} ms\n\n${text}`;
  } catch (error) {
    output.textContent = String(error);
  }
}

function operation(method, path, about) {
  const body = about.requestBody?.content["application/json"];
  const output = make("pre", { hidden: true });
  const where = make("input", { value: path, size: 40, ariaLabel: "path" });
  const text = make("textarea", { spellcheck: false, ariaLabel: "body" });
  text.value = body ? JSON.stringify(body.example ?? {}, null, 2) : "";
  const button = make("button", { type: "button" }, "Send");
  button.onclick = () =>
    send(method.toUpperCase(), where.value.replace(/^\//, ""), body ? text.value : undefined, output);
  const answer = Object.entries(about.responses["200"].content ?? {});
  const parameters = (about.parameters ?? []).map((each) =>
    `${each.in} ${each.name}: ${words(each.schema)}`).join("; ");
  const content = () => [
    ...(parameters ? [make("p", {}, parameters)] : []),
    ...(body ? [make("h3", {}, "Request"), ...described(body.schema)] : []),
    make("h3", {}, "Answer"),
    ...answer.flatMap(([kind, { schema }]) =>
      [make("p", {}, make("code", {}, kind)), ...(schema.$ref ? described(schema) : [])]),
    make("h3", {}, "Try it"),
    make("div", {}, where, " ", button),
    ...(body ? [text] : []),
    output,
  ];
  const details = make("details", {},
    make("summary", {},
      make("code", { className: "method" }, method.toUpperCase()), make("code", {}, path),
      make("span", { className: "quiet" }, ` ${about.summary}`)));
  details.dataset.text = `${method} ${path} ${about.summary}`.toLowerCase();
  details.addEventListener("toggle", () => details.append(make("div", {}, ...content())),
    { once: true });
  return details;
}

function show() {
  byId("version").textContent = spec.info.version;
  const sections = spec.tags.map(({ name }) => {
    const own = Object.entries(spec.paths).flatMap(([path, methods]) =>
      Object.entries(methods).filter(([, about]) => about.tags.includes(name))
        .map(([method, about]) => operation(method, path, about)));
    return make("section", {}, make("h2", {}, name), ...own);
  });
  byId("operations").replaceChildren(...sections);
}

async function load() {
  const answer = await fetch("openapi.json", { headers: headers() });
  if (answer.ok) {
    spec = await answer.json();
    show();
  } else {
    const hint = answer.status === 401 ? "Give an API key above." : `openapi.json: ${answer.status}`;
    byId("operations").replaceChildren(make("p", {}, hint));
  }
}

byId("key").addEventListener("change", load);
byId("find").addEventListener("input", (event) => {
  const wanted = event.target.value.trim().toLowerCase();
  for (const each of document.querySelectorAll("main details[data-text]")) {
    each.hidden = !each.dataset.text.includes(wanted);
  }
});
load();
