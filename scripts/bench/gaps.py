"""Measure the engine thread's own time between two decodes while streams wait, by part."""

from __future__ import annotations

import argparse
import gc
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from cllm.engine import Engine, Generation, SamplingParams
from cllm.engine.scheduling.scheduler import Scheduler
from cllm.models import demo_path

from .cache import Prompts
from .common import Report, parse, parser, percentile

EPILOG = """\
Each client sends its next request when the last one has ended; llama_decode is the real one. Only
gaps in which a stream waits count: the last step generated a token of a sequence that goes on.
Processor time is what the work costs. Wall time includes waits for a core, for the interpreter lock
and ("wait") for the threads that work during llama_decode. "collect" is the garbage collector.

examples:
  python -m scripts.bench gaps
  python -m scripts.bench gaps --model FILE --requests 96
"""
CLIENTS = 64
PARALLEL = 16
TOKENS = 24
_MS = 1000.0


class Times(NamedTuple):
    """Seconds of the engine thread."""

    processor: float = 0.0
    wall: float = 0.0

    @staticmethod
    def now() -> Times:
        """Now, to take a difference of."""
        return Times(time.thread_time(), time.perf_counter())

    def plus(self, other: Times) -> Times:
        """The sum."""
        return Times(self.processor + other.processor, self.wall + other.wall)

    def minus(self, other: Times) -> Times:
        """The difference."""
        return Times(self.processor - other.processor, self.wall - other.wall)


class Gap(NamedTuple):
    """One gap: its time, that of its parts, and how often each part was entered."""

    whole: Times
    parts: dict[str, Times]
    calls: Counter[str]


class Meter:
    """Adds up the times of the engine thread, by part, from one decode to the next."""

    def __init__(self, scheduler: Any) -> None:
        self.gaps: list[Gap] = []
        self._parts: dict[str, Times] = defaultdict(Times)
        self._calls: Counter[str] = Counter()
        self._inner = [Times()]  # of parts within the one that is being measured, and those around
        self._began: Times | None = None
        self._gc_began: Times | None = None
        self._scheduler = scheduler
        parts = (
            (scheduler, "_take_messages", "take"),
            (scheduler._admission, "catch_up", "admit"),
            (scheduler._admission, "admit", "admit"),
            (scheduler._inbox, "begun", "begin"),
            (scheduler._placer, "_save", "save"),
            (scheduler, "_plan", "plan"),
            (scheduler._threads, "prepare", "learn"),
            (scheduler._threads, "learn", "learn"),
            (scheduler._planner, "learn", "learn"),
            (scheduler._overlap, "start", "start"),
            (scheduler._overlap, "wait", "wait"),
            (scheduler._masks, "wait", "wait"),
            (scheduler, "_sample", "choose"),
            (scheduler, "_publish", "publish"),
            (scheduler, "_finish", "end"),
            (scheduler, "_notify", "notify"),
        )
        self.names = [*dict.fromkeys(part for _, _, part in parts), "collect", "rest"]
        for owner, name, part in parts:
            setattr(owner, name, self._timed(getattr(owner, name), part))
        scheduler._context.decode = self._around(scheduler._context.decode)

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            if not _on_engine_thread():
                return function(*arguments)
            self._inner.append(Times())
            began = Times.now()
            try:
                return function(*arguments)
            finally:
                self._leave(part, began)

        return timed

    def _leave(self, part: str, began: Times) -> None:
        took = Times.now().minus(began)
        self._parts[part] = self._parts[part].plus(took.minus(self._inner.pop()))
        self._calls[part] += 1
        self._inner[-1] = self._inner[-1].plus(took)

    def collected(self, phase: str, info: dict[str, int]) -> None:
        """A callback of the garbage collector."""
        if not _on_engine_thread():
            return
        if phase == "start":
            self._inner.append(Times())
            self._gc_began = Times.now()
        elif self._gc_began is not None:
            self._leave("collect", self._gc_began)
            self._gc_began = None

    def _around(self, decode: Callable[..., int]) -> Callable[..., int]:
        def decoded(*arguments: Any) -> int:
            if self._began is not None:
                whole = Times.now().minus(self._began)
                if any(sequence.decoding for sequence in self._scheduler._running):
                    parts = dict(self._parts)
                    parts["rest"] = whole.minus(self._inner[0])
                    self.gaps.append(Gap(whole, parts, self._calls))
            try:
                return decode(*arguments)
            finally:
                self._parts, self._calls = defaultdict(Times), Counter()
                self._inner = [Times()]
                self._began = Times.now()

        return decoded


def _on_engine_thread() -> bool:
    return threading.current_thread().name == "cllm-engine"


