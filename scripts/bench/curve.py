"""Measure curves: prompt and generated tokens a second against the number of sequences."""

from __future__ import annotations

import argparse
import os
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from cllm.models import demo_path

from .busy import BusyProcesses
from .common import BenchError, Report, parse, parser, positive
from .report.comparison import REFERENCE
from .report.curve import KINDS, Point, draw, from_json, tables, to_json
from .serve import CONTENDERS, add_load, named, program_of
from .servers.contenders import Answer, Contender, Setup, Turn
from .servers.server import settle
from .workloads import SAMPLING, Crowd, Request, Workload, Writer

SERVERS = ("cllm", REFERENCE, "xllamacpp", "llama_cpp.server")
ONE_AT_A_TIME, ITS_SEQUENCES = "llama_cpp.server", (1, 8)
SEQUENCES = (1, 2, 4, 8, 16, 32, 64)
CONTEXT = 512  # tokens of each sequence
START = 6  # tokens of the prompts of decode: few, but no two alike
# Tokens of each prompt, and of each answer: at least, at most.
LENGTHS = {"prompt": (8, 256), "decode": (10, CONTEXT - 4 * START)}
PATIENCE = 10  # times the seconds that a point is expected to take, until it is cut
SHORTEST_CUT = 30.0  # seconds

EPILOG = f"""\
prompt: N prompts at once, one token each; all their tokens over the time to the last answer.
decode: N streams of prompts of {START} tokens; tokens a second while all of them run.

Servers take turns at each point. They have as many sequences as the largest N, of {CONTEXT} tokens,
and otherwise their defaults. A point should take --seconds on the idle machine: prompts have
{LENGTHS["prompt"][1]} tokens or as many as can be read in that time, at least {LENGTHS["prompt"][0]}; answers as many as can be generated.
{ONE_AT_A_TIME} works on one request at a time: it is measured at {" and ".join(map(str, ITS_SEQUENCES))} sequences only. Next to busy
processes every second N is measured. A point that takes {PATIENCE} times as long as expected, and
{SHORTEST_CUT:g} s, is cut: its rate is that of what had arrived, and the server's larger N are left out.

servers: {", ".join(SERVERS)}
Tables show medians of the rounds, in parentheses the median of the rounds' ratios to {REFERENCE}.
An answer that is incomplete or has not exactly the tokens asked for is a failure.

examples:
  python -m scripts.bench curve --quick
  python -m scripts.bench curve --model FILE FILE --llama-server PATH --json curve.json
  python -m scripts.bench curve --model FILE --llama-server PATH --busy 0 1 2 --rounds 1
  python -m scripts.bench curve --from a.json b.json --picture curve.svg
"""  # noqa: E501 - as it is printed


