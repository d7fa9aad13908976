"""Measure the engine thread's processor time between two decodes while streams wait."""

from __future__ import annotations

import argparse
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cllm.engine import Engine, SamplingParams
from cllm.engine.scheduling.scheduler import Scheduler
from cllm.models import demo_path

from .cache import Prompts
from .common import Report, parse, parser, percentile

EPILOG = """\
Each client sends its next request when the last one has ended; llama_decode is the real one. Only
gaps in which a stream waits count: the last step generated a token of a sequence that goes on.

examples:
  python -m scripts.bench gaps
  python -m scripts.bench gaps --model FILE --requests 96
"""
CLIENTS = 64
PARALLEL = 16
TOKENS = 24
_MS = 1000.0


class Meter:
    """Adds up processor time of the engine thread, by part, from one decode to the next."""

    def __init__(self, scheduler: Any) -> None:
        self.gaps: list[dict[str, float]] = []
        self._gap: dict[str, float] = {}
        self._inner = 0.0  # of parts within the part that is being measured
        self._began: float | None = None
        self._scheduler = scheduler
        parts = (
            (scheduler._admission, "admit", "admit"),
            (scheduler._placer, "_save", "save"),
            (scheduler, "_plan", "plan"),
            (scheduler, "_sample", "choose"),
            (scheduler, "_publish", "publish"),
            (scheduler, "_notify", "notify"),
        )
        for owner, name, part in parts:
            setattr(owner, name, self._timed(getattr(owner, name), part))
        scheduler._context.decode = self._around(scheduler._context.decode)

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            if threading.current_thread().name != "cllm-engine":
                return function(*arguments)
            outer, self._inner = self._inner, 0.0
            began = time.thread_time()
            try:
                return function(*arguments)
            finally:
                took = time.thread_time() - began
                self._gap[part] = self._gap.get(part, 0.0) + took - self._inner
                self._inner = outer + took

        return timed

    def _around(self, decode: Callable[..., int]) -> Callable[..., int]:
        def decoded(*arguments: Any) -> int:
            if self._began is not None:
                total = time.thread_time() - self._began
                if any(sequence.decoding for sequence in self._scheduler._running):
                    rest = total - sum(self._gap.values())
                    self.gaps.append({**self._gap, "rest": rest, "all": total})
            try:
                return decode(*arguments)
            finally:
                self._gap, self._inner, self._began = {}, 0.0, time.thread_time()

        return decoded


def run(options: argparse.Namespace, size: int) -> Meter:
    """Serve all requests of the clients; each has a prompt of its own."""
    params = SamplingParams(max_tokens=TOKENS, seed=1, ignore_eos=True)
    model, threads = options.model or demo_path(), options.threads
    with Engine.load(model, parallel=PARALLEL, ctx_size=size + 100, threads=threads) as engine:
        maker = Prompts(engine.info().vocab_size)
        prompts = deque(maker.take(size) for _ in range(options.requests))
        scheduler = engine._runner
        assert isinstance(scheduler, Scheduler)
        meter = Meter(scheduler)

        def client() -> None:
            while True:
                try:
                    prompt = prompts.popleft()
                except IndexError:
                    return
                engine.submit(prompt, params).result()

        clients = [threading.Thread(target=client, name=f"client-{n}") for n in range(CLIENTS)]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
    return meter


def table(meter: Meter) -> list[dict[str, Any]]:
    """One row for the whole gap and for each part of it: percentiles in ms, share in percent."""
    whole = sum(gap["all"] for gap in meter.gaps)
    rows = []
    for part in ("all", "admit", "save", "plan", "choose", "publish", "notify", "rest"):
        times = [_MS * gap.get(part, 0.0) for gap in meter.gaps]
        percents = {f"p{p} ms": percentile(times, p) for p in (50, 90, 99)}
        share = 100 * sum(times) / _MS / whole if whole else 0.0
        rows.append({"part": part, **percents, "max ms": max(times, default=0.0), "share %": share})
    return rows


def main() -> None:
    """A table for short and for long prompts."""
    options = parser(__doc__ or "", EPILOG)
    options.add_argument("--model", type=Path, metavar="FILE", help="default: the built-in model")
    options.add_argument("--threads", type=int, default=1, metavar="N", help="default: 1")
    options.add_argument("--requests", type=int, default=192, metavar="N", help="default: 192")
    asked = parse(options, requests=CLIENTS)
    report = Report("Processor time of the engine thread between two decodes")
    report.facts["model"] = (asked.model or demo_path()).name
    for size in (40, 400):
        meter = run(asked, size)
        title = f"{CLIENTS} clients, {PARALLEL} sequences, {size} tokens, {len(meter.gaps)} gaps"
        report.table(title, table(meter))
    report.write(asked.json)
