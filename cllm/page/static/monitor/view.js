// The monitor view: draws each event of /monitor.

import { events } from "../chat/sse.js";
import { element } from "../dom.js";
import { Bar, bars, legend } from "./drawing.js";
import { Explanation, Queue, Recent, SlotRow } from "./requests.js";
import { texts } from "./texts.js";
import { rate } from "./words.js";

const RETRY = 2000; // ms
const PARTS = ["decode", "sample", "publish", "other"];
const MIB = 2 ** 20;

export async function mount(root, app) {
  app.addTexts(texts);
  await app.style(new URL("monitor.css", import.meta.url));
  const monitor = new Monitor(root, app);
  monitor.watch();
  return () => monitor.end();
}

class Monitor {
  constructor(root, app) {
    const { t } = app;
    this.app = app;
    this.t = t;
    this.ended = false;
    this.aborting = null; // the stream in use
    this.seen = []; // {at, requests}: of the last events
    this.slots = new Map();
    this.explanation = new Explanation(t, root);
    const explain = (request) => this.explanation.open(request);
    this.explain = explain;
    this.status = element("p.status", { role: "status" }, t("mon.connecting"));
    this.now = element("dl.now");
    this.minute = element("div.minute");
    this.last = element("div");
    this.list = element("ul.slots");
    this.queue = new Queue(t, explain);
    this.cache = element("div.cache");
    this.recent = new Recent(t, explain);
    this.whole = [
      this.section("mon.now", null, this.now),
      this.section("mon.minute", "mon.minute.help", this.minute),
      this.section("mon.last", "mon.last.help", this.last),
      this.section("mon.cache", null, this.cache),
    ];
    const [now, minute, last, cache] = this.whole;
    root.append(element("h1.hidden", {}, t("mon.title")), this.status, now, minute, last,
      this.section("mon.slots", "mon.slots.help", this.list),
      this.section("mon.queue", null, this.queue.element), cache,
      this.section("mon.recent", "mon.recent.help", this.recent.element));
    this.visible = () => (document.hidden ? this.aborting?.abort() : this.wake?.());
    document.addEventListener("visibilitychange", this.visible);
  }

  section(title, help, ...children) {
    return element("section", { "aria-label": this.t(title) }, element("h2", {}, this.t(title)),
      help && element("p.help", {}, this.t(help)), ...children);
  }

  // Reads events until the view is left; a hidden page reads none.
  async watch() {
    while (!this.ended) {
      if (document.hidden) await new Promise((resolve) => { this.wake = resolve; });
      if (this.ended) return;
      this.aborting = new AbortController();
      try {
        const response = await this.app.fetch("monitor", { signal: this.aborting.signal });
        if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
        this.recent.list.replaceChildren(); // the first event has them all
        for await (const event of events(response)) {
          if (event.error) throw new Error(event.error);
          this.show(event);
        }
        throw new Error("");
      } catch (error) {
        if (this.ended || document.hidden) continue;
        this.say(this.t("mon.lost", { reason: error.message }));
        await new Promise((resolve) => { this.wake = resolve; setTimeout(resolve, RETRY); });
      }
    }
  }

  end() {
    this.ended = true;
    document.removeEventListener("visibilitychange", this.visible);
    this.aborting?.abort();
    this.wake?.();
  }

  // Only what changes is read out by screen readers.
  say(text) {
    if (this.status.textContent !== text) this.status.textContent = text;
  }

  show(event) {
    const { engine, server, slots, queue } = event;
    for (const section of this.whole) section.hidden = !event.all;
    const waiting = queue.reduce((sum, { count }) => sum + count, 0);
    const counts = this.t("mon.counts", { running: slots.filter(({ busy }) => busy).length, slots: slots.length, waiting });
    const first = engine ? this.t(`mon.limit.${engine.limit}`, { left: engine.cores_left?.toFixed(1), cores: engine.cores }) : this.t("mon.own");
    this.say(`${first} ${counts}`);
    if (engine) {
      this.showNow(event, waiting);
      this.showMinute(event.timeline);
      this.showSteps(event.steps);
      this.showCache(engine);
    }
    this.showSlots(slots);
    this.queue.show(queue);
    this.recent.add(event.ended);
    this.explanation.follow([...slots.map(({ request }) => request).filter(Boolean),
      ...queue.flatMap(({ requests }) => requests), ...event.ended]);
  }