class Curve:
    """The measurement of one model: its servers, which take turns."""

    def __init__(self, model: Path, given: argparse.Namespace, run: str) -> None:
        """run: a name of this run, by which its rounds are told from those of others."""
        self._model, self._given, self._run = model, given, run
        self._writer = Writer(model)
        self._contenders: list[Contender] = []
        self._sizes: dict[tuple[int, str, int], tuple[int, float]] = {}  # see _size
        self._first: dict[str, float] = {}  # tokens a second at the fewest sequences, idle
        self._rates: dict[tuple[int, str], float] = {}  # of the last point
        self._ended: set[tuple[str, int, str]] = set()  # (server, busy, kind) after a cut
        self.failures: dict[str, int] = {}

    def start(self, program: Path | None, stack: ExitStack) -> None:
        """Start every server that there is, and find how fast they are."""
        given = self._given
        work = Workload("curve", "", self._empty, max(given.sequences), CONTEXT)
        setup = Setup(self._model, given.threads, program)
        for name in given.server:
            try:
                contender = CONTENDERS[name](setup, work)
            except BenchError as error:
                print(f"\nleft out: {error}", flush=True)
                continue
            stack.callback(contender.close)
            self._contenders.append(contender)
        for kind in KINDS:
            rates = [
                rate
                for contender in self._contenders
                if (rate := self._warm_up(contender, kind, given.sequences[0])) > 0
            ]
            self._first[kind] = statistics.median(rates) if rates else 1.0

    @staticmethod
    def _empty(writer: Writer, quick: bool) -> Crowd:
        return Crowd(0, [])

    def places(self, busy: int) -> list[tuple[str, int]]:
        """The kinds and numbers of sequences that are measured next to so many processes."""
        chosen = self._given.sequences[:: 2 if busy else 1]
        return [(kind, sequences) for kind in KINDS for sequences in chosen]

    def turns(self, kind: str, sequences: int, busy: int) -> list[Contender]:
        """The servers that are measured at a place."""
        return [
            contender
            for contender in self._contenders
            if (contender.name != ONE_AT_A_TIME or sequences in ITS_SEQUENCES)
            and (contender.name, busy, kind) not in self._ended
        ]

    def measure(self, number: int, busy: int, kind: str, sequences: int) -> list[Point]:
        """One round of one place of the curves: a point of each server."""
        length, limit = self._size(busy, kind, sequences)
        crowd, sizes = self._crowd(f"{busy} {kind} {sequences} {number}", kind, sequences, length)
        crowd = replace(crowd, limit=limit)
        points = []
        for contender in self.turns(kind, sequences, busy):
            before = contender.steps()
            with BusyProcesses(busy):
                turn = contender.ask(crowd, lambda: None)
            settle(contender.pid)
            after = contender.steps()
            steps = after.since(before) if after and before else None
            cut = any(answer.cut for answer in turn.answers)
            outside = steps.sampling + steps.other if steps else 0.0
            points.append(Point(
                self._run, number, self._model.stem, busy, kind, sequences, contender.name, length,
                rate_of(kind, turn, sizes), crowd.limit if cut else 0.0,
                outside / steps.count * 1e3 if steps and steps.count else None,
                outside / (outside + steps.decode) if steps and steps.count else None,
            ))  # fmt: skip
            self._judge(contender, turn)
            if cut:
                self._ended.add((contender.name, busy, kind))
                contender.restart()
                self._warm_up(contender, kind, 1)
        complete = [point.rate for point in points if not point.cut and point.rate]
        if complete:
            self._rates[busy, kind] = statistics.median(complete)
        return points

    def _size(self, busy: int, kind: str, sequences: int) -> tuple[int, float]:
        """The length of a place's prompts or answers, and the limit; the same in each round."""
        found = self._sizes.get((busy, kind, sequences))
        if found is None:
            low, high = LENGTHS[kind]
            rate = self._rates.get((busy, kind), self._first[kind])
            length = max(low, min(high, round(self._given.seconds * rate / sequences)))
            limit = max(SHORTEST_CUT, round(PATIENCE * length * sequences / rate))
            found = self._sizes[busy, kind, sequences] = length, limit
        return found

    def _judge(self, contender: Contender, turn: Turn) -> None:
        faults = [answer.fault for answer in turn.answers if answer.fault is not None]
        count = self.failures.setdefault(contender.name, 0)
        self.failures[contender.name] = count + len(faults)
        if faults:
            tqdm.write(f"{contender.name}: {len(faults)} failed: {faults[0][:300]}")

    def _warm_up(self, contender: Contender, kind: str, sequences: int) -> float:
        crowd, sizes = self._crowd("warm up", kind, sequences, 4 * LENGTHS[kind][0])
        turn = contender.ask(crowd, lambda: None)
        settle(contender.pid)
        return rate_of(kind, turn, sizes)

    def _crowd(self, seed: str, kind: str, sequences: int, length: int) -> tuple[Crowd, list[int]]:
        """Requests that all start at once, and the sizes of their prompts."""
        writer = self._writer.seed(seed)
        texts = [
            writer.text(length if kind == "prompt" else START) for _ in range(sequences)
        ]  # fmt: skip
        tokens = 1 if kind == "prompt" else length
        limit = max(SHORTEST_CUT, PATIENCE * self._given.seconds)
        crowd = Crowd(sequences, [[Request(text, tokens, SAMPLING)] for text in texts], limit=limit)
        return crowd, [writer.tokens(text) for text in texts]


