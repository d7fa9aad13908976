// The lists of requests, and the dialog that explains one of them.

import { element } from "../dom.js";
import { Bar, legend } from "./drawing.js";
import { phases, rate, sentences, time } from "./words.js";

const KEPT = 100; // requests that have ended

export function tenantName(t, tenant) {
  return tenant || t("mon.anyone");
}

function button(t, request, explain) {
  return element("button.request", { type: "button", onclick: explain,
    "aria-haspopup": "dialog", title: t("mon.explain", { id: request.id.slice(0, 8) }) });
}

// A slot: made once, changed in place, so that it keeps the focus.
export class SlotRow {
  constructor(t, number, explain) {
    this.t = t;
    this.request = null;
    this.bar = new Bar("cached", "prompt");
    this.name = element("b", {}, t("mon.slot", { n: number }));
    this.text = element("span.text");
    this.button = element("button.request", { type: "button", "aria-haspopup": "dialog", onclick: () => this.request && explain(this.request) },
      this.name, this.text, this.bar.element);
    this.element = element("li", {}, this.button);
  }

  show(slot) {
    const { t } = this, { request } = slot;
    this.request = request;
    this.button.disabled = !request;
    this.element.className = request ? request.state : slot.busy ? "other" : "free";
    const all = request?.prompt_tokens || 1;
    const cached = request ? Math.min(request.cached_tokens, request.read_tokens) : 0;
    this.bar.show(cached / all, request ? (request.read_tokens - cached) / all : 0);
    this.text.textContent = request ? this.describe(request)
      : slot.busy ? t("mon.other") : `${t("mon.free")}${slot.tokens ? ` · ${t("mon.holds", { n: slot.tokens })}` : ""}`;
  }

  describe(request) {
    const { t } = this;
    const state = t(`mon.state.${request.state}`, {
      read: request.read_tokens, rate: rate(request.tokens_per_second),
      n: request.state === "prompt" ? request.prompt_tokens : request.generated_tokens });
    return `${tenantName(t, request.tenant)} · ${state}`;
  }
}

export class Recent {
  constructor(t, explain) {
    this.t = t;
    this.explain = explain;
    this.none = element("p.help", {}, t("mon.recent.none"));
    this.list = element("ul.recent");
    this.element = element("div", {}, this.none, this.list);
  }

  add(ended) {
    if (!ended.length) return;
    this.none.remove();
    for (const request of ended) this.list.prepend(element("li", {}, this.row(request)));
    while (this.list.children.length > KEPT) this.list.lastChild.remove();
  }

  row(request) {
    const { t } = this, made = button(t, request, () => this.explain(request)), bar = phaseBar(request);
    const words = t("mon.row", { tokens: request.generated_tokens, time: time(t, request.total_s) });
    made.append(element("b", {}, tenantName(t, request.tenant)),
      element("span.text", {}, `${words} · ${t(`mon.reason.${request.finish_reason}`)}`), bar.element);
    return made;
  }
}

export class Queue {
  constructor(t, explain) {
    this.t = t;
    this.explain = explain;
    this.element = element("div");
    this.shown = "";
  }

  show(queue) {
    const { t } = this;
    const lines = queue.map(({ tenant, count, oldest_s: oldest }) =>
      t("mon.queue.of", { tenant: tenantName(t, tenant), n: count, time: time(t, oldest) }));
    const shown = queue.flatMap(({ requests }) => requests.map(({ id }) => id)).join();
    if (shown !== this.shown || !this.element.children.length) {
      this.shown = shown;
      this.element.replaceChildren(...queue.length ? queue.map((one) => this.tenant(one)) : [element("p.help", {}, t("mon.queue.none"))]);
    }
    [...this.element.querySelectorAll("p.line")].forEach((line, index) => { line.textContent = lines[index]; });
  }

  tenant({ requests }) {
    const { t } = this;
    return element("div", {}, element("p.line"), element("div.waiting", {}, ...requests.map((request) => {
      const made = button(t, request, () => this.explain(request));
      made.append(request.id.slice(0, 8));
      return made;
    })));
  }
}

function phaseBar(request) {
  const bar = new Bar(...phases(request).map(({ name }) => name));
  bar.show(...phases(request).map(({ seconds }) => seconds / (request.total_s || 1)));
  return bar;
}

// Explains a request, and follows it while it runs.
export class Explanation {
  constructor(t, root) {
    this.t = t;
    this.id = null;
    this.content = element("div");
    this.element = element("dialog.explanation", { "aria-labelledby": "mon-request", onclose: () => { this.id = null; } },
      this.content, element("div.actions", {}, element("button.primary", { type: "button", onclick: () => this.element.close() }, t("mon.close"))));
    root.append(this.element);
  }

  open(request) {
    this.id = request.id;
    this.draw(request);
    if (!this.element.open) this.element.showModal();
  }

  // requests: all of an event.
  follow(requests) {
    const request = this.id && requests.find(({ id }) => id === this.id);
    if (request) this.draw(request);
  }

  draw(request) {
    const { t } = this;
    this.content.replaceChildren(
      element("h2", { id: "mon-request" }, t("mon.request", { id: request.id.slice(0, 8) })),
      element("p.help", {}, tenantName(t, request.tenant)),
      phaseBar(request).element,
      legend(phases(request).map(({ name, seconds }) => [name, `${t(`mon.phase.${name}`)} ${time(t, seconds)}`])),
      ...sentences(t, request).map((text) => element("p", {}, text)));
  }
}
