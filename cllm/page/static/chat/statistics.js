// What an answer cost, in one line.

import { t } from "../texts.js";

export function statistics({ role, stats, finish }) {
  if (role !== "assistant" || !stats) return "";
  const parts = [];
  if (stats.tokens !== undefined) parts.push(t("stats.tokens", { n: stats.tokens }));
  if (stats.speed) parts.push(t("stats.speed", { n: stats.speed.toFixed(1) }));
  if (stats.first) parts.push(t("stats.first", { n: stats.first.toFixed(2) }));
  if (stats.prompt !== undefined) parts.push(t("stats.prompt", { n: stats.prompt, cached: stats.cached }));
  if (finish === "length") parts.push(t("stats.length"));
  return parts.join(" · ");
}
