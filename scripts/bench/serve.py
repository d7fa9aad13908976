"""Measure serving: the same named workloads on cLLM, llama-server and other servers, in turns."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from itertools import chain, pairwise, product
from pathlib import Path

from tqdm import tqdm

from cllm.models import demo_path

from .busy import BusyProcesses, kept
from .common import BenchError, Report, parse, parser, percentile, positive
from .report.comparison import REFERENCE, Results, check_targets, rows, steps_rows
from .report.figure import draw
from .servers.contenders import (
    Contender,
    Setup,
    Steps,
    Turn,
    cllm,
    llama_cpp_server,
    llama_server,
    llama_server_ngram,
    xllamacpp,
)
from .servers.engine_alone import BATCHED_BENCH, BatchedBench, EngineContender
from .servers.server import PeakRss, cpu_seconds, settle
from .workloads import WORKLOADS, Crowd, Script, Workload, Writer

GUESSING = "llama-server-ngram"
CONTENDERS: dict[str, Callable[[Setup, Workload], Contender]] = {
    "cllm": cllm,
    REFERENCE: llama_server,
    GUESSING: llama_server_ngram,
    "xllamacpp": xllamacpp,
    "llama_cpp.server": llama_cpp_server,
    "engine": EngineContender,
    BATCHED_BENCH: BatchedBench,
}
ALONE = ("engine", BATCHED_BENCH)
BY_DEFAULT = ("cllm", REFERENCE, GUESSING, *ALONE)


LIST = "\n".join(f"  {work.name:14} {work.about}" for work in WORKLOADS.values())
EPILOG = f"""\
workloads:
{LIST}

servers: {", ".join(CONTENDERS)}
  The HTTP servers get requests for streamed completions over keep-alive connections; the engine
  gets the same without a socket. llama-batched-bench takes part only in the workloads ceiling-N, in
  which there is no server; {GUESSING} (llama-server with --spec-type ngram-simple) only in copy.
  cLLM loads the libraries next to --llama-server too, so that only the servers differ. They must be
  of the llama.cpp version that the installed llama-cpp-python was made for.

Servers take turns in every round (A B A B ...). A ratio is the median of the rounds' ratios to
{REFERENCE}; all other numbers are medians of the rounds. TTFT: time to first token, ITL: time
between tokens, in milliseconds. A failure is a response that is incomplete, not exact or not of the
requested shape.

examples:
  python -m scripts.bench serve --quick
  python -m scripts.bench serve --model qwen3-0.6b.gguf --llama-server build/bin/llama-server
  python -m scripts.bench serve --model FILE --llama-server PATH --workload seed many --rounds 3
  python -m scripts.bench serve --model FILE --workload seed --server cllm llama_cpp.server
  python -m scripts.bench serve --model FILE --llama-server PATH --workload seed --busy 0 1 2
