// Light formatting of text that is still arriving: bold, italic and code within a line.

import { element } from "../dom.js";

const PARTS = /`([^`\n]+)`|\*\*([^*\n]+)\*\*|\*([^*\s][^*\n]*)\*/g;
const TAGS = ["code", "strong", "em"];

export function light(text) {
  const nodes = [];
  let end = 0;
  for (const found of text.matchAll(PARTS)) {
    nodes.push(text.slice(end, found.index));
    const kind = found.slice(1).findIndex((part) => part !== undefined);
    nodes.push(element(TAGS[kind], {}, found[kind + 1]));
    end = found.index + found[0].length;
  }
  nodes.push(text.slice(end));
  return nodes.filter(Boolean);
}