def run(options: argparse.Namespace, size: int) -> Meter:
    """Serve all requests of the clients; each has a prompt of its own.

    As in the server, callbacks tell of the ends, and another thread submits the next requests.
    """
    params = SamplingParams(max_tokens=TOKENS, seed=1, ignore_eos=True)
    model, threads = options.model or demo_path(), options.threads
    with Engine.load(model, parallel=PARALLEL, ctx_size=size + 100, threads=threads) as engine:
        maker = Prompts(engine.info().vocab_size)
        prompts = [maker.take(size) for _ in range(options.requests)]
        scheduler = engine._runner
        assert isinstance(scheduler, Scheduler)
        meter = Meter(scheduler)

        changed: SimpleQueue[list[Generation]] = SimpleQueue()

        def submit(prompt: list[int]) -> None:
            made: list[Generation] = []

            def told() -> None:
                if not made or made[0].done:
                    changed.put(made)

            made.append(engine.submit(prompt, params, on_update=told))

        gc.callbacks.append(meter.collected)
        try:
            for prompt in prompts[:CLIENTS]:
                submit(prompt)
            left = len(prompts)
            while left:
                made = changed.get()
                if made and made[0].done:
                    made.pop().result()
                    if left > CLIENTS:
                        submit(prompts[-(left - CLIENTS)])
                    left -= 1
        finally:
            gc.callbacks.remove(meter.collected)
    return meter


def table(meter: Meter) -> list[dict[str, Any]]:
    """Percentiles in ms of the whole gap and of each part of it; share in percent."""
    gaps = meter.gaps
    total = sum(gap.whole.processor for gap in gaps)
    rows = [("all", [g.whole.processor for g in gaps]), ("wall", [g.whole.wall for g in gaps])]
    rows += [
        (part, [gap.parts.get(part, Times()).processor for gap in gaps]) for part in meter.names
    ]
    return [
        {
            "part": part,
            **{f"p{p} ms": _MS * percentile(times, p) for p in (50, 90, 99)},
            "max ms": _MS * max(times, default=0.0),
            "share %": 100 * sum(times) / total if total else 0.0,
        }
        for part, times in rows
    ]


def slowest(meter: Meter) -> list[dict[str, Any]]:
    """Means in ms, of all gaps and of the slowest tenth and hundredth."""
    order = sorted(meter.gaps, key=lambda gap: gap.whole.processor)
    groups = {"": order}
    groups |= {f", slowest {n} %": order[len(order) * (100 - n) // 100 :] for n in (10, 1)}
    rows = []
    for part in ("all", *meter.names):
        row: dict[str, Any] = {"part": part}
        for name, gaps in groups.items():
            times = [gap.whole if part == "all" else gap.parts.get(part, Times()) for gap in gaps]
            total = Times(sum(each.processor for each in times), sum(each.wall for each in times))
            row[f"processor{name}"] = _MS * total.processor / max(1, len(gaps))
            row[f"wall{name}"] = _MS * total.wall / max(1, len(gaps))
        rows.append(row)
    return rows


def by_crowd(meter: Meter) -> list[dict[str, Any]]:
    """Percentiles in ms of gaps with few and many requests that begin or end."""
    groups: dict[str, list[float]] = {"0": [], "1 to 4": [], "5 or more": []}
    for gap in meter.gaps:
        count = gap.calls["begin"] + gap.calls["end"]
        name = "0" if not count else "1 to 4" if count < 5 else "5 or more"
        groups[name].append(gap.whole.processor)
    return [
        {
            "begin or end": name,
            "gaps": len(times),
            **{f"p{p} ms": _MS * percentile(times, p) for p in (50, 90, 99)},
        }
        for name, times in groups.items()
    ]


def main() -> None:
    """Tables for short and for long prompts."""
    options = parser(__doc__ or "", EPILOG)
    options.add_argument("--model", type=Path, metavar="FILE", help="default: the built-in model")
    options.add_argument("--threads", type=int, default=1, metavar="N", help="default: 1")
    options.add_argument("--requests", type=int, default=192, metavar="N", help="default: 192")
    asked = parse(options, requests=CLIENTS)
    report = Report("The engine thread's own time between two decodes")
    report.facts["model"] = (asked.model or demo_path()).name
    for size in (40, 400):
        meter = run(asked, size)
        title = f"{CLIENTS} clients, {PARALLEL} sequences, {size} tokens, {len(meter.gaps)} gaps"
        report.table(f"Processor time, {title}", table(meter))
        report.table(f"Means in ms, {title}", slowest(meter))
        report.table(f"By requests that begin or end, {title}", by_crowd(meter))
    report.write(asked.json)
