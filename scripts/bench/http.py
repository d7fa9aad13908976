"""Measure the HTTP server: throughput against peers, crowds, memory over time, start-up."""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter, truediv
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .clients.crowd import IdleCrowd, SlowHeaderCrowd
from .clients.load import Client, measure_load
from .clients.probe import Probe
from .common import BenchError, Report, parse, parser, percentile, positive, wait
from .http2 import http2, http2_streams
from .https import access_log, tls
from .servers import peers
from .servers.server import HOST, Server, cllm_server, raise_file_limit
from .siege import MAX_CONNECTIONS, siege
from .siege_http2 import KEY
from .soak import soak_server

EPILOG = """\
what is measured:
  throughput  GET /health over keep-alive connections: cLLM, bare uvicorn, granian, FastAPI on
              uvicorn, in turns; wrk with one thread when installed, else a client of our own
  tls         the same over TLS against uvicorn; an event over TLS against a plain one; the delay
              of eight streams' events while 1 000 clients connect
  log         the rate with and without the access log
  idle        /health while 10 000 connections stay open and silent
  slow        /health while 1 000 clients send their request heads one byte a second
  soak        resident memory over 100 000 mixed requests
  siege       ordinary clients next to fifteen kinds of attack at once: none may fail
  http2       GET /health over TLS: one connection of HTTP/2 with 100 streams, against our own
              HTTP/1.1 on 100 connections and hypercorn; needs h2load
  http2-streams  1 000 event streams on ten connections of HTTP/2: all correct, and /health
  start       seconds from the command to the first generated answer

examples:
  python -m scripts.bench http
  python -m scripts.bench http throughput --connections 64 --rounds 9
  python -m scripts.bench http idle slow --json holds.json
"""


@dataclass(frozen=True, slots=True)
class Turn:
    """One load run: requests a second, latency, the server's processor time a request."""

    rate: float
    p99_ms: float
    cpu_us: float


