// Where a request's time went, in sentences.

// Seconds as text. t: of the page.
export function time(t, seconds) {
  if (seconds < 1) return t("mon.ms", { n: seconds < 0.01 ? (seconds * 1000).toFixed(1) : Math.round(seconds * 1000) });
  if (seconds < 60) return t("mon.s", { n: seconds < 10 ? seconds.toFixed(1) : Math.round(seconds) });
  const whole = Math.round(seconds);
  return t("mon.min", { m: Math.floor(whole / 60), s: whole % 60 });
}

export function rate(perSecond) {
  return perSecond < 10 ? perSecond.toFixed(1) : Math.round(perSecond);
}

// The phases of a request that have begun: [{name, seconds}].
export function phases(request) {
  return [["queue", request.queued_s], ["prompt", request.prompt_s], ["decode", request.decode_s]]
    .map(([name, seconds]) => ({ name, seconds })).filter((phase) => phase.seconds > 0);
}

export function sentences(t, request) {
  if (request.state === "waiting") return [t("mon.why.waits", { time: time(t, request.queued_s) })];
  return [verdict, queue, cache, prompt, writing, drafts, end].flatMap((part) => part(t, request));
}

function verdict(t, request) {
  if (request.total_s <= 0) return [];
  const longest = phases(request).reduce((a, b) => (b.seconds > a.seconds ? b : a), { name: "queue", seconds: 0 });
  const share = Math.round(100 * longest.seconds / request.total_s);
  return [t("mon.why", { share, time: time(t, request.total_s), phase: t(`mon.phase.${longest.name}`) })];
}

function queue(t, request) {
  if (request.slot === null && request.finish_reason) return [t("mon.why.never")];
  if (request.queued_s < 0.02) return [t("mon.why.began")];
  return [t("mon.why.queue", { time: time(t, request.queued_s) })];
}

function cache(t, request) {
  if (request.prompt_s <= 0) return [];
  if (!request.cached_tokens) return [t("mon.why.uncached", { all: request.prompt_tokens })];
  return [t("mon.why.cached", { n: request.cached_tokens, all: request.prompt_tokens, source: t(`mon.source.${request.prefix}`) })];
}

function prompt(t, request) {
  if (request.prompt_s <= 0) return [];
  const took = time(t, request.prompt_s);
  if (!request.generated_tokens && !request.finish_reason)
    return [t("mon.why.reading", { read: request.read_tokens, all: request.prompt_tokens, time: took })];
  const n = request.prompt_tokens - request.cached_tokens;
  return [t("mon.why.read", { time: took, n, rate: rate(n / request.prompt_s) })];
}

function writing(t, request) {
  if (!request.generated_tokens) return [];
  const told = [t("mon.why.wrote", { n: request.generated_tokens, time: time(t, request.decode_s), rate: rate(request.tokens_per_second) })];
  const { gaps } = request;
  if (gaps) told.push(t("mon.why.gaps", { median: time(t, gaps.median), max: time(t, gaps.max) }));
  if (request.others_prompts_s > 0.05 * request.decode_s)
    told.push(t("mon.why.others", { time: time(t, request.others_prompts_s) }));
  return told;
}

function drafts(t, request) {
  if (!request.guessed_tokens) return [];
  return [t("mon.why.drafts", { right: request.guessed_right_tokens, n: request.guessed_tokens })];
}

function end(t, request) {
  return [t(`mon.end.${request.finish_reason ?? "running"}`, { error: request.error })];
}