  showNow({ engine, server, timeline, at }, waiting) {
    const { t } = this, of = (n, m) => t("mon.of", { n, m });
    const tiles = [
      ["mon.speed", timeline.tokens.at(-1) ?? "–"], ["mon.running", of(engine.slots_busy, engine.slots_total)],
      ["mon.waiting", waiting], ["mon.busy", `${Math.round(100 * engine.busy)} %`],
      ["mon.threads", of(engine.threads, engine.threads_limit)],
    ];
    if (server) {
      this.seen = [...this.seen.filter((one) => one.at < at), { at, requests: server.requests_total }].slice(-9);
      const [oldest] = this.seen;
      const perSecond = at > oldest.at ? (server.requests_total - oldest.requests) / (at - oldest.at) : 0;
      tiles.push(["mon.requests", rate(perSecond)], ["mon.connections", server.connections], ["mon.workers", of(server.workers_busy, server.workers)]);
    }
    this.now.replaceChildren(...tiles.map(([key, value]) =>
      element("div", {}, element("dt", {}, t(key)), element("dd", {}, String(value)))));
  }

  showMinute(timeline) {
    const drawn = JSON.stringify(timeline);
    if (drawn === this.drawn) return; // it changes once a second
    this.drawn = drawn;
    const lines = [["mon.tokens", timeline.tokens, "decode"], ["mon.prompts", timeline.prompt_tokens, "prompt"], ["mon.steps", timeline.steps, "steps"]];
    this.minute.replaceChildren(...lines.map(([key, values, kind]) => {
      const known = values.map((value) => value ?? 0);
      const label = this.t("mon.line", { name: this.t(key), last: known.at(-1), most: Math.max(...known) });
      return element("figure", {}, bars(label, known.map((value) => [{ kind, value }])), element("figcaption", {}, label));
    }));
  }

  showSteps(steps) {
    const newest = steps.at(-1)?.number;
    if (newest === this.newest) return;
    this.newest = newest;
    const time = (step) => PARTS.reduce((sum, part) => sum + step[`${part}_ms`], 0);
    const mean = (value) => steps.reduce((sum, step) => sum + value(step), 0) / steps.length;
    const summary = this.t("mon.last.sum", { ms: mean(time).toFixed(1), share: Math.round(100 * mean((step) => step.decode_ms) / mean(time)),
      prompt: rate(mean((step) => step.prompt_rows)), decode: rate(mean((step) => step.decode_rows)) });
    const columns = steps.map((step) => PARTS.map((kind) => ({ kind, value: step[`${kind}_ms`] })));
    const titles = steps.map((step) => this.t("mon.step", { n: step.number, ms: time(step).toFixed(1), prompt: step.prompt_rows, decode: step.decode_rows }));
    this.last.replaceChildren(element("figure.steps", {}, bars(summary, columns, titles),
      legend(PARTS.map((part) => [part, this.t(`mon.part.${part}`)])), element("figcaption", {}, summary)));
  }

  showSlots(slots) {
    for (const slot of slots) {
      let row = this.slots.get(slot.id);
      if (!row) {
        row = new SlotRow(this.t, slot.id, this.explain);
        this.slots.set(slot.id, row);
        this.list.append(row.element);
      }
      row.show(slot);
    }
  }

  showCache(engine) {
    const { t } = this, share = (n, m) => (m ? Math.round(100 * n / m) : 0);
    const line = (text, ...shares) => {
      const bar = new Bar("cached");
      bar.show(...shares);
      return [element("p", {}, text), shares.length ? bar.element : null];
    };
    const { kv_tokens: held, kv_cells: cells, cache_ram_bytes: ram, cache_ram_limit: most } = engine;
    const { cache_disk_bytes: disk, cache_disk_limit: room, cache_disk_entries: entries } = engine;
    const { cached_tokens: hits, prompt_tokens: read, guessed_tokens: drafted, guessed_right_tokens: right } = engine;
    const parts = [
      ...line(t("mon.cache.fill", { n: held, m: cells }), held / cells),
      ...(most ? line(t("mon.cache.ram", { n: Math.round(ram / MIB), m: Math.round(most / MIB) }), ram / most) : []),
      ...(room ? line(t("mon.cache.disk", { count: entries, n: Math.round(disk / MIB), m: Math.round(room / MIB) }), disk / room) : []),
      ...line(t("mon.cache.hits", { share: share(hits, read), n: hits, m: read }), hits / (read || 1)),
      ...(drafted ? line(t("mon.drafts", { share: share(right, drafted), n: right, m: drafted }), right / drafted) : line(t("mon.drafts.none"))),
    ];
    this.cache.replaceChildren(...parts.filter(Boolean));
  }
}
