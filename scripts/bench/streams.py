"""Measure many concurrent SSE streams, and /health meanwhile."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from .clients.load import Client, ClientError, request_bytes
from .clients.probe import Probe
from .clients.streams import Call, read_streams
from .common import BenchError, Report, parse, parser, percentile, positive, wait
from .servers.server import HOST, PeakRss, Server, cllm_server, free_port, raise_file_limit

EPILOG = """\
Every stream is checked: complete, well-formed JSON in every event, one id, the exact number of
tokens, greedy text equal to what the same prompt gives alone. A process of its own sends
GET /health every 5 ms, before the streams and during them.

examples:
  python -m scripts.bench streams                     the whole server with the built-in model
  python -m scripts.bench streams --http-only         the HTTP server alone: one thread feeds all
                                                      streams at once, so all are live together
  python -m scripts.bench streams --model FILE --streams 200 --parallel 16
"""
SILENCE = 60.0  # seconds without a byte from any stream
PROMPTS = [f"Story number {number}: once upon a time" for number in range(8)]


class Received(Protocol):
    """A response of events."""

    sent: float

    def events(self) -> tuple[list[bytes], list[float]]:
        """The data of each event and when it had arrived. Raises `ClientError`."""


@dataclass(slots=True)
class Outcome:
    """Times in seconds over all streams of a run."""

    elapsed: float
    tokens: int
    first: list[float]  # from the request to the first event
    gaps: list[float]  # between two events of one stream
    late: list[float]  # from the producer to the client (--http-only)


def check(stream: Received, tokens: int, text: str | None, outcome: Outcome) -> None:
    """Raise `ClientError` unless the stream is what was asked for; else add it to the outcome."""
    datas, times = stream.events()
    events = [json.loads(data) for data in datas]
    *deltas, last = events
    if len({event["id"] for event in events}) != 1:
        raise ClientError("an id changed within a stream")
    if any(event["done"] for event in deltas) or not last["done"]:
        raise ClientError(f"done is not exactly at the end; the last event is {last}")
    if last["finish_reason"] != "length" or last["usage"]["completion_tokens"] != tokens:
        raise ClientError(f"not {tokens} tokens: {last}")
    got = "".join(event["token"] for event in events)
    if text is not None and got != text:
        raise ClientError(f"{got!r} instead of {text!r}")
    outcome.tokens += tokens
    outcome.first.append(times[0] - stream.sent)
    outcome.gaps += [after - before for before, after in pairwise(times)]
    outcome.late += [
        when - event["at"] for event, when in zip(events, times, strict=True) if "at" in event
    ]


def run_streams(
    server: Server, requests: list[bytes], tokens: int, texts: list[str | None]
) -> Outcome:
    """Send all requests, read all streams, check each; a wrong one raises ClientError."""
    with tqdm(total=len(requests), desc="streams", unit="stream", disable=None) as progress:
        begin = time.monotonic()
        scripts = [[Call(request)] for request in requests]
        answers = read_streams(
            HOST, server.port, scripts, silence=SILENCE, progress=progress.update
        )
        outcome = Outcome(time.monotonic() - begin, 0, [], [], [])
    for number, ((stream,), text) in enumerate(zip(answers, texts, strict=True)):
        try:
            check(stream, tokens, text, outcome)
        except (ClientError, ValueError, KeyError, TypeError) as error:
            raise BenchError(f"stream {number} of {len(answers)} is wrong: {error}") from None
    return outcome


def measure(
    report: Report,
    server: Server,
    requests: list[bytes],
    warm_up: list[bytes],
    tokens: int,
    texts: list[str | None],
    heading: str,
) -> None:
    """Warm up, then run the streams with a probe of /health, and report."""
    run_streams(server, warm_up, tokens, [None] * len(warm_up))
    with Probe(HOST, server.port, interval=0.005) as before:
        wait(2.0, "/health, before")
    with PeakRss(server.pid) as memory, Probe(HOST, server.port, interval=0.005) as during:
        outcome = run_streams(server, requests, tokens, texts)
    size = len(requests)
    kib = (memory.peak - memory.before) / size / 1024
    rows: list[dict[str, Any]] = [
        {"streams": size, "all correct": "yes", "seconds": outcome.elapsed,
         "streams/s": size / outcome.elapsed, "tokens/s": outcome.tokens / outcome.elapsed,
         "server KiB/stream": kib},
    ]  # fmt: skip
    report.table(heading, rows)
    times = {"request to first token": outcome.first, "between two tokens": outcome.gaps}
    if outcome.late:
        # The producer waits for the last stream to join, so the first token says nothing here.
        times = {
            "producer to client": outcome.late,
            "between two tokens": outcome.gaps,
        }
    times |= {"/health, before": before.latencies, "/health, during": during.latencies}
    report.table("Milliseconds", [spread(name, values) for name, values in times.items()])
    report_health(report, during, size)
    report.target("at most 64 KiB of server memory a stream", kib, kib <= 64)


def report_health(report: Report, during: Probe, size: int) -> None:
    """The target of the probe that ran next to `size` streams."""
    p99 = percentile(during.latencies, 99) * 1e3
    report.target(f"/health p99 under 50 ms during {size} streams", p99, p99 < 50)


def bursts(
    report: Report, server: Server, requests: list[bytes], given: argparse.Namespace
) -> None:
    """Repeat the burst; /health of each, next to that of an idle server as a control."""
    rows: list[dict[str, Any]] = []
    with _synthetic("control", 2) as idle:
        for number in range(given.bursts):
            with (
                Probe(HOST, server.port, interval=0.005) as during,
                Probe(HOST, idle.port, interval=0.005) as control,
            ):
                run_streams(server, requests, given.tokens, [None] * len(requests))
            rows += [
                {"burst": number + 1, **spread(name, probe.latencies)}
                for name, probe in (("/health", during), ("/health, idle server", control))
            ]
            report_health(report, during, len(requests))
    report.table(f"{given.bursts} bursts of {len(requests)} streams, milliseconds", rows)


def _synthetic(name: str, workers: int) -> Server:
    """A server without a model; see servers/synthetic.py."""
    port = free_port()
    module = "scripts.bench.servers.synthetic"
    return Server(name, [sys.executable, "-m", module, str(port), str(workers)], port)


def spread(name: str, values: list[float]) -> dict[str, Any]:
    """A row of a table, in milliseconds."""
    milliseconds = [value * 1e3 for value in values]
    return {
        "": name,
        "count": len(values),
        "mean": statistics.fmean(milliseconds) if milliseconds else float("nan"),
        "p50": percentile(milliseconds, 50),
        "p99": percentile(milliseconds, 99),
        "max": max(milliseconds, default=float("nan")),
    }


def whole_server(report: Report, given: argparse.Namespace) -> None:
    """Streams of the real server: HTTP, API and engine."""
    arguments = ["--workers", str(given.workers), "--parallel", str(given.parallel)]
    arguments += ["--max-queue", str(given.streams), "--ctx-size", str(given.tokens + 64)]
    if given.model:
        arguments += ["--model", str(given.model)]
    bodies: list[dict[str, Any]] = [
        {"prompt": prompt, "max_tokens": given.tokens, "temperature": 0, "ignore_eos": True}
        for prompt in PROMPTS
    ]
    with cllm_server(*arguments) as server:
        with Client(HOST, server.port, timeout=300) as client:
            texts = [client.post("/generate", body).json()["data"]["text"] for body in bodies]
        requests = [request_bytes("POST", "/generate_stream", body) for body in bodies]
        turns = [number % len(PROMPTS) for number in range(given.streams)]
        measure(
            report, server, [requests[turn] for turn in turns], requests * 4, given.tokens,
            [texts[turn] for turn in turns],
            f"{given.streams} streams of {given.tokens} tokens, {given.parallel} sequences, "
            f"{given.workers} workers",
        )  # fmt: skip
        if given.bursts:
            bursts(report, server, [requests[turn] for turn in turns], given)


def http_only(report: Report, given: argparse.Namespace) -> None:
    """Streams of an embedded server, fed by one thread; all live at the same time."""
    text = "".join(f"token {number} " for number in range(given.tokens))

    def requests(size: int) -> list[bytes]:
        asked = {"size": size, "tokens": given.tokens, "pace": given.pace}
        return [request_bytes("POST", "/stream", asked)] * size

    with _synthetic("synthetic server", given.workers) as server:
        measure(
            report, server, requests(given.streams), requests(32), given.tokens,
            [text] * given.streams,
            f"{given.streams} live streams of {given.tokens} tokens at {given.pace:g} a second, "
            f"{given.workers} workers, HTTP alone",
        )  # fmt: skip


def main() -> None:
    """Parse the command line, measure, report."""
    options = parser(__doc__ or "", EPILOG)
    options.add_argument(
        "--streams", type=positive, default=1000, metavar="N", help="default: 1000"
    )
    options.add_argument(
        "--tokens", type=positive, default=50, metavar="N", help="each; default: 50"
    )
    options.add_argument(
        "--workers", type=positive, default=16, metavar="N", help="server threads; default: 16"
    )
    options.add_argument("--http-only", action="store_true", help="synthetic tokens, no model")
    options.add_argument(
        "--pace", type=float, default=10.0, metavar="N",
        help="--http-only: tokens a second for each stream; default: 10",
    )  # fmt: skip
    options.add_argument(
        "--model", type=Path, metavar="FILE", help="GGUF to serve; default: the built-in model"
    )
    options.add_argument(
        "--parallel", type=positive, default=32, metavar="N", help="sequences; default: 32"
    )
    options.add_argument(
        "--bursts", type=positive, default=0, metavar="N",
        help="then send the streams N times more, with /health during each; default: none",
    )  # fmt: skip
    given = parse(options, streams=40, tokens=5, parallel=8)
    raise_file_limit(given.streams + 1000)
    report = Report("Concurrent streams")
    (http_only if given.http_only else whole_server)(report, given)
    report.write(given.json)