def rate_of(kind: str, turn: Turn, sizes: Sequence[int]) -> float:
    """Tokens a second. sizes: of the prompts."""
    if kind == "decode":
        return steady(turn.answers) or turn.tokens / turn.seconds
    read = sum(
        size
        for size, answer in zip(sizes, turn.answers, strict=True)
        if answer.fault is None and not answer.cut
    )
    return read / turn.seconds


def steady(answers: Sequence[Answer]) -> float | None:
    """The sum of the streams' own rates while all of them run; None if they never all do.

    A stream that has had no text, or only one piece, has no rate.
    """
    good = [answer for answer in answers if answer.fault is None]
    if not good or not all(answer.times for answer in good):
        return None
    begin = max(answer.times[0] for answer in good)
    end = min(answer.times[-1] for answer in good)
    whole = 0.0
    for answer in good:
        times = answer.times[bisect_left(answer.times, begin) : bisect_right(answer.times, end)]
        if len(times) < 2 or times[0] == times[-1]:
            return None
        pieces = (len(times) - 1) / (times[-1] - times[0])
        whole += pieces * answer.tokens / len(answer.times)
    return whole


def _line(points: Sequence[Point]) -> str:
    first = points[0]
    rates = ", ".join(f"{p.server} {p.rate:.4g}{' (cut)' if p.cut else ''}" for p in points)
    return (
        f"{first.model}, round {first.round + 1}, {first.busy} busy, {first.kind} "
        f"{first.sequences} × {first.length}: {rates}"
    )


def _options() -> argparse.ArgumentParser:
    options = parser(__doc__ or "", EPILOG)
    options.add_argument(
        "--model", nargs="+", type=Path, metavar="FILE", help="GGUF files, one after the other; "
        "default: the built-in model",
    )  # fmt: skip
    options.add_argument(
        "--sequences", nargs="+", type=positive, default=SEQUENCES, metavar="N",
        help=f"default: {' '.join(map(str, SEQUENCES))}; on a GPU try up to 256",
    )  # fmt: skip
    options.add_argument(
        "--server", nargs="+", type=named("server", SERVERS), metavar="NAME",
        help="default: all that are available",
    )  # fmt: skip
    options.add_argument("--llama-server", metavar="PATH", help="the program")
    add_load(options)
    options.add_argument("--rounds", type=positive, default=3, metavar="N", help="default: 3")
    options.add_argument(
        "--seconds", type=float, default=2.0, metavar="S",
        help="that a point should take; default: 2",
    )  # fmt: skip
    options.add_argument(
        "--from", nargs="+", type=Path, default=[], dest="earlier", metavar="FILE.json",
        help="results of earlier runs, for the tables and the picture too; without --model "
        "nothing is measured",
    )  # fmt: skip
    options.add_argument("--picture", type=Path, metavar="FILE.svg", help="also draw the curves")
    return options


def main() -> None:
    """Parse the command line, measure each model, report."""
    given = parse(_options(), rounds=1, sequences=[1, 4], seconds=0.1)
    points = [point for path in given.earlier for point in from_json(path)]
    program = program_of(given.llama_server)
    given.server = given.server or [
        name for name in SERVERS if program or name != REFERENCE
    ]  # fmt: skip
    report = Report("Tokens a second against the number of sequences")
    failures: dict[str, int] = {}
    for model in given.model or ([] if given.earlier else [demo_path()]):
        with ExitStack() as stack:
            curve = Curve(model, given, f"{report.facts['date']}, process {os.getpid()}")
            curve.start(program, stack)
            measured = [
                (number, busy, kind, sequences)
                for number in range(given.rounds)
                for busy in given.busy
                for kind, sequences in curve.places(busy)
            ]
            for place in tqdm(measured, desc=model.stem, unit="point", disable=None):
                found = curve.measure(*place)
                if found:
                    tqdm.write(_line(found))
                    points += found
                # After every point, so that a run that is stopped leaves what it has measured.
                report.data["points"] = to_json(points)
                report.write(given.json)
            failures |= {
                name: failures.get(name, 0) + count for name, count in curve.failures.items()
            }
    tables(report, points)
    for name, count in failures.items():
        if count:
            report.target(f"no failures of {name}", count, met=False)
    report.data["points"] = to_json(points)
    report.write(given.json)
    if given.picture is not None:
        draw(points, given.picture)
