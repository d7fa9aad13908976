"""Random requests, whose texts next to others are compared with those of the same alone.

    python -m tests.engine.random_requests [--layout NAME] [--seed N] [--count N]

runs what test_differential.py runs; a failing test says with which arguments.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cllm.engine import Constraint, Engine, Generation, SamplingParams
from cllm.engine.scheduling import passes
from tests.engine.engine_helpers import PRECISE, WAIT, assume_costs
from tests.engine.engine_models import write_tiny
from tests.random_model import random_path

CTX_SIZE = 192
_PLAIN: Mapping[str, Any] = {
    "parallel": 4,
    "ctx_size": CTX_SIZE,
    "threads": 1,
    "max_queue": 10_000,
    **PRECISE,
}

LAYOUTS: Mapping[str, Mapping[str, Any]] = {
    "split": {},
    "unified": {"kv_unified": True},
    "crowded": {"kv_unified": True, "kv_cells": 256, "cache_ram": 2 << 20},
    "small-batches": {"parallel": 7, "batch_size": 24, "ubatch_size": 16, "max_itl_ms": 1},
    "shifted": {"context_shift": True, "ctx_size": 64},
    "shifted-unified": {"context_shift": True, "ctx_size": 64, "kv_unified": True},
    "draft-model": {"model_draft": "draft", "parallel": 3},
}
"""Engines, by their differences from the one that computes a request alone."""

_CONSTRAINTS = (
    Constraint("regex", "(river|letter|town) (runs|says) [a-z]{1,9}\\."),
    Constraint("regex", '("the old town",){1,4}'),
    Constraint("json_object"),
    Constraint("json_schema", {
        "type": "object",
        "properties": {"name": {"enum": ["river", "town"]}, "n": {"type": "integer"}},
        "required": ["name", "n"],
    }),
)  # fmt: skip
_STOPS = ((" the",), ("e", "town"), (" of and", "in"))


@dataclass(frozen=True, slots=True)
class Asked:
    """A request. cancelled: it is cancelled while it may run. slot: the only one to run in."""

    prompt: list[int]
    params: SamplingParams
    cancelled: bool
    slot: int | None
    tenant: str


def requests(count: int, seed: int, longest: int, n_slots: int, **fields: Any) -> list[Asked]:
    """Random requests with common prefixes. longest: tokens of a prompt. fields: of all params."""
    rng = random.Random(seed)
    prefixes = [_text(rng, rng.randint(longest // 8, longest * 3 // 4)) for _ in range(5)]
    return [_request(rng, prefixes, longest, n_slots, fields) for _ in range(count)]


def _text(rng: random.Random, length: int) -> list[int]:
    """Tokens; of some texts the second half repeats the first, so that drafts are accepted."""
    text = [rng.randrange(5, 400) for _ in range(length)]
    phrase = text[: rng.randint(3, 9)]
    return text if rng.random() < 0.5 else (phrase * length)[:length]


def _request(
    rng: random.Random,
    prefixes: list[list[int]],
    longest: int,
    n_slots: int,
    fields: Mapping[str, Any],
) -> Asked:
    prefix = rng.choice(prefixes)
    cut = len(prefix) if rng.random() < 0.6 else rng.randint(0, len(prefix))
    prompt = (prefix[:cut] + _text(rng, rng.randint(1, 12)))[:longest]
    given: dict[str, Any] = {"max_tokens": rng.choice((1, 3, 5, 8, 12, 20, 40)), **fields}
    given["seed"] = rng.randrange(2**32)
    given["temperature"] = rng.choice((0.0, 0.0, 0.7, 1.3))
    given["ignore_eos"] = rng.random() < 0.8
    match rng.randrange(9):
        case 0:
            given["stop"] = rng.choice(_STOPS)
        case 1:
            given["repetition_penalty"], given["frequency_penalty"] = 1.2, 0.3
        case 2:
            given["constraint"], given["ignore_eos"] = rng.choice(_CONSTRAINTS), False
        case 3:
            given["logprobs"] = 2
        case 4:
            given["logit_bias"] = dict.fromkeys(rng.sample(range(5, 400), 2), 12.0)
        case 5:
            given["mirostat"] = 2
        case 6:
            given["top_k"], given["min_p"], given["dry_multiplier"] = 0, 0.0, 0.8
    if rng.random() < 0.2:
        given["n_keep"], given["n_discard"] = rng.randint(-1, 12), rng.randint(0, 30)
    return Asked(
        prompt,
        SamplingParams.of(**given),
        rng.random() < 0.08,
        rng.randrange(n_slots) if rng.random() < 0.05 else None,
        rng.choice("aab"),
    )


def alone_and_together(
    one: Engine, engine: Engine, count: int, seed: int, *, noise: int = 0, **fields: Any
) -> list[str]:
    """Send random requests to both engines; describe each whose results differ.

    one: has a single slot, and computes each request by itself. noise: further requests next to
    them, without `fields`, of which nothing is expected.
    """
    n_slots = engine.info().context.parallel
    longest = engine.info().context.ctx_size * 3 // 4
    asked = requests(count, seed, longest, n_slots, **fields)
    others = deque(requests(noise, seed + 1, longest, n_slots))
    together = _together(engine, asked, others, random.Random(seed))
    expected = [one.submit(each.prompt, each.params, fresh=True) for each in asked]
    differing = []
    for number, (each, alone, found) in enumerate(zip(asked, expected, together, strict=True)):
        whole, part = _result(alone), _result(found)
        same = whole[0].startswith(part[0]) if part[1] == "cancelled" else whole == part
        if not same:
            differing.append(f"request {number} (seed {seed}): {each}\nalone: {whole}\nnow: {part}")
    return differing


def _together(
    engine: Engine, asked: list[Asked], others: deque[Asked], rng: random.Random
) -> list[Generation]:
    """Submit requests so that a random number of them waits and runs at any time."""
    found, pending = list[Generation](), deque[Generation]()

    def submit(each: Asked) -> Generation:
        generation = engine.submit(each.prompt, each.params, slot=each.slot, tenant=each.tenant)
        pending.append(generation)
        return generation

    for each in asked:
        if others:
            submit(others.popleft())
        found.append(submit(each))
        if each.cancelled:
            if rng.random() < 0.5:
                pending.popleft().wait(WAIT)
            found[-1].cancel()
        while len(pending) > rng.choice((1, 6, 12, 30)):
            pending.popleft().wait(WAIT)
    return found


def _result(generation: Generation) -> tuple[str, str, int, int]:
    done = generation.result(WAIT)
    usage = done.usage
    return done.text, done.finish_reason, usage.prompt_tokens, usage.completion_tokens


def write_models(folder: Path) -> Path:
    """The tiny model, which is returned, and a draft model that is sometimes right."""
    write_tiny(random_path(), folder / "tiny.gguf")
    write_tiny(random_path(), folder / "draft", layers=1)
    return folder / "tiny.gguf"


def run(path: Path, layout: str, count: int, seed: int) -> tuple[list[str], Engine]:
    """Compare requests in a layout; the engine is closed, its statistics are not lost."""
    config: dict[str, Any] = {**_PLAIN, **LAYOUTS[layout]}
    if "model_draft" in config:
        config["model_draft"] = str(path.parent / config["model_draft"])
    same = ("ctx_size", "context_shift")
    shifts: dict[str, Any] = {name: config[name] for name in same if name in config}
    alone = {**_PLAIN, **shifts, "parallel": 1, "draft_max": 0, "cache_ram": 0}
    with (
        pytest.MonkeyPatch.context() as patched,
        Engine.load(path, **alone) as one,
        Engine.load(path, **config) as engine,
    ):
        assume_costs(patched)
        # Steps as with flash attention, whose sums would differ by more; in small tiles.
        planner = engine._scheduler._planner
        planner._tiles = planner._split_cache
        patched.setattr(passes, "TILE", 8)
        return alone_and_together(one, engine, count, seed), engine


def main() -> int:
    """Compare, and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layout", choices=LAYOUTS, help="one of them; all without")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=300)
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(prefix="cllm-random-") as folder:
        path = write_models(Path(folder))
        for layout in [options.layout] if options.layout else LAYOUTS:
            differing, engine = run(path, layout, options.count, options.seed)
            stats = engine.stats()
            print(
                f"{layout}: {len(differing)} of {options.count} differ; "
                f"{stats.completion_tokens} tokens, {stats.cached_tokens} cached, "
                f"{stats.guessed_right} of {stats.guessed_tokens} guesses right, "
                f"{stats.preemptions} preemptions, {stats.pauses} pauses, "
                f"{stats.restored_prefixes} restored, {stats.context_shifts} shifts",
                *differing,
                sep="\n",
            )
            failed = failed or bool(differing)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
