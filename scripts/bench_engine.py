#!/usr/bin/env python3
"""Measure generation: the seed's workload over HTTP and in the engine, and where a step goes."""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from _bench import BenchError, Report, parse, parser, percentile, positive, run
from _contenders import (
    Contender,
    EngineContender,
    Steps,
    Workload,
    cllm,
    llama_cpp_server,
    llama_server,
)
from tqdm import tqdm

from cllm.models import demo_path

PROMPT = "人工智能是计算机科学的一个分支"
PROMPT_TOKENS = 32
EPILOG = """\
The workload is the seed's: 40 requests, 8 at a time, 50 tokens each, a prompt of about 32 tokens
(the sentence repeated). Contenders take turns for several rounds; read the ratios. Every contender
gets the same model, threads, sequences and sampling.

examples:
  python scripts/bench_engine.py --model qwen3-0.6b-q4_k_m.gguf
  python scripts/bench_engine.py --model FILE --distinct --peer llama-server \\
      --llama-server build/bin/llama-server
"""


@dataclass(frozen=True, slots=True)
class Round:
    """One contender's turn."""

    tokens: int
    seconds: float
    latencies: list[float]


def run_round(
    contender: Contender, prompts: Sequence[str], concurrency: int, done: Callable[[], object]
) -> Round:
    """`concurrency` clients share the prompts; the first failure of any ends the benchmark."""
    waiting = list(reversed(prompts))
    latencies: list[float] = []
    tokens: list[int] = []
    failures: list[Exception] = []

    def client() -> None:
        try:
            ask = contender.asker()
            ready.wait()
            while not failures:
                try:
                    prompt = waiting.pop()
                except IndexError:
                    return
                begin = time.perf_counter()
                tokens.append(ask(prompt))
                latencies.append(time.perf_counter() - begin)
                done()
        except Exception as error:  # a client's failure is the benchmark's
            failures.append(error)
            ready.abort()

    ready = threading.Barrier(concurrency + 1)
    threads = [threading.Thread(target=client) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    try:
        ready.wait()
        begin = time.perf_counter()
    finally:
        for thread in threads:
            thread.join()
    elapsed = time.perf_counter() - begin
    if failures:
        raise BenchError(f"{contender.name}: {failures[0]}")
    return Round(sum(tokens), elapsed, latencies)


def take_turns(
    contenders: Sequence[Contender],
    make: Callable[[int], list[str]],
    given: argparse.Namespace,
) -> tuple[dict[str, list[Round]], dict[str, Steps]]:
    """Each contender's rounds, and what its engine's counters gained in them."""
    rounds: dict[str, list[Round]] = {contender.name: [] for contender in contenders}
    steps: dict[str, Steps] = {}
    total = given.requests * given.rounds * len(contenders)
    before: dict[str, Steps | None] = {}
    with tqdm(total=total, desc="generation", unit="req", disable=None) as progress:
        for contender in contenders:
            run_round(contender, make(given.concurrency), given.concurrency, lambda: None)
            before[contender.name] = contender.steps()
        for _ in range(given.rounds):
            for contender in contenders:
                prompts = make(given.requests)
                turn = run_round(contender, prompts, given.concurrency, progress.update)
                rounds[contender.name].append(turn)
    for contender in contenders:
        now, then = contender.steps(), before[contender.name]
        if now is not None and then is not None:
            steps[contender.name] = now.since(then)
    return rounds, steps


def _row(name: str, mine: list[Round], cllm_rounds: list[Round]) -> dict[str, Any]:
    rates = [turn.tokens / turn.seconds for turn in mine]
    reference = [turn.tokens / turn.seconds for turn in cllm_rounds]
    latencies = [latency for turn in mine for latency in turn.latencies]
    return {
        "": name,
        "tokens/s": statistics.median(rates),
        "from": min(rates),
        "to": max(rates),
        "cLLM over HTTP against it": statistics.median(
            ours / theirs for ours, theirs in zip(reference, rates, strict=True)
        ),
        "s/request p50": percentile(latencies, 50),
        "s/request p99": percentile(latencies, 99),
    }


def _steps_row(name: str, taken: Steps) -> dict[str, Any]:
    whole = taken.decode + taken.sampling + taken.other
    return {
        "where": name,
        "steps": taken.count,
        "ms a step": whole / taken.count * 1e3,
        "llama_decode %": taken.decode / whole * 100,
        "sampling %": taken.sampling / whole * 100,
        "Python %": taken.other / whole * 100,
    }


def prompts_for(engine: EngineContender, distinct: bool) -> Callable[[int], list[str]]:
    """A maker of prompts of about `PROMPT_TOKENS` tokens.

    `distinct` puts a number in front, new for each, so that no prompt shares a prefix.
    """
    per_sentence = len(engine.engine.tokenize(PROMPT, add_special=False))
    prompt = PROMPT * max(1, round(PROMPT_TOKENS / per_sentence))
    numbers = count()

    def make(requests: int) -> list[str]:
        return [f"{next(numbers)} {prompt}" if distinct else prompt for _ in range(requests)]

    return make


def main() -> None:
    """Parse the command line, let the contenders take turns, report."""
    options = parser(__doc__ or "", EPILOG)
    options.add_argument(
        "--model", type=Path, metavar="FILE", help="GGUF file; default: the built-in model"
    )
    options.add_argument("--requests", type=positive, default=40, metavar="N", help="default: 40")
    options.add_argument("--concurrency", type=positive, default=8, metavar="N", help="default: 8")
    options.add_argument(
        "--tokens", type=positive, default=50, metavar="N", help="each; default: 50"
    )
    options.add_argument("--parallel", type=positive, metavar="N", help="default: --concurrency")
    options.add_argument("--ctx-size", type=positive, default=512, metavar="N", help="default: 512")
    options.add_argument(
        "--threads", type=positive, metavar="N", default=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity") else os.cpu_count(), help="default: one per core",
    )  # fmt: skip
    options.add_argument("--rounds", type=positive, default=3, metavar="N", help="default: 3")
    options.add_argument(
        "--temperature", type=float, default=0.8, metavar="T", help="0 is greedy; default: 0.8"
    )
    options.add_argument(
        "--distinct", action="store_true", help="no prompt shares a prefix with another"
    )
    options.add_argument(
        "--peer", action="append", choices=("llama-server", "llama_cpp.server"), default=[],
        help="let this server take part too; may be given twice",
    )  # fmt: skip
    options.add_argument(
        "--llama-server", metavar="PATH", default="llama-server",
        help="the program for --peer llama-server",
    )  # fmt: skip
    given = parse(options, requests=6, concurrency=2, tokens=5, rounds=1)
    program = shutil.which(given.llama_server)
    if "llama-server" in given.peer and program is None:
        raise BenchError(f"--llama-server: {given.llama_server} is not a program")
    work = Workload(
        model=given.model or demo_path(),
        parallel=given.parallel or given.concurrency,
        max_tokens=given.tokens,
        ctx_size=given.ctx_size,
        threads=given.threads,
        sampling={"temperature": given.temperature, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
    )
    report = Report("Generation")
    with ExitStack() as stack:
        over_http = cllm(work)
        stack.callback(over_http.close)
        alone = EngineContender(work)
        stack.callback(alone.close)
        contenders: list[Contender] = [over_http, alone]
        if "llama-server" in given.peer and program is not None:
            contenders.append(llama_server(work, program))
            stack.callback(contenders[-1].close)
        if "llama_cpp.server" in given.peer:
            contenders.append(llama_cpp_server(work))
            stack.callback(contenders[-1].close)
        make = prompts_for(alone, given.distinct)
        heading = (
            f"{given.requests} requests, {given.concurrency} at a time, {given.tokens} tokens, "
            f"{len(alone.engine.tokenize(make(1)[0]))} prompt tokens, "
            f"temperature {given.temperature:g}, {alone.engine.info().name}"
        )
        rounds, steps = take_turns(contenders, make, given)
    report.table(
        heading, [_row(name, mine, rounds[over_http.name]) for name, mine in rounds.items()]
    )
    report.table("Where a step goes", [_steps_row(name, taken) for name, taken in steps.items()])
    for name, taken in steps.items():
        share = _steps_row(name, taken)["Python %"]
        report.target(f"{name}: at most 3 % of a step in Python", share, share <= 3.0)
    report.write(given.json)


if __name__ == "__main__":
    run(main)
