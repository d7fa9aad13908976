// Bars of numbers as SVG, and bars of parts.

import { element } from "../dom.js";

const SVG = "http://www.w3.org/2000/svg";

function shape(name, properties, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(properties)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// A row of bars; each is a list of parts on top of each other: [{kind, value}]. titles: of each bar.
export function bars(label, columns, titles = []) {
  const sum = (parts) => parts.reduce((total, part) => total + part.value, 0);
  const most = Math.max(...columns.map(sum), 1e-9);
  const drawing = shape("svg", { viewBox: `0 0 ${Math.max(columns.length, 1) * 10} 100`, preserveAspectRatio: "none", role: "img", "aria-label": label });
  columns.forEach((parts, index) => {
    const bar = shape("g", {});
    if (titles[index]) {
      const title = shape("title", {});
      title.textContent = titles[index];
      bar.append(title);
    }
    let top = 100;
    for (const { kind, value } of parts) {
      const height = 100 * value / most;
      top -= height;
      bar.append(shape("rect", { x: index * 10 + 1, y: top, width: 8, height, class: `part ${kind}` }));
    }
    drawing.append(bar);
  });
  return drawing;
}

// What the kinds mean: [[kind, text]].
export function legend(pairs) {
  return element("p.legend", {}, ...pairs.map(([kind, text]) =>
    element("span", {}, element(`i.part.${kind}`, { "aria-hidden": "true" }), text)));
}

// A horizontal bar that is changed in place; kinds: of its parts from the left.
export class Bar {
  constructor(...kinds) {
    this.parts = kinds.map((kind) => element(`i.part.${kind}`));
    this.element = element("span.bar", { "aria-hidden": "true" }, ...this.parts);
  }

  // shares: of the whole, 0 to 1.
  show(...shares) {
    this.parts.forEach((part, index) => { part.style.width = `${100 * Math.min(1, Math.max(0, shares[index] || 0))}%`; });
  }
}
