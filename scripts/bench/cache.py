"""Measure what the prefix cache and the pacing of prompts gain: the engine alone."""

from __future__ import annotations

import argparse
import random
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from cllm.engine import Engine, Generation, SamplingParams
from cllm.models import demo_path

from .common import Report, parse, parser, percentile

EPILOG = """\
examples:
  python -m scripts.bench cache --model FILE
  python -m scripts.bench cache --quick
"""
PARALLEL = 8


class Prompts:
    """Tokens that no two prompts share by chance."""

    def __init__(self, vocabulary: int) -> None:
        self._dice = random.Random(0)
        self._tokens = range(vocabulary // 4, vocabulary)

    def take(self, count: int) -> list[int]:
        return self._dice.choices(self._tokens, k=count)


class Watched:
    """A generation and the moments of its tokens."""

    def __init__(self, engine: Engine, prompt: list[int], tokens: int) -> None:
        self.began = time.perf_counter()
        self.times: list[float] = []
        self._count = 0
        self._submitted, self._told = threading.Lock(), threading.Event()
        params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        with self._submitted:  # the first token may come before submit() returns
            self.generation: Generation = engine.submit(prompt, params, on_update=self._note)

    def _note(self) -> None:
        with self._submitted:
            generation = self.generation
        count = generation.usage.completion_tokens
        if count > self._count:
            self._count = count
            self.times.append(time.perf_counter())
        if generation.done:
            self._told.set()

    def finish(self) -> None:
        """Wait for the result, and for the last call of `_note`, which may come after it."""
        self.generation.result()
        self._told.wait()

    @property
    def first(self) -> float:
        return self.times[0] - self.began


def together(options: argparse.Namespace, size: int) -> list[dict[str, Any]]:
    """Eight prompts at once: with a long common prefix, and without."""
    rows = []
    for shared in (True, False):
        with load(options, size) as engine:
            prompts = Prompts(engine.info().vocab_size)
            system = prompts.take(size)
            began = time.perf_counter()
            asked = [
                Watched(engine, (system if shared else prompts.take(size)) + prompts.take(24), 1)
                for _ in range(PARALLEL)
            ]
            for one in asked:
                one.finish()
            took = time.perf_counter() - began
            stats = engine.stats()
            rows.append(
                {
                    "prompts": "a common prefix" if shared else "nothing in common",
                    "seconds": took,
                    "evaluated": stats.prompt_tokens - stats.cached_tokens,
                    "cached": stats.cached_tokens,
                }
            )
    return rows


def returning(options: argparse.Namespace, size: int) -> list[dict[str, Any]]:
    """Conversations that return after their slots were given to others."""
    rows = []
    for cache_ram in (0, None):
        with load(options, size, parallel=1, cache_ram=cache_ram) as engine:
            prompts = Prompts(engine.info().vocab_size)
            talks = [prompts.take(size) for _ in range(3)]
            for talk in talks:
                Watched(engine, talk, 1).finish()
            back = []
            for talk in talks:
                one = Watched(engine, talk + prompts.take(24), 1)
                one.finish()
                back.append(one)
            stats = engine.stats()
            rows.append(
                {
                    "--cache-ram": "0" if cache_ram == 0 else "auto",
                    "first token s": percentile([one.first for one in back], 50),
                    "restored": stats.restored_tokens,
                    "MiB held": stats.cache_ram_bytes / 2**20,
                }
            )
    return rows


def next_to_streams(options: argparse.Namespace, size: int) -> list[dict[str, Any]]:
    """Six streams while a long prompt and, after it, a short one arrive."""
    rows = []
    for max_itl in (60_000, None, 250):
        with load(options, 2 * size, max_itl_ms=max_itl) as engine:
            prompts = Prompts(engine.info().vocab_size)
            tokens = 20 if options.quick else 80
            streams = [Watched(engine, prompts.take(32), tokens) for _ in range(PARALLEL - 2)]
            while min(len(stream.times) for stream in streams) < tokens // 8:
                time.sleep(0.05)
            long = Watched(engine, prompts.take(2 * size), 1)
            short = Watched(engine, prompts.take(32), 1)
            for one in (*streams, long, short):
                one.finish()
            gaps = [b - a for stream in streams for a, b in pairwise(stream.times)]
            rows.append(
                {
                    "--max-itl-ms": "auto" if max_itl is None else max_itl,
                    "gap p50 ms": 1000 * percentile(gaps, 50),
                    "gap p99 ms": 1000 * percentile(gaps, 99),
                    "long prompt s": long.first,
                    "short prompt s": short.first,
                }
            )
    return rows


def load(options: argparse.Namespace, size: int, parallel: int = PARALLEL, **more: Any) -> Engine:
    """An engine whose sequences hold `size` tokens and 256 more."""
    context = size + 256
    return Engine.load(options.model or demo_path(), parallel=parallel, ctx_size=context, **more)


def main() -> None:
    """One table for each mechanism."""
    options = parser(__doc__ or "", EPILOG)
    options.add_argument("--model", type=Path, metavar="FILE", help="default: the built-in model")
    asked = parse(options)
    size = 200 if asked.quick else 1000
    report = Report("Prefix cache and pacing")
    report.facts["model"] = (asked.model or demo_path()).name
    report.table(f"{PARALLEL} prompts of {size} tokens at once", together(asked, size))
    report.table(f"Conversations of {size} tokens that return", returning(asked, size))
    report.table(
        f"A prompt of {2 * size} and one of 32 tokens next to {PARALLEL - 2} streams",
        next_to_streams(asked, size),
    )
    report.write(asked.json)
