// Earlier runs of the benchmark, newest first, in this browser.

const STORED = "cllm-benchmarks";
const MOST = 50;

export function kept() {
  try {
    return JSON.parse(localStorage.getItem(STORED) ?? "[]");
  } catch {
    return [];
  }
}

// Adds a run; returns it with its number and time.
export function keep(run) {
  const runs = kept();
  const made = { id: (runs[0]?.id ?? 0) + 1, time: Date.now(), ...run };
  localStorage.setItem(STORED, JSON.stringify([made, ...runs].slice(0, MOST)));
  return made;
}

export function remove(id) {
  localStorage.setItem(STORED, JSON.stringify(kept().filter((run) => run.id !== id)));
}
