// The benchmark view: runs /benchmark, plots the results, compares them with earlier runs.

import { download, element } from "../dom.js";
import { bars } from "../svg.js";
import { keep, kept, remove } from "./runs.js";
import { texts } from "./texts.js";

const FIELDS = { requests: 20, concurrency: "1, 4", max_tokens: 50 };
const PLOTS = [
  ["avg_throughput", "speed"], ["time_to_first_token", "time"], ["p50_response_time", "time"],
  ["p95_response_time", "time"], ["p99_response_time", "time"],
];

export async function mount(root, app) {
  app.addTexts(texts);
  await app.style(new URL("bench.css", import.meta.url));
  const bench = new Bench(app);
  root.append(bench.element);
  bench.draw();
  return () => bench.aborting?.abort();
}

class Bench {
  constructor(app) {
    this.app = app;
    this.aborting = null;
    this.chosen = new Set(kept().slice(0, 2).map(({ id }) => id));
    const { t } = app;
    this.inputs = Object.fromEntries(Object.entries(FIELDS).map(([name, value]) => [name,
      element("input", { id: `bench-${name}`, value, inputMode: name === "concurrency" ? "text" : "numeric" })]));
    this.prompt = element("textarea", { id: "bench-prompt", rows: 2, placeholder: t("bench.standard") });
    this.start = element("button.primary", { type: "submit", id: "bench-run" }, t("bench.run"));
    this.stop = element("button", { type: "button", hidden: true, onclick: () => this.aborting?.abort() }, t("bench.stop"));
    this.status = element("p.hint", { role: "status" });
    this.form = element("form", {}, element("div.fields", {}, ...Object.entries(this.inputs).map(([name, input]) =>
      element("div", {}, element("label", { htmlFor: input.id }, t(`bench.${name}`)), input))),
    element("label", { htmlFor: "bench-prompt" }, t("bench.prompt")), this.prompt,
    element("p.actions", {}, this.stop, this.start), this.status);
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.run(); });
    this.plots = element("div.plots");
    this.list = element("div.runs.scrolls", { tabIndex: 0, role: "region", "aria-label": t("bench.runs") });
    this.element = element("div.sections", {}, element("h1", {}, t("nav.bench")), this.form, this.plots, this.list,
      element("p.actions", {}, element("button", { type: "button", id: "bench-export",
        onclick: () => download("benchmarks.json", { format: "cllm-benchmarks", version: 1, runs: kept() }) }, t("bench.export"))));
  }

  // One run for each number of concurrent requests.
  async run() {
    const { t } = this.app;
    const numbers = this.inputs.concurrency.value.split(/[,\s]+/).filter(Boolean).map(Number);
    this.aborting = new AbortController();
    this.start.hidden = true;
    this.stop.hidden = false;
    try {
      for (const concurrency of numbers) {
        this.status.textContent = t("bench.running", { n: concurrency });
        const asked = { requests: Number(this.inputs.requests.value), concurrency,
          max_tokens: Number(this.inputs.max_tokens.value), ...(this.prompt.value && { prompt: this.prompt.value }) };
        const { data } = await this.app.json("benchmark", asked, { signal: this.aborting.signal });
        const run = keep({ model: this.app.model?.name ?? "", asked, results: data });
        this.chosen.add(run.id);
        this.draw();
      }
      this.status.textContent = t("bench.done");
    } catch (error) {
      this.status.textContent = this.aborting.signal.aborted ? t("bench.stopped") : error.message;
    }
    this.start.hidden = false;
    this.stop.hidden = true;
  }

  draw() {
    const { t } = this.app;
    const runs = kept();
    const shown = runs.filter(({ id }) => this.chosen.has(id)).reverse();
    const name = (run) => `#${run.id} ×${run.asked.concurrency}`;
    const formats = { speed: (value) => `${value.toFixed(1)} t/s`,
      time: (value) => (value < 1 ? `${(1000 * value).toFixed(0)} ms` : `${value.toFixed(2)} s`) };
    this.plots.replaceChildren(...(shown.length ? PLOTS : []).map(([field, kind]) => element("figure", {},
      element("figcaption", {}, t(`bench.${field}`)),
      bars(t(`bench.${field}`), shown.map((run, series) => ({ label: name(run), value: run.results[field], series })), formats[kind]))));
    const rows = runs.map((run) => element("tr", {},
      element("td", {}, element("input", { type: "checkbox", checked: this.chosen.has(run.id),
        "aria-label": t("bench.show", { n: name(run) }), onchange: (event) => {
          this.chosen[event.target.checked ? "add" : "delete"](run.id);
          this.draw();
        } })),
      ...[name(run), run.model, new Date(run.time).toLocaleString(), `${run.results.successful_requests}/${run.asked.requests}`,
        run.asked.max_tokens, formats.speed(run.results.avg_throughput), formats.time(run.results.p95_response_time),
      ].map((text) => element("td", {}, String(text))),
      element("td", {}, element("button", { type: "button", "aria-label": t("bench.remove", { n: name(run) }),
        onclick: () => { remove(run.id); this.draw(); } }, "×"))));
    const heads = ["bench.shown", "bench.runs", "bench.model", "bench.time", "bench.succeeded", "bench.max_tokens", "bench.avg_throughput",
      "bench.p95_response_time", "bench.removal"];
    this.list.replaceChildren(runs.length ? element("table", {}, element("thead", {}, element("tr", {},
      ...heads.map((key) => element("th", {}, t(key))))), element("tbody", {}, ...rows)) : element("p.hint", {}, t("bench.none")));
  }
}
