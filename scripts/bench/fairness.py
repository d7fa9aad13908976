"""Time to the first token of a small client next to one that sends a hundred times as much."""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import statistics
import threading
import time
import timeit
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from cllm.api.metering import metered
from cllm.api.tenants import TENANT, Key, KeyRing, Tenant, Tenants, Terms
from cllm.engine import Request
from cllm.engine.scheduling.fairness import FairQueue
from cllm.engine.sharing import EQUAL
from cllm.http import HttpRequest, HttpResponse
from cllm.http.handler import Middleware

from .clients.load import SPAWN, Client, ClientError, request_bytes, response_end
from .common import Report, parse, parser, percentile, positive, wait
from .servers.server import HOST, Server, cllm_server

EPILOG = """\
The server tells the two apart by their addresses, 127.0.0.1 and 127.0.0.2. The big client keeps
--big requests of 32 to 256 tokens in flight, the small one sends one request of 4 tokens after the
other, each with a prompt of its own. A step is the mean of the engine's steps under load.

examples:
  python -m scripts.bench fairness
  python -m scripts.bench fairness --model FILE --parallel 4
"""
BIG = "127.0.0.2"
WORDS = ("a", "fox", "lantern", "in", "the", "quiet", "forest", "met", "an", "old", "owl")
PATIENCE = 300.0  # s until an answer counts as lost


def prompt(seed: int, length: int) -> str:
    """Words of which no two seeds share the beginning."""
    rng = random.Random(seed)
    return f"{rng.randrange(10**9)} " + " ".join(rng.choices(WORDS, k=length))