"""


def takes_part(name: str, work: Workload) -> bool:
    """Whether a contender takes part in a workload."""
    if name == GUESSING:
        return work.copies
    if work.restarts and name in ALONE:
        return False
    return name == "engine" or (name in ALONE) == work.alone


def measure(
    contender: Contender, work: Workload, crowd: Crowd, progress: Callable[[], object]
) -> tuple[dict[str, float], list[str]]:
    """One turn: its measures by name, and what was wrong with failed responses."""
    pid = contender.pid
    probing = contender.probe() if work.probed else None
    memory = PeakRss(pid) if pid is not None else None
    cpu = cpu_seconds(pid) if pid is not None else float("nan")
    with probing or nullcontext(), memory or nullcontext():
        turn = contender.ask(crowd, progress)
    found = _times(turn)
    faults = [answer.fault for answer in turn.answers if answer.fault is not None]
    found["failures"] = len(faults)
    found["CPU s"] = cpu_seconds(pid) - cpu if pid is not None else float("nan")
    found["peak MiB"] = memory.peak / 2**20 if memory else float("nan")
    if probing is not None:
        found["/health p99"] = percentile(probing.latencies, 99) * 1e3
    settle(pid)
    return found, faults


def _times(turn: Turn) -> dict[str, float]:
    counted = [answer for answer in turn.answers if answer.times and answer.fault is None]
    first = [
        (answer.times[0] - answer.sent) * 1e3 for answer in counted if answer.request.first_counts
    ]
    gaps = [
        (after - before) * 1e3
        for answer in counted
        if answer.request.gaps_count
        for before, after in pairwise(answer.times)
    ]
    return {
        "tokens/s": turn.tokens / turn.seconds,
        "TTFT p50": percentile(first, 50),
        "TTFT p99": percentile(first, 99),
        "ITL p50": percentile(gaps, 50),
        "ITL p99": percentile(gaps, 99),
    }


def run_workload(
    work: Workload, names: Sequence[str], setup: Setup, given: argparse.Namespace
) -> tuple[dict[int, Results], dict[str, Steps]]:
    """All rounds of one workload; every contender that can be started takes part.

    The results are by the number of busy processes next to it.
    """
    writer = Writer(setup.model)
    results: dict[int, Results] = {}
    before: dict[str, Steps | None] = {}
    with ExitStack() as stack:
        contenders = []
        for name in names:
            try:
                contender = CONTENDERS[name](setup, work)
            except BenchError as error:
                print(f"\nleft out of {work.name}: {error}", flush=True)
                continue
            stack.callback(contender.close)
            contenders.append(contender)
        crowds = [
            work.make(writer.seed(f"{work.name} {number}"), given.quick)
            for number in range(given.rounds)
        ]
        size = sum(map(len, chain(*_scripts(crowds[0])))) if crowds else 0
        total = size * given.rounds * len(given.busy) * len(contenders)
        warm_up = WORKLOADS["single"].make(writer.seed("warm up"), True)
        with tqdm(total=total, desc=work.name, unit="req", disable=None) as bar:
            for contender in contenders:
                contender.ask(warm_up, lambda: None)
                settle(contender.pid)
                before[contender.name] = contender.steps()
            for crowd, busy, contender in product(crowds, given.busy, contenders):
                if crowd.earlier:
                    contender.ask(Crowd(crowd.clients, crowd.earlier), bar.update)
                    contender.restart()
                with BusyProcesses(busy):
                    found, faults = measure(contender, work, crowd, bar.update)
                row = results.setdefault(busy, {}).setdefault(contender.name, {})
                for measured, value in found.items():
                    row.setdefault(measured, []).append(value)
                if faults:
                    bar.write(f"{contender.name}: {len(faults)} failed: {faults[0][:300]}")
        steps = {}
        for contender in contenders:
            now, then = contender.steps(), before[contender.name]
            if now is not None and then is not None:
                steps[contender.name] = now.since(then)
    return results, steps


def _scripts(crowd: Crowd) -> tuple[Sequence[Script], ...]:
    return crowd.scripts, crowd.late, crowd.earlier


def named(kind: str, names: Sequence[str]) -> Callable[[str], str]:
    """An argument that is one of `names`, which are of a kind that an error names."""

    def known(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is no {kind}; there are {', '.join(names)}")
        return text

    return known


def add_load(options: argparse.ArgumentParser) -> None:
    """The options for how many threads compute, and next to what."""
    options.add_argument(
        "--threads", type=positive, metavar="N",
        help="default: cLLM's own, and one per core for the others",
    )  # fmt: skip
    options.add_argument(
        "--busy", nargs="+", type=int, default=[0], metavar="N",
        help="numbers of processes that only compute next to the servers, in turns; default: 0",
    )  # fmt: skip


def _options() -> argparse.ArgumentParser:
    options = parser(__doc__ or "", EPILOG)
    options.add_argument(
        "--model", type=Path, metavar="FILE", help="GGUF file; default: the built-in model"
    )
    options.add_argument(
        "--model-draft", type=Path, metavar="FILE",
        help="draft model that cLLM and llama-server draft with",
    )  # fmt: skip
    options.add_argument(
        "--copy-model", type=Path, metavar="FILE", help="GGUF file for the workload copy, one that "
        "repeats its prompt (scripts.bench make-model --copying)",
    )  # fmt: skip
    options.add_argument(
        "--hybrid-model", type=Path, metavar="FILE", help="GGUF file for the workload thinking, "
        "with recurrent layers (scripts.bench make-model --shape lfm2-350m)",
    )  # fmt: skip
    options.add_argument(
        "--workload", nargs="+", type=named("workload", [*WORKLOADS]), default=[*WORKLOADS],
        metavar="NAME", help="default: all",
    )  # fmt: skip
    options.add_argument(
        "--server", nargs="+", type=named("server", [*CONTENDERS]), metavar="NAME",
        help=f"default: {', '.join(BY_DEFAULT)}, as far as they are available",
    )  # fmt: skip
    options.add_argument(
        "--llama-server", metavar="PATH", help="the program; llama-batched-bench is next to it"
    )
    add_load(options)
    options.add_argument("--rounds", type=positive, default=5, metavar="N", help="default: 5")
    options.add_argument("--picture", type=Path, metavar="FILE.svg", help="also draw the ratios")
    return options


def program_of(path: str | None) -> Path | None:
    """The program's path; its libraries become those of every Python process started here."""
    if path is None:
        return None
    found = shutil.which(path)
    if found is None:
        raise BenchError(f"--llama-server: {path} is not a program")
    program = Path(found).resolve()
    if any(program.parent.glob("libllama.*")):
        os.environ.setdefault("LLAMA_CPP_LIB_PATH", str(program.parent))
    return program


def main() -> None:
    """Parse the command line, run each workload, report."""
    given = parse(_options(), rounds=1)
    program = program_of(given.llama_server)
    names = given.server or [name for name in BY_DEFAULT if program or name in ("cllm", "engine")]
    report = Report("Serving")
    for work in (WORKLOADS[name] for name in given.workload):
        model = given.model or demo_path()
        if work.copies or work.hybrid:
            option = "copy" if work.copies else "hybrid"
            model = given.copy_model if work.copies else given.hybrid_model
            if model is None:
                print(f"\nleft out: {work.name}: it needs --{option}-model")
                continue
        taking_part = [name for name in names if takes_part(name, work)]
        if not taking_part:
            continue
        results, steps = run_workload(
            work, taking_part, Setup(model, given.threads, program, given.model_draft), given
        )
        if results:
            smaller = " (--quick: fewer and shorter)" if given.quick else ""
            for busy, found in results.items():
                crowded = f", next to {busy} busy processes" if busy else ""
                report.table(f"{work.name}: {work.about}{crowded}{smaller}", rows(found))
            if len(results) > 1:
                report.table(f"{work.name}: tokens/s next to busy processes", kept(results))
            spent = steps_rows(steps)
            if spent:
                report.table(f"{work.name} steps: where their time goes", spent)
            if 0 in results:
                check_targets(report, work.name, results[0], spent)
                report.data.setdefault("workloads", {})[work.name] = results[0]
            report.data.setdefault("busy", {})[work.name] = results
    report.write(given.json)
    if given.picture is not None:
        draw(report.data["workloads"], REFERENCE, given.picture)
