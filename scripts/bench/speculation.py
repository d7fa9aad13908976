"""Speculative decoding on real text: two engines, with drafts and without, in turns.

Each kind of request is generated greedily and sampled, by one stream and by several. A number below
1 in "speed" says that drafts cost time. "CPU" is the processor time of a token, which other
programs disturb less. Rejected rows are computed in vain: per 100 generated tokens.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from cllm.api.chat.chat_template import CHATML, ChatTemplate
from cllm.engine import Constraint, Engine, SamplingParams

from .common import BenchError, Report, parse, parser, positive
from .real_texts import KINDS, Kind, answers_schema
from .workloads import GREEDY, SAMPLING

CTX_SIZE = 1024
WAYS: dict[str, dict[str, Any]] = {"greedy": GREEDY, "sampled": SAMPLING}
WITH, WITHOUT = "with", "without"


@dataclass(slots=True)
class Turn:
    """What one engine made of a kind's requests."""

    tokens: int
    seconds: float
    cpu_s: float
    steps: int  # of each sequence
    drafted: int
    accepted: int
    texts: list[str]


@dataclass(slots=True)
class Case:
    """A kind of request, a way to sample and a number of streams, with the turns of each engine."""

    kind: Kind
    way: str
    streams: int
    turns: dict[str, list[Turn]] = field(default_factory=lambda: {WITH: [], WITHOUT: []})

    def run(self, engine: Engine, template: ChatTemplate, tokens: int, seed: int) -> Turn:
        """Generate the answers, `streams` at a time."""
        requests = self.kind.requests * max(1, self.streams // len(self.kind.requests))
        constraint = self.kind.schema and Constraint("json_schema", self.kind.schema)
        prompts = [
            template.prompt(engine, [{"role": "user", "content": request}]).tokens
            for request in requests
        ]
        before, began, cpu_began = engine.stats(), time.perf_counter(), time.process_time()
        texts, made = [], 0
        for first in range(0, len(prompts), self.streams):
            running = [
                engine.submit(
                    prompt,
                    SamplingParams(
                        max_tokens=tokens, seed=seed + first + i, constraint=constraint or None,
                        **WAYS[self.way],
                    ),
                )
                for i, prompt in enumerate(prompts[first : first + self.streams])
            ]  # fmt: skip
            for generation in running:
                done = generation.result()
                made += done.usage.completion_tokens
                texts.append(done.text)
                whole = self.kind.schema is not None and done.finish_reason == "stop"
                if whole and not answers_schema(done.text):
                    raise BenchError(f"{done.text!r} does not have the shape of its schema")
        seconds, cpu_s, after = time.perf_counter(), time.process_time(), engine.stats()
        return Turn(
            made,
            seconds - began,
            cpu_s - cpu_began,
            after.decoded_sequences - before.decoded_sequences,
            after.guessed_tokens - before.guessed_tokens,
            after.guessed_right - before.guessed_right,
            texts,
        )

    def row(self) -> dict[str, Any]:
        """The medians of the ratios of the turns, and counts of all of them."""
        pairs = list(zip(self.turns[WITH], self.turns[WITHOUT], strict=True))
        tokens = sum(on.tokens for on, _ in pairs)
        drafted = sum(on.drafted for on, _ in pairs)
        accepted = sum(on.accepted for on, _ in pairs)
        texts = [same for on, off in pairs for same in zip(on.texts, off.texts, strict=True)]
        return {
            "kind": self.kind.name,
            "sampling": self.way,
            "tokens/s": median(on.tokens / on.seconds for on, _ in pairs),
            "speed": self.speed,
            "CPU": self.cpu,
            "drafted": drafted,
            "accepted %": 100 * accepted / drafted if drafted else "",
            "tokens a step": tokens / sum(on.steps for on, _ in pairs),
            "rejected rows": 100 * (drafted - accepted) / tokens,
            "equal texts %": 100 * sum(on == off for on, off in texts) / len(texts),
        }

    @property
    def speed(self) -> float:
        """Tokens per second with drafts, times those without."""
        pairs = zip(self.turns[WITH], self.turns[WITHOUT], strict=True)
        return median(on.tokens / on.seconds / (off.tokens / off.seconds) for on, off in pairs)

    @property
    def cpu(self) -> float:
        """Processor time of a token with drafts, times that without."""
        pairs = zip(self.turns[WITH], self.turns[WITHOUT], strict=True)
        return median(on.cpu_s / on.tokens / (off.cpu_s / off.tokens) for on, off in pairs)


def main() -> None:
    """Measure and print a table for each number of streams."""
    options = parser(__doc__ or "", f"kinds: {', '.join(KINDS)}")
    options.add_argument("--model", type=Path, required=True, metavar="GGUF")
    options.add_argument("--model-draft", type=Path, metavar="GGUF", help="with drafts, use it too")
    options.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    options.add_argument("--way", nargs="+", choices=WAYS, default=list(WAYS))
    options.add_argument(
        "--streams", nargs="+", type=positive, default=[1, 8], metavar="N", help="default: 1 8"
    )
    options.add_argument("--tokens", type=positive, default=160, help="maximum of an answer")
    options.add_argument("--rounds", type=positive, default=3)
    options.add_argument("--threads", type=positive, help="default: the engine's")
    given = parse(options, tokens=24, rounds=1, streams=[2])
    report = Report("Speculation on real text")
    for streams in given.streams:
        cases = measured(given, streams)
        rows = [case.row() for case in cases]
        heading = f"{_counted(streams, 'stream')}, {_counted(given.rounds, 'round')}"
        report.table(heading, rows)
        report.data[f"texts, {streams}"] = {
            f"{case.kind.name}, {case.way}": case.turns[WITH][0].texts for case in cases
        }
    report.write(given.json)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''}"


def measured(given: argparse.Namespace, streams: int) -> Sequence[Case]:
    """All cases of a number of streams, each round in turns."""
    cases = [
        Case(KINDS[kind], way, streams)
        for kind, way in product(dict.fromkeys(given.kind), dict.fromkeys(given.way))
    ]
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(
                Engine.load(
                    given.model, parallel=streams, ctx_size=CTX_SIZE, threads=given.threads, **more
                )
            )
            for name, more in _configs(given.model_draft)
        }
        for engine in engines.values():  # measure plain steps, on which drafts depend
            engine.generate("The", max_tokens=8, ignore_eos=True)
        engine = engines[WITH]
        info, controls = engine.info(), engine.control_texts()
        template = ChatTemplate(
            info.chat_template or CHATML, info.bos_text, info.eos_text, controls
        )
        with tqdm(total=given.rounds * len(cases) * 2, leave=False, disable=None) as bar:
            for number, case in product(range(given.rounds), cases):
                order = [WITH, WITHOUT] if number % 2 else [WITHOUT, WITH]
                for name in order:
                    turn = case.run(engines[name], template, given.tokens, 1000 * number)
                    case.turns[name].append(turn)
                    bar.update()
    return cases


def _configs(draft: Path | None) -> Iterator[tuple[str, dict[str, Any]]]:
    yield WITHOUT, {"draft_max": 0}
    yield WITH, {"model_draft": str(draft)} if draft else {}