def load(port: int, clients: int) -> None:
    """The big client: each thread asks and waits, until the process is killed."""

    def ask(seed: int) -> None:
        rng = random.Random(seed)
        while True:
            body = {
                "prompt": prompt(rng.randrange(10**9), 60), "max_tokens": rng.randrange(32, 257),
                "ignore_eos": True,
            }  # fmt: skip
            with (
                contextlib.suppress(OSError),
                socket.create_connection((HOST, port), PATIENCE, (BIG, 0)) as peer,
            ):
                peer.sendall(request_bytes("POST", "/generate", body))
                received = b""
                while not response_end(received) and (more := peer.recv(65536)):
                    received += more

    threads = [threading.Thread(target=ask, args=(seed,), daemon=True) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextlib.contextmanager
def big_client(port: int, clients: int) -> Iterator[None]:
    """The big client in a process of its own."""
    process = SPAWN.Process(target=load, args=(port, clients), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def first_token(port: int, seed: int) -> float:
    """Seconds from the request to the first event of one answer; raises ClientError."""
    body = {"prompt": prompt(seed, 60), "max_tokens": 4, "ignore_eos": True}
    with socket.create_connection((HOST, port), PATIENCE) as peer:
        begun = time.monotonic()
        peer.sendall(request_bytes("POST", "/generate_stream", body))
        received, first = b"", 0.0
        while b"\r\n0\r\n\r\n" not in received:
            more = peer.recv(65536)
            if not more:
                raise ClientError(f"the stream is cut short: {received[-200:]!r}")
            received += more
            if not first and b"data: " in received:
                first = time.monotonic() - begun
    last = json.loads(received.rpartition(b"data: ")[2].partition(b"\n")[0])
    if not received.startswith(b"HTTP/1.1 200 ") or last["usage"]["completion_tokens"] != 4:
        raise ClientError(f"not an answer of 4 tokens: {received[:300]!r}")
    return first


def figures(server: Server) -> dict[str, float]:
    """The server's counters."""
    with Client(HOST, server.port, timeout=60) as client:
        text = client.get("/metrics").body.decode()
    found = re.findall(r"^cllm_(\w+?)(?:_total)? ([0-9.e+]+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def step_seconds(before: dict[str, float], after: dict[str, float]) -> float:
    """Mean of the engine's steps between two readings."""
    parts = ("decode_seconds", "sampling_seconds", "other_step_seconds")
    seconds = sum(after[part] - before[part] for part in parts)
    return seconds / max(1.0, after["steps"] - before["steps"])


def spread(name: str, seconds: list[float]) -> dict[str, Any]:
    """A row of the table: seconds as milliseconds."""
    values = [second * 1e3 for second in seconds]
    return {
        "": name, "count": len(values), "p50": statistics.median(values),
        "p95": percentile(values, 95), "max": max(values),
    }  # fmt: skip


def accounting() -> list[dict[str, Any]]:
    """What counting costs: a request, and a step of eight sequences."""
    digest = sha256(b"key").digest()
    rows = []
    for name, terms in (
        ("request of a key without limits", Terms()),
        ("request of a key with both limits", Terms(10**9, 10**9)),
    ):
        tenants = Tenants(ring=KeyRing((Key("key", digest, terms),), Terms()))
        tenant, response = tenants.find(digest), HttpResponse()
        assert tenant is not None
        count = metered(tenants)
        request = HttpRequest.build("POST", "/generate")
        request.context[TENANT] = tenant
        generation = Request(10)

        def whole(
            count: Middleware = count, request: HttpRequest = request, tenant: Tenant = tenant,
            response: HttpResponse = response, generation: Request = generation,
        ) -> None:  # fmt: skip
            response.headers.clear()
            count(request, lambda request: response)
            tenant.began(generation)
            tenant.ended(generation)

        rows.append({"": name, "us": _best(whole)})
    queue: FairQueue[_Running] = FairQueue()
    running = [_Running(f"tenant {number % 4}") for number in range(8)]
    queue.extend(running)
    for each in running:
        queue.take(each)

    def step() -> None:
        for each in running:
            queue.charge(each.tenant, 2)
        next(queue.claims(8), None)

    rows.append({"": "step of 8 sequences of 4 tenants", "us": _best(step)})
    return rows


class _Running:
    """As much of a sequence as the queue sees."""

    share, priority = EQUAL, 0

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant


def _best(run: Callable[[], None], count: int = 10_000) -> float:
    return min(timeit.repeat(run, number=count, repeat=7)) / count * 1e6


def main() -> None:
    """Parse the command line, measure, report."""
    options = parser(__doc__ or "", EPILOG)
    options.add_argument("--model", type=Path, metavar="FILE", help="default: the built-in model")
    options.add_argument(
        "--parallel", type=positive, default=8, metavar="N", help="sequences; default: 8"
    )
    options.add_argument(
        "--big", type=positive, default=100, metavar="N",
        help="requests that the big client keeps in flight; default: 100",
    )  # fmt: skip
    options.add_argument(
        "--requests", type=positive, default=60, metavar="N",
        help="of the small client, alone and next to the big one; default: 60",
    )  # fmt: skip
    options.add_argument(
        "--warm-up", type=float, default=5.0, metavar="SECONDS",
        help="of the big client before the small one is measured; default: 5",
    )  # fmt: skip
    given = parse(options, big=10, requests=5, warm_up=0.5)
    report = Report("Fair shares")
    arguments = ["--parallel", str(given.parallel), "--ctx-size", "512"]
    if given.model:
        arguments += ["--model", str(given.model)]
    with cllm_server(*arguments) as server:
        for seed in range(3):
            first_token(server.port, -1 - seed)
        alone = [first_token(server.port, seed) for seed in range(given.requests)]
        with big_client(server.port, given.big):
            while figures(server)["queue_depth"] < given.big - given.parallel:
                wait(0.1, "until the big client has all its requests there")
            wait(given.warm_up, "until its first prompts are read")
            before = figures(server)
            beside = [first_token(server.port, 10**6 + n) for n in range(given.requests)]
            after = figures(server)
    step = step_seconds(before, after)
    report.table(
        f"Milliseconds to the first token, {given.parallel} sequences, {given.big} requests of the "
        "big client in flight",
        [spread("small client alone", alone), spread("next to the big one", beside)],
    )
    pauses = after["pauses"] - before["pauses"]
    report.table(
        "Under load",
        [{
            "step, ms": step * 1e3,
            "steps/s of the big client": (after["steps"] - before["steps"]) / sum(beside),
            "pauses": pauses,
            "tokens computed again": after["recomputed_tokens"] - before["recomputed_tokens"],
        }],
    )  # fmt: skip
    for name, of in (("median", statistics.median), ("p95", lambda v: percentile(v, 95))):
        ratio = max(0.0, of(beside) - step) / of(alone)
        what = f"{name}: (next to the big client - one step) / alone at most 1.5"
        report.target(what, ratio, ratio <= 1.5)
    report.table("Accounting, microseconds of one thread (best of 7)", accounting())
    report.write(given.json)
