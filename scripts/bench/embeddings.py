"""Embeddings: texts a second, one by one, from several clients, and many in a request."""

from __future__ import annotations

import argparse
import random
import threading
import time
from pathlib import Path

from .clients.load import Client
from .common import BenchError, Report, parse, parser, positive
from .models.embedding_model import words
from .servers.server import HOST, Server, cllm_server, free_port

EPILOG = """\
examples:
  python -m scripts.bench make-embedding-model minilm-q8_0.gguf
  python -m scripts.bench embeddings --model minilm-q8_0.gguf --llama-server build/bin/llama-server
"""

CLIENTS = 8
TOGETHER = 50  # texts of one request


def texts(count: int, seed: int) -> list[str]:
    """Different texts of 10 to 50 words."""
    chosen = random.Random(seed)
    known = words(5_000)
    return [" ".join(chosen.choices(known, k=chosen.randint(10, 50))) for _ in range(count)]


def ask(server: Server, batches: list[list[str]]) -> None:
    """One request after another on one connection; BenchError if a vector is missing."""
    with Client(HOST, server.port) as client:
        for batch in batches:
            answer = client.post("/v1/embeddings", {"input": batch, "encoding_format": "base64"})
            if answer.status != 200 or len(answer.json()["data"]) != len(batch):
                raise BenchError(f"{server.name} answered {answer.status}: {answer.body[:200]!r}")


def rate(server: Server, clients: int, together: int, count: int, seed: int) -> float:
    """Texts a second."""
    given = texts(count, seed)
    batches = [given[at : at + together] for at in range(0, count, together)]
    failures: list[BaseException] = []

    def work(own: list[list[str]]) -> None:
        try:
            ask(server, own)
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=(batches[number::clients],)) for number in range(clients)
    ]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return count / (time.perf_counter() - began)


def llama_server(program: Path, given: argparse.Namespace) -> Server:
    """llama-server as its README starts it for embeddings."""
    port = free_port()
    command = [
        str(program), "--model", str(given.model), "--host", HOST, "--port", str(port),
        "--embeddings", "--threads", str(given.threads), "--parallel", str(given.parallel),
    ]  # fmt: skip
    return Server("llama-server", command, port, start_timeout=120)


def measure(report: Report, given: argparse.Namespace) -> None:
    """Ask the servers in turns; the median of the rounds."""
    servers = [cllm_server("--model", str(given.model), "--threads", str(given.threads))]
    try:
        if given.llama_server is not None:
            servers.append(llama_server(given.llama_server, given))
        shapes = [(1, 1), (CLIENTS, 1), (1, TOGETHER)]
        rates: dict[tuple[str, int, int], list[float]] = {}
        for number in range(given.rounds + 1):
            for server in servers:
                for clients, together in shapes:
                    found = rate(server, clients, together, given.texts, number)
                    if number:  # the first round warms up
                        rates.setdefault((server.name, clients, together), []).append(found)
        rows = [
            {
                "clients": clients,
                "texts in a request": together,
                **{
                    f"{server.name}, texts/s": sorted(
                        rates[server.name, clients, together]
                    )[given.rounds // 2]
                    for server in servers
                },
            }
            for clients, together in shapes
        ]  # fmt: skip
    finally:
        for server in servers:
            server.close()
    report.table("Texts of 10 to 50 words", rows)


def main() -> None:
    """Parse the command line and measure."""
    options = parser(__doc__ or "", EPILOG)
    options.add_argument("--model", type=Path, required=True, metavar="FILE.gguf")
    options.add_argument("--llama-server", type=Path, metavar="PROGRAM", help="compare with it")
    options.add_argument("--parallel", type=positive, default=16, help="llama-server's slots")
    options.add_argument("--threads", type=positive, default=2, help="of each server (default: 2)")
    options.add_argument("--texts", type=positive, default=400, help="a measurement's length")
    options.add_argument("--rounds", type=positive, default=3, help="turns of each server")
    given = parse(options, texts=50, rounds=1)
    report = Report("Embeddings")
    measure(report, given)
    report.write(given.json)
