// The messages of the shown branch. Those far from what is visible stay plain text.

import { element } from "../dom.js";
import { t } from "../texts.js";
import { MessageView } from "./message.js";

const NEAR = "600px";
const AT_END = 60; // px from the end within which a growing answer is followed

export class Messages {
  constructor(actions) {
    this.actions = actions;
    this.views = [];
    this.list = element("div.messages");
    this.live = element("p.hidden", { role: "status" });
    this.element = element("div.scroll", { tabIndex: 0, role: "region", "aria-label": t("messages") }, this.list, this.live);
    this.near = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        this.near.unobserve(entry.target);
        this.byElement.get(entry.target)?.enrich();
      }
    }, { root: this.element, rootMargin: NEAR });
    this.byElement = new WeakMap();
    this.atEnd = true;
    this.element.addEventListener("scroll", () => {
      const { scrollHeight, scrollTop, clientHeight } = this.element;
      this.atEnd = scrollHeight - scrollTop - clientHeight < AT_END;
    }, { passive: true });
    this.resized = new ResizeObserver(() => { if (this.atEnd) this.toEnd(); });
    this.resized.observe(this.list);
  }

  // Keep what two branches have in common, replace the rest.
  show(path, toEnd) {
    let same = 0;
    while (same < path.length && this.views[same]?.message === path[same]) same += 1;
    for (const view of this.views.splice(same)) {
      this.near.unobserve(view.element);
      view.element.remove();
    }
    const added = path.slice(same).map((message) => new MessageView(message, this.actions));
    this.list.append(...added.map((view) => view.element));
    for (const view of added) {
      this.byElement.set(view.element, view);
      this.near.observe(view.element);
    }
    this.views.push(...added);
    for (const view of this.views.slice(Math.max(0, same - 2), same)) if (view.rich) view.update();
    if (!path.length) this.list.replaceChildren(element("p.empty", {}, t("empty")));
    else this.list.querySelector(".empty")?.remove();
    if (toEnd) {
      this.atEnd = true;
      this.toEnd();
    }
  }

  update(message) {
    this.views.findLast((view) => view.message === message)?.update();
  }

  announce(text) {
    this.live.textContent = text;
  }

  toEnd() {
    this.element.scrollTop = this.element.scrollHeight;
  }

  clear() {
    this.near.disconnect();
    this.views = [];
    this.list.replaceChildren();
  }

  end() {
    this.near.disconnect();
    this.resized.disconnect();
  }
}
