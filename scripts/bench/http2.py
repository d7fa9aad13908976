"""Measure HTTP/2: requests on one connection against peers, many event streams on a few."""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .clients.http2 import h2load, read_event_streams
from .clients.load import Client
from .clients.probe import Probe
from .common import Report, wait
from .https import CERT, KEY, trusting
from .servers import peers
from .servers.server import HOST, Server, cllm_server
from .streams import PROMPTS, SILENCE, Outcome, check, report_health, spread

STREAMS = 100  # on one connection

CONNECTIONS = 10  # of the event streams
TOKENS = 50  # of each stream


def http2(report: Report, options: argparse.Namespace) -> None:
    """GET /health over TLS: one connection of HTTP/2 with 100 streams, against peers."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        files = ("--tls-cert", CERT, "--tls-key", KEY)
        ours = stack.enter_context(cllm_server(*files, context=trusting()))
        one = (1, STREAMS, False)
        turns: list[tuple[str, Server, tuple[int, int, bool]]] = [
            ("cLLM, HTTP/2, 1 connection", ours, one),
            ("cLLM, HTTP/1.1, 100 connections", ours, (STREAMS, 1, True)),
        ]
        missing = peers.not_installed(peers.HYPERCORN)
        if options.no_peers or missing:
            print(f"\nleft out: hypercorn: {', '.join(missing) or 'as asked'}")
        else:
            server = stack.enter_context(peers.start_hypercorn(folder, (CERT, KEY), trusting()))
            turns.append(("hypercorn, HTTP/2, 1 connection", server, one))
        rates: dict[str, list[float]] = {name: [] for name, _, _ in turns}
        rounds = [turn for _ in range(options.rounds) for turn in turns]
        for name, server, (connections, streams, http1) in tqdm(rounds, unit="run", disable=None):
            url = f"https://{HOST}:{server.port}/health"
            rates[name].append(h2load(url, connections, streams, options.seconds, http1=http1))
    report.table(
        f"Requests a second over TLS; GET /health, 100 at once, median of {options.rounds} rounds",
        [{"server": name, "req/s": statistics.median(found)} for name, found in rates.items()],
    )
    first, *others = rates.values()
    for (name, _, _), found, least in zip(turns[1:], others, (1.0, 10.0), strict=False):
        ratio = statistics.median(a / b for a, b in zip(first, found, strict=True))
        report.target(f"at least {least:g} × {name}", ratio, ratio >= least)


def http2_streams(report: Report, options: argparse.Namespace) -> None:
    """Event streams of generations on ten connections of HTTP/2, and /health meanwhile."""
    size = options.streams
    arguments = ["--workers", "16", "--max-queue", str(size), "--ctx-size", str(TOKENS + 64)]
    bodies: list[dict[str, Any]] = [
        {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
        for prompt in PROMPTS
    ]
    turns = [number % len(PROMPTS) for number in range(size)]
    with cllm_server(*arguments) as server:
        with Client(HOST, server.port, timeout=300) as client:
            texts = [client.post("/generate", body).json()["data"]["text"] for body in bodies]
        with Probe(HOST, server.port, interval=0.005) as before:
            wait(2.0, "/health, before")
        with Probe(HOST, server.port, interval=0.005) as during:
            with tqdm(total=size, desc="streams", unit="stream", disable=None) as progress:
                begin = time.monotonic()
                streams = read_event_streams(
                    HOST, server.port, "/generate_stream", [bodies[turn] for turn in turns],
                    CONNECTIONS, SILENCE, progress.update,
                )  # fmt: skip
            outcome = Outcome(time.monotonic() - begin, 0, [], [], [])
    for stream, turn in zip(streams, turns, strict=True):
        check(stream, TOKENS, texts[turn], outcome)
    report.table(
        f"{size} streams of {TOKENS} tokens on {CONNECTIONS} connections of HTTP/2, 16 workers",
        [
            {"streams": size, "all correct": "yes", "seconds": outcome.elapsed,
             "tokens/s": outcome.tokens / outcome.elapsed},
        ],
    )  # fmt: skip
    times = {
        "request to first token": outcome.first,
        "between two tokens": outcome.gaps,
        "/health, before": before.latencies,
        "/health, during": during.latencies,
    }
    report.table("Milliseconds", [spread(name, values) for name, values in times.items()])
    report_health(report, during, size)