def throughput(report: Report, options: argparse.Namespace) -> None:
    """cLLM and its peers, in turns."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = [stack.enter_context(cllm_server())]
        for name in peers.NAMES if not options.no_peers else ():
            if missing := peers.missing(name):
                print(f"\nleft out: {name}: not installed: {', '.join(missing)} "
                      "(pip install -e '.[bench]')")  # fmt: skip
            else:
                servers.append(stack.enter_context(peers.start(name, folder)))
        runs = _take_turns(servers, options)
    _compare(report, [server.name for server in servers], runs, options)


def _take_turns(
    servers: list[Server], options: argparse.Namespace
) -> dict[tuple[str, int], list[Turn]]:
    """By server and number of connections, one for each round."""
    runs: dict[tuple[str, int], list[Turn]] = {}
    turns = [
        (connections, server)
        for connections in options.connections
        for _round in range(options.rounds)
        for server in servers
    ]
    for server in servers:
        measure_load(HOST, server.port, "/health", 8, 1)
    for connections, server in tqdm(turns, desc="throughput", unit="run", disable=None):
        before = server.cpu_seconds()
        load = measure_load(HOST, server.port, "/health", connections, options.seconds)
        cpu = (server.cpu_seconds() - before) / load.requests * 1e6
        runs.setdefault((server.name, connections), []).append(Turn(load.rate, load.p99_ms, cpu))
    return runs


def _compare(
    report: Report,
    servers: list[str],
    runs: dict[tuple[str, int], list[Turn]],
    options: argparse.Namespace,
) -> None:
    """Medians of each server; ratios from the turns of the same round, so that noise cancels."""
    for heading, measure in (
        ("Requests a second", attrgetter("rate")),
        ("Latency, 99th percentile, ms", attrgetter("p99_ms")),
        ("Server's processor time a request, µs", attrgetter("cpu_us")),
    ):
        report.table(
            f"{heading}; GET /health, keep-alive, median of {options.rounds} rounds",
            [
                {"server": server}
                | {
                    f"{connections} conn.": statistics.median(
                        map(measure, runs[server, connections])
                    )
                    for connections in options.connections
                }
                for server in servers
            ],
        )
    ours, *peers = servers
    if not peers:
        return
    ratios: list[dict[str, Any]] = [{"cLLM against": peer} for peer in peers]
    for connections in options.connections:
        mine = [turn.rate for turn in runs[ours, connections]]
        for row in ratios:
            theirs = [turn.rate for turn in runs[row["cLLM against"], connections]]
            row[f"{connections} conn."] = statistics.median(map(truediv, mine, theirs))
    report.table("Ratio of requests a second, median of the rounds' ratios", ratios)
    for row in ratios:
        peer = row["cLLM against"]
        needed = 3.0 if "FastAPI" in peer else 0.9 if "granian" in peer else 1.0
        # granian reads and writes without the interpreter lock: its rate grows with connections.
        for connections in (8, 64, 256) if "granian" in peer else (64,):
            if connections in options.connections:
                ratio = row[f"{connections} conn."]
                what = f"at {connections} connections at least {needed:g} × {peer}"
                report.target(what, ratio, ratio >= needed)


def idle(report: Report, options: argparse.Namespace) -> None:
    """`/health` before, during and after a crowd of silent connections."""
    size = options.idle
    raise_file_limit(size + 1000)
    # The half that never sends is closed at the head's deadline, so that must be long.
    arguments = ("--max-connections", str(size + 500), "--head-timeout", "75")
    with cllm_server(*arguments) as server:
        rows = [_health(server, options.seconds, "before")]
        before = server.rss()
        with IdleCrowd(HOST, server.port, size) as crowd:
            memory = (server.rss() - before) / size
            rows.append(_health(server, options.seconds, f"{size} idle connections"))
        rows.append(_health(server, options.seconds, "after"))
    report.table(f"/health with {size} idle connections", rows)
    print(f"\nserver memory: {memory / 1024:.1f} KiB a connection; {crowd.lost} connections lost")
    if crowd.lost:
        raise BenchError(f"{crowd.lost} idle connections were closed by the server")
    _unaffected(report, f"{size} idle connections", rows)


def slow(report: Report, options: argparse.Namespace) -> None:
    """`/health` before, during and after clients that never finish a head."""
    size = options.slow
    raise_file_limit(size + 1000)
    with cllm_server() as server:
        rows = [_health(server, options.seconds, "before")]
        with SlowHeaderCrowd(HOST, server.port, size) as crowd:
            # Long enough for each of them to reach the head's deadline, 10 s.
            rows.append(_health(server, 3 * options.seconds, f"{size} slow clients"))
        rows.append(_health(server, options.seconds, "after"))
    report.table(f"/health with {size} clients that send their head one byte a second", rows)
    print(f"\nclosed and connected again: {crowd.turned_away}, of these 408: {crowd.timeouts}")
    _unaffected(report, f"{size} slow clients", rows)


def _health(server: Server, seconds: float, when: str) -> dict[str, Any]:
    """One table row: latency of single requests, then throughput at 8 connections."""
    with Probe(HOST, server.port) as probe:
        wait(seconds, when)
    load = measure_load(HOST, server.port, "/health", 8, seconds)
    milliseconds = [latency * 1e3 for latency in probe.latencies]
    return {
        "when": when,
        "p50 ms": percentile(milliseconds, 50),
        "p99 ms": percentile(milliseconds, 99),
        "max ms": max(milliseconds),
        "8 conn. req/s": load.rate,
    }


def _unaffected(report: Report, crowd: str, rows: list[dict[str, Any]]) -> None:
    """Targets: at most a fifth less throughput, at most 5 ms more at the 99th percentile."""
    before, during, after = rows
    ratio = during["8 conn. req/s"] / statistics.mean(
        (before["8 conn. req/s"], after["8 conn. req/s"])
    )
    report.target(f"{crowd}: at least 0.8 × the throughput without", ratio, ratio >= 0.8)
    added = during["p99 ms"] - max(before["p99 ms"], after["p99 ms"])
    report.target(f"{crowd}: p99 at most 5 ms longer than without", added, added <= 5.0)


def start(report: Report, options: argparse.Namespace) -> None:
    """The time from the command to the first answer."""
    rows: list[dict[str, Any]] = []
    for number in tqdm(range(options.rounds + 1), desc="start", unit="start", disable=None):
        with cllm_server() as server, Client(HOST, server.port) as client:
            answer = client.post("/generate", {"prompt": "Hello", "max_tokens": 1})
            answered = time.monotonic() - server.started_at
        if answer.status != 200 or not answer.json()["success"]:
            raise BenchError(f"/generate gave {answer.status}: {answer.body[:400]!r}")
        label = str(number) if number else "first"
        rows.append({"start": label, "healthy s": server.healthy_after, "answer s": answered})
    report.table("From the command to the first answer, built-in model", rows)
    median = statistics.median(row["answer s"] for row in rows[1:])
    report.target("first answer within 2 s of the command", median, median < 2.0)


def soak(report: Report, options: argparse.Namespace) -> None:
    """Memory must not grow with the number of requests."""
    with cllm_server() as server:
        rows = soak_server(server, options.requests)
    report.table(f"Resident memory over {options.requests} mixed requests", rows)
    # The first tenth fills pools, caches and the allocator's arenas.
    grown = rows[-1]["RSS MiB"] - rows[1]["RSS MiB"]
    report.target("memory grows by less than 4 MiB after the first tenth", grown, grown < 4.0)


def siege_mode(report: Report, options: argparse.Namespace) -> None:
    """No request of an ordinary client may fail while others attack."""
    raise_file_limit(4 * MAX_CONNECTIONS)
    limits = ("--max-connections", str(MAX_CONNECTIONS), "--max-queue", "1000")
    with cllm_server("--api-key", KEY, *limits) as server:
        row = siege(server, options.siege)
    report.table(f"Ordinary clients during {options.siege:g} s of attacks", [row])
    report.target(
        "memory grows by at most 64 MiB", row["RSS growth MiB"], row["RSS growth MiB"] <= 64
    )
    report.target("no descriptor is left", row["descriptors"], row["descriptors"] <= 0)
    report.target("no thread is left", row["threads"], row["threads"] <= 0)


Mode = Callable[[Report, argparse.Namespace], None]
MODES: dict[str, Mode] = {
    "throughput": throughput,
    "tls": tls,
    "log": access_log,
    "idle": idle,
    "slow": slow,
    "soak": soak,
    "siege": siege_mode,
    "http2": http2,
    "http2-streams": http2_streams,
    "start": start,
}


def _mode(name: str) -> Mode:
    if name not in MODES:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(MODES)}")
    return MODES[name]


def main() -> None:
    """Parse the command line and run the chosen measurements."""
    options = parser(__doc__ or "", EPILOG)
    options.add_argument(
        "modes", nargs="*", type=_mode, metavar="MODE",
        help=f"{', '.join(MODES)} (default: throughput)",
    )  # fmt: skip
    options.add_argument(
        "--connections", type=positive, nargs="+", default=[1, 8, 64, 256], metavar="N",
        help="throughput: keep-alive connections (default: 1 8 64 256)",
    )  # fmt: skip
    options.add_argument(
        "--rounds", type=positive, default=5, help="turns of each server (default: 5)"
    )
    options.add_argument(
        "--seconds", type=float, default=3.0, help="one measurement's length (default: 3)"
    )
    options.add_argument("--idle", type=positive, default=10_000, help="size of the idle crowd")
    options.add_argument("--slow", type=positive, default=1_000, help="size of the slow crowd")
    options.add_argument("--requests", type=positive, default=100_000, help="soak: how many")
    options.add_argument("--streams", type=positive, default=1000, help="http2-streams: how many")
    options.add_argument("--siege", type=float, default=900.0, help="its seconds (default: 900)")
    options.add_argument("--no-peers", action="store_true", help="throughput: cLLM alone")
    given = parse(
        options,
        connections=[1, 8],
        rounds=1,
        seconds=1.0,
        idle=50,
        slow=20,
        requests=500,
        streams=40,
        siege=5.0,
    )
    report = Report("HTTP server")
    for mode in given.modes or [throughput]:
        mode(report, given)
    report.write(given.json)
