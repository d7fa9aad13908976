"""The benchmarks check what they measure; over 400 lines, a few per benchmark.

The smallest runs work, and wrong answers are detected.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cllm.models import demo_path
from scripts.bench.__main__ import COMMANDS
from scripts.bench.busy import BusyProcesses, kept
from scripts.bench.clients.crowd import IdleCrowd, SlowHeaderCrowd
from scripts.bench.clients.load import ClientError, Load, hammer, load_of
from scripts.bench.clients.probe import Probe
from scripts.bench.clients.streams import Call, Stream, read_streams
from scripts.bench.common import BenchError, Report
from scripts.bench.models.embedding_model import Shape, words, write_bert
from scripts.bench.report.comparison import check_targets, ratio, rows
from scripts.bench.report.figure import draw
from scripts.bench.servers import peers
from scripts.bench.servers.contenders import check_shape, judge
from scripts.bench.servers.server import cpu_seconds, settle
from scripts.bench.streams import Outcome, check
from scripts.bench.workloads import GREEDY, SCHEMA, Request, Writer

ROOT = Path(__file__).resolve().parent.parent
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
FAILED = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\nno"
LAST: dict[str, Any] = {
    "id": "a", "token": "", "done": True, "finish_reason": "length",
    "usage": {"completion_tokens": 2},
}  # fmt: skip


def run_script(
    name: str, *arguments: str, timeout: float = 110
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.bench", name, *arguments]
    return subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=timeout
    )


def results(tmp_path: Path, name: str, *arguments: str) -> tuple[dict[str, Any], str]:
    """The JSON and the printed report of a smallest run."""
    file = tmp_path / "results.json"
    done = run_script(name, "--quick", "--json", str(file), *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text()), done.stdout


def rows_of(found: dict[str, Any], heading: str) -> list[dict[str, Any]]:
    tables = [table for name, table in found.items() if name.startswith(heading)]
    assert len(tables) == 1, list(found)
    rows: list[dict[str, Any]] = tables[0]
    return rows


@contextmanager
def answering(*answers: bytes) -> Iterator[int]:
    """A port whose connections give these answers in turn, one for each request; b"" closes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            for answer in answers:
                if not connection.recv(65536) or not answer:
                    return
                connection.sendall(answer)

    def accept() -> None:
        while True:
            try:
                connection, _address = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def stream_of(*events: dict[str, Any]) -> Stream:
    raw = HEAD + chunked(*(b"data: %s\n\n" % json.dumps(event).encode() for event in events))
    return Stream(sent=1.0, raw=bytearray(raw), arrivals=[(len(raw), 2.0)])


def token(text: str, name: str = "a") -> dict[str, Any]:
    return {"id": name, "token": text, "done": False}


# The commands as they are called


def test_the_list_of_commands_says_what_each_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bench"],
        cwd=ROOT, check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    listed = done.stdout.partition("commands:\n")[2].splitlines()[: len(COMMANDS)]
    assert [line.split()[0] for line in listed] == [*COMMANDS]
    assert all(len(line.split()) > 3 for line in listed)


def test_an_unknown_command_is_named_with_those_there_are() -> None:
    done = run_script("speed")
    assert done.returncode == 2
    assert "'speed'" in done.stderr and "embeddings" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_calls_itself_as_it_is_called(name: str) -> None:
    done = run_script(name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: python -m scripts.bench {name} ")


@pytest.mark.parametrize(
    "name",
    [
        "http",
        "streams",
        "serve",
        "curve",
        "embeddings",
        "cache",
        "fairness",
        "page",
    ],
)
def test_help_explains_itself(name: str) -> None:
    done = run_script(name, "--help")
    assert done.returncode == 0
    assert "examples:" in done.stdout and "--quick" in done.stdout


def test_throughput_reports_every_installed_server_and_the_ratios(tmp_path: Path) -> None:
    found, text = results(tmp_path, "http")
    for heading in ("Requests a second", "Latency", "Server's processor time"):
        servers = rows_of(found, heading)
        assert servers[0]["server"] == "cLLM"
        assert all(row["1 conn."] > 0 and row["8 conn."] > 0 for row in servers)
    installed = [peer for peer in peers.NAMES if not peers.missing(peer)]
    if installed:
        assert [row["cLLM against"] for row in rows_of(found, "Ratio")] == installed
    if installed != [*peers.NAMES]:
        assert "left out" in text
    assert "- command: `python -m scripts.bench http --quick" in text
    assert "| server " in text


@pytest.mark.parametrize(
    ("printed", "ms"), [("870.00us", 0.87), ("12.50ms", 12.5), ("1.46s ", 1460.0)]
)
def test_what_wrk_prints_is_read_in_each_unit(printed: str, ms: float) -> None:
    text = f"""\
  Latency Distribution
     50%  210.00us
     75%  300.00us
     99%   {printed}
  1000 requests in 2.00s, 97.66KB read
Requests/sec:    500.00
"""
    assert load_of(text, 100) == Load(500.0, 1000, 0.21, ms)


def test_ordinary_clients_are_served_next_to_attacks(tmp_path: Path) -> None:
    found, text = results(tmp_path, "http", "siege")
    (row,) = rows_of(found, "Ordinary clients during 5 s")
    assert row["ordinary requests"] > 0
    assert row["attacks"] >= 12
    assert row["threads"] == 0
    assert "MISSED" not in text


def test_http_2_streams_are_read_whole(tmp_path: Path) -> None:
    found, _text = results(tmp_path, "http", "http2-streams")
    (row,) = rows_of(found, "40 streams of 50 tokens on 10 connections of HTTP/2")
    assert row["all correct"] == "yes"
    assert row["tokens/s"] > 0


@pytest.mark.skipif(not shutil.which("h2load"), reason="h2load is not installed")
def test_http_2_is_measured_next_to_http_1_1(tmp_path: Path) -> None:
    found, _text = results(tmp_path, "http", "http2", "--no-peers")
    rates = {row["server"]: row["req/s"] for row in rows_of(found, "Requests a second over TLS")}
    assert list(rates) == ["cLLM, HTTP/2, 1 connection", "cLLM, HTTP/1.1, 100 connections"]
    assert min(rates.values()) > 0


def test_crowds_soak_and_start_run_one_after_another(tmp_path: Path) -> None:
    found, _text = results(tmp_path, "http", "idle", "slow", "soak", "start")
    for heading in ("/health with 50 idle", "/health with 20 clients"):
        assert all(row["8 conn. req/s"] > 0 for row in rows_of(found, heading))
    assert [row["requests"] for row in rows_of(found, "Resident memory")] == [*range(0, 501, 50)]
    assert all(
        row["answer s"] >= row["healthy s"] > 0 for row in rows_of(found, "From the command")
    )


@pytest.mark.parametrize("mode", [[], ["--http-only"]], ids=["whole server", "http only"])
def test_streams_are_all_counted_and_correct(tmp_path: Path, mode: list[str]) -> None:
    found, _text = results(tmp_path, "streams", *mode)
    (row,) = rows_of(found, "40 ")
    assert row["streams"] == 40 and row["all correct"] == "yes"
    during = {line[""]: line for line in rows_of(found, "Milliseconds")}["/health, during"]
    assert during["count"] > 0


def test_bursts_are_measured_next_to_an_idle_server(tmp_path: Path) -> None:
    found, _text = results(tmp_path, "streams", "--bursts", "1")
    rows = rows_of(found, "1 bursts of 40 streams")
    assert [row[""] for row in rows] == ["/health", "/health, idle server"]
    assert all(row["count"] > 0 for row in rows)


def test_a_small_client_is_measured_next_to_a_big_one(tmp_path: Path) -> None:
    found, text = results(tmp_path, "fairness", "--parallel", "2")
    alone, beside = rows_of(found, "Milliseconds to the first token")
    assert alone["count"] == beside["count"] == 5 and 0 < alone["p50"] <= alone["max"]
    assert text.count("target: ") == 2
    (load,) = rows_of(found, "Under load")
    assert load["step, ms"] > 0 and load["pauses"] > 0
    assert all(row["us"] > 0 for row in rows_of(found, "Accounting"))


def test_gaps_divides_the_time_between_two_decodes_into_parts(tmp_path: Path) -> None:
    found, _ = results(tmp_path, "gaps", "--requests", "16")
    for size in (40, 400):
        title = f"64 clients, 16 sequences, {size} tokens"
        whole, wall, *parts = rows_of(found, f"Processor time, {title}")
        assert whole["part"] == "all" and wall["part"] == "wall"
        assert sum(part["share %"] for part in parts) == pytest.approx(100)
        assert 0 < whole["p50 ms"] <= whole["p99 ms"] <= whole["max ms"]
        means, *parts = rows_of(found, f"Means in ms, {title}")
        for column in (name for name in means if name != "part"):
            assert sum(part[column] for part in parts) == pytest.approx(means[column])
        groups = rows_of(found, f"By requests that begin or end, {title}")
        assert sum(group["gaps"] for group in groups) > 0


def test_the_cache_is_measured_with_and_without_each_mechanism(tmp_path: Path) -> None:
    found, _ = results(tmp_path, "cache")
    shared, apart = rows_of(found, "8 prompts")
    assert shared["cached"] >= 7 * 200 and apart["cached"] == 0
    without, kept = rows_of(found, "Conversations")
    assert without["restored"] == 0 and kept["restored"] >= 3 * 190
    assert [row["--max-itl-ms"] for row in rows_of(found, "A prompt")] == [60_000, "auto", 250]


def test_workloads_are_served_whole_over_http_and_by_the_engine(tmp_path: Path) -> None:
    names = ["long-prompt", "many", "json", "churn"]
    found, text = results(tmp_path, "serve", "--workload", *names, "ceiling-1")
    for name in names:
        servers = {row["server"]: row for row in rows_of(found, f"{name}: ")}
        assert list(servers) == ["cLLM", "engine without HTTP"]
        assert all(row["failures"] == 0 for row in servers.values())
        spent = rows_of(found, f"{name} steps")
        for row in spent:
            assert row["steps"] > 0
            assert row["llama_decode %"] + row["sampling %"] + row["Python %"] == pytest.approx(100)
    assert found["workloads"]["many"]["cLLM"]["/health p99"][0] > 0
    assert "MISSED" not in text
    assert [row["server"] for row in rows_of(found, "ceiling-1: ")] == ["engine without HTTP"]


def test_conversations_come_back_to_a_server_that_was_restarted(tmp_path: Path) -> None:
    found, _ = results(tmp_path, "serve", "--workload", "restart")
    (row,) = rows_of(found, "restart: ")
    assert (row["server"], row["failures"]) == ("cLLM", 0)


def test_serving_is_measured_next_to_busy_processes(tmp_path: Path) -> None:
    given = ("--workload", "churn", "--server", "engine", "--busy", "0", "1")
    found, _ = results(tmp_path, "serve", *given)
    alone, crowded = (rows for name, rows in found.items() if name.startswith("churn: 8 at a time"))
    assert alone[0]["failures"] == crowded[0]["failures"] == 0
    (row,) = rows_of(found, "churn: tokens/s next to busy")
    assert list(row) == ["server", "0 busy", "1 busy"]
    assert set(found["busy"]["churn"]) == {"0", "1"}


def test_busy_processes_compute_and_end() -> None:
    with BusyProcesses(2) as busy:
        pids = [process.pid for process in busy._running]
        limit = time.monotonic() + 60
        while min(map(cpu_seconds, pids)) < 0.1 and time.monotonic() < limit:
            time.sleep(0.01)
        assert min(map(cpu_seconds, pids)) >= 0.1
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")
def test_a_turn_waits_until_the_last_server_computes_no_more() -> None:
    spins = "import sys, threading as t; e = t.Event()\n"
    spins += "s = t.Thread(target=lambda: any(iter(e.is_set, True))); s.start()\n"
    spins += "print(flush=True); sys.stdin.readline(); e.set(); s.join(); sys.stdin.readline()"
    command = [sys.executable, "-c", spins]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdout.readline()
            assert not settle(child.pid, patience=0.2)
            child.stdin.write(b"\n")
            child.stdin.flush()
            assert settle(child.pid, patience=60)
        finally:
            child.kill()
    assert settle(child.pid) and settle(None)


def test_the_processor_time_of_a_server_includes_its_workers() -> None:
    busy = [sys.executable, "-c", "while True: pass"]
    code = f"import subprocess; print(subprocess.Popen({busy!r}).pid, flush=True); input()"
    server = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    worker = int(server.stdout.readline())
    try:
        limit = time.monotonic() + 60
        while cpu_seconds(worker) < 0.2 and time.monotonic() < limit:
            time.sleep(0.01)
        assert cpu_seconds(server.pid) >= cpu_seconds(worker) - 0.1 >= 0.1
    finally:
        os.kill(worker, signal.SIGKILL)
        server.communicate("")


def test_what_is_kept_is_the_median_of_the_rounds_ratios() -> None:
    found = {
        0: {"cLLM": {"tokens/s": [100.0, 200.0, 100.0]}},
        1: {"cLLM": {"tokens/s": [50.0, 60.0, 60.0]}},
    }
    assert kept(found) == [{"server": "cLLM", "0 busy": 100.0, "1 busy": "60 (0.50×)"}]


def test_embeddings_are_measured_alone_and_together(tmp_path: Path) -> None:
    model = tmp_path / "tiny.gguf"
    write_bert(model, Shape(layers=1, width=32, heads=4, feed_forward=64), words(5_000), "mean")
    found, _ = results(tmp_path, "embeddings", "--model", str(model))
    rows = rows_of(found, "Texts")
    assert [(row["clients"], row["texts in a request"]) for row in rows] == [
        (1, 1),
        (8, 1),
        (1, 50),
    ]
    assert all(row["cLLM, texts/s"] > 0 for row in rows)


def test_speculation_is_measured_by_kind_of_request(tmp_path: Path) -> None:
    kinds = ("typos", "json, constrained")
    model = ("--model", str(demo_path()), "--way", "greedy", "--kind", *kinds)
    found, _ = results(tmp_path, "speculation", *model)
    rows = rows_of(found, "2 streams, 1 round")
    assert [row["kind"] for row in rows] == list(kinds)
    for row in rows:
        assert row["tokens/s"] > 0 and row["speed"] > 0 and row["CPU"] > 0
        assert 0 <= row["equal texts %"] <= 100 and row["tokens a step"] > 0
    assert rows[1]["drafted"] == 0, "a constraint forces tokens by itself"
    assert [len(texts) for texts in found["texts, 2"].values()] == [4, 4]


def test_an_unknown_mode_is_named_with_those_there_are() -> None:
    done = run_script("http", "speed")
    assert done.returncode == 2
    assert "'speed' is none of throughput, tls, log, idle" in done.stderr


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("http", "--rounds"),
        ("streams", "--streams"),
        ("serve", "--rounds"),
    ],
)
def test_a_count_of_nothing_is_refused_before_anything_starts(name: str, option: str) -> None:
    done = run_script(name, option, "0")
    assert done.returncode == 2
    assert f"argument {option}: invalid positive value: '0'" in done.stderr
    assert done.stdout == ""


def test_an_unknown_workload_is_named_with_those_there_are() -> None:
    done = run_script("serve", "--workload", "speed")
    assert done.returncode == 2
    assert "'speed' is no workload; there are seed, shared-prefix" in done.stderr


def test_a_missing_peer_program_is_one_line(tmp_path: Path) -> None:
    done = run_script("serve", "--quick", "--llama-server", str(tmp_path))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and str(tmp_path) in done.stderr


# What the load clients notice


def test_hammer_counts_exactly_what_it_was_asked_for() -> None:
    with answering(*[OK] * 100) as port:
        load = hammer("127.0.0.1", port, [b"GET / HTTP/1.1\r\n\r\n"], 3, count=20)
    assert load.requests == 20


@pytest.mark.parametrize(
    "answers", [(OK, FAILED), (OK, OK + OK), (OK, b"")], ids=["status", "surplus", "close"]
)
def test_hammer_refuses_a_wrong_answer(answers: tuple[bytes, ...]) -> None:
    with answering(*answers) as port, pytest.raises(ClientError):
        hammer("127.0.0.1", port, [b"GET / HTTP/1.1\r\n\r\n"], 1, count=5)


def test_a_probe_reports_what_went_wrong() -> None:
    probe_fails = pytest.raises(ClientError, match="gave 500")
    with answering(OK, OK, FAILED) as port, probe_fails, Probe("127.0.0.1", port) as probe:
        probe._process.join(30)


def test_an_idle_crowd_counts_the_connections_it_lost() -> None:
    # Every second connection sends a request; it is answered and, when it stays, kept.
    with answering(OK, OK) as port, IdleCrowd("127.0.0.1", port, 4) as kept:
        pass
    assert kept.lost == 0
    with answering(OK) as port, IdleCrowd("127.0.0.1", port, 4) as closed:
        for connection in closed._sockets[1::2]:
            connection.settimeout(10)
            assert connection.recv(1, socket.MSG_PEEK) == b""
    assert closed.lost == 2


def test_a_slow_client_that_is_turned_away_comes_back() -> None:
    timeout = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n"
    with answering(timeout) as port:
        crowd = SlowHeaderCrowd("127.0.0.1", port, 2, interval=0.05)
        again = threading.Event()
        join = crowd._join

        def count_joins() -> None:
            join()
            if crowd.turned_away >= 3:
                again.set()

        crowd._join = count_joins  # type: ignore[method-assign]
        with crowd:
            assert again.wait(10)
    assert crowd.timeouts >= 1


# What a stream must be


def test_a_correct_stream_is_counted_with_its_times() -> None:
    outcome = Outcome(0.0, 0, [], [], [])
    check(stream_of(token("x"), token("y"), LAST), 2, "xy", outcome)
    assert outcome.tokens == 2
    assert outcome.first == [1.0] and outcome.gaps == [0.0, 0.0]


@pytest.mark.parametrize(
    "events",
    [
        (token("x"), token("z"), LAST),
        (token("x"), token("y", "b"), LAST),
        (token("x"), LAST, LAST),
        (token("x"), token("y")),
        (token("x"), token("y"), {**LAST, "finish_reason": "cancelled"}),
        (token("x"), token("y"), {**LAST, "usage": {"completion_tokens": 1}}),
    ],
    ids=["text", "id", "two ends", "no end", "reason", "count"],
)
def test_a_wrong_stream_is_refused(events: tuple[dict[str, Any], ...]) -> None:
    with pytest.raises(ClientError):
        check(stream_of(*events), 2, "xy", Outcome(0.0, 0, [], [], []))


def test_each_event_has_the_time_of_its_last_byte() -> None:
    first, second = b'data: {"n":1}\n\n', b'data: {"n":2}\n\n'
    raw = HEAD + chunked(first[:7], first[7:] + second)
    cut = len(HEAD) + len(b"7\r\n") + 7 + 2
    stream = Stream(raw=bytearray(raw), arrivals=[(cut, 1.0), (len(raw) - 3, 2.0), (len(raw), 3.0)])
    events, times = stream.events()
    assert events == [b'{"n":1}', b'{"n":2}']
    assert times == [2.0, 2.0]


@pytest.mark.parametrize(
    "raw",
    [
        FAILED,
        HEAD + chunked(b'data: {"n":1}\n'),
        HEAD + chunked(b'event: x\n\ndata: {"n":1}\n\n'),
        HEAD + b"5\r\nlonger than five\r\n0\r\n\r\n",
    ],
    ids=["status", "cut short", "no data", "chunk size"],
)
def test_a_malformed_stream_is_refused(raw: bytes) -> None:
    with pytest.raises(ClientError):
        Stream(raw=bytearray(raw), arrivals=[(len(raw), 1.0)]).events()


def read(port: int, *scripts: list[Call], **options: Any) -> list[list[Stream]]:
    return read_streams("127.0.0.1", port, scripts, progress=lambda: None, silence=10.0, **options)


def test_streams_that_fall_silent_are_given_up() -> None:
    with answering(HEAD, b"") as port, pytest.raises(ClientError, match="1 streams silent"):
        read_streams("127.0.0.1", port, [[Call(b"x")]], silence=0.2, progress=lambda: None)


def test_a_script_goes_on_over_the_same_connection() -> None:
    first, second = (HEAD + chunked(b"data: %d\n\n" % number) for number in (1, 2))
    with answering(first, second) as port:
        (script,) = read(port, [Call(b"x"), Call(b"y")])
    assert [stream.events()[0] for stream in script] == [[b"1"], [b"2"]]


def test_a_refusal_ends_a_stream_and_the_script_goes_on() -> None:
    with answering(FAILED, FAILED) as port:
        (script,) = read(port, [Call(b"x"), Call(b"y")])
    assert [stream.raw for stream in script] == [FAILED, FAILED]


def test_a_connection_closed_between_two_responses_is_made_anew() -> None:
    with answering(OK) as port:
        (script,) = read(port, [Call(b"x"), Call(b"y"), Call(b"z")])
    assert [stream.raw for stream in script] == [OK, OK, OK]


def test_a_close_within_a_response_breaks_it_and_the_script_goes_on() -> None:
    with answering(HEAD) as port:
        (script,) = read(port, [Call(b"x"), Call(b"y")])
    assert [(bytes(stream.raw), stream.broken) for stream in script] == [(HEAD, True), (HEAD, True)]


def test_a_client_leaves_after_so_many_events_and_comes_back_on_a_new_connection() -> None:
    unended = HEAD + b"1b\r\ndata: 1\n\ndata: 2\n\ndata: 3\n\n"
    with answering(unended, b"") as port:
        (script,) = read(port, [Call(b"x", leave_after=2), Call(b"y", leave_after=3)])
    assert [stream.left for stream in script] == [True, True]


def test_late_scripts_begin_when_all_others_have_received_something() -> None:
    answer = HEAD + chunked(b"data: 1\n\n")
    with answering(answer, answer) as port:
        early, other, late = read(
            port, [Call(b"x")], [Call(b"x")], clients=2, late=[[Call(b"y"), Call(b"y")]]
        )
    assert len(late) == 2
    assert late[0].sent >= max(early[0].arrivals[0][1], other[0].arrivals[0][1])


# What an answer of a server must be


def completion(*texts: str, finish: str = "length", **usage: int) -> list[dict[str, Any]]:
    """The events of /v1/completions."""

    def event(text: str, reason: str | None) -> dict[str, Any]:
        return {"id": "a", "choices": [{"index": 0, "text": text, "finish_reason": reason}]}

    ended = {"id": "a", "choices": [], "usage": {"completion_tokens": len(texts), **usage}}
    return [*(event(text, None) for text in texts), event("", finish), ended]


def answered(request: Request, events: list[dict[str, Any]], done: bytes = b"[DONE]") -> Stream:
    data = [*(json.dumps(event).encode() for event in events), done]
    raw = HEAD + chunked(*(b"data: %s\r\n\r\n" % each for each in data))
    return Stream(sent=1.0, raw=bytearray(raw), arrivals=[(len(raw), 2.0)])


TWO = Request("x", 2, GREEDY)
THING = {"name": "abcd", "kind": "place", "size": 7, "known": True, "tags": ["ab", "cd"]}


def test_a_right_answer_counts_with_the_time_of_each_piece() -> None:
    answer = judge(TWO, answered(TWO, completion("a", "b")))
    assert (answer.fault, answer.tokens, answer.times) == (None, 2, [2.0, 2.0])


@pytest.mark.parametrize(
    ("events", "done"),
    [
        (completion("a", "b"), b"{}"),
        (completion("a", "b", finish="stop"), b"[DONE]"),
        (completion("a", "b", completion_tokens=1), b"[DONE]"),
        ([*completion("a", "b"), {"id": "b", "choices": []}], b"[DONE]"),
        ([{"error": {"message": "no"}}], b"[DONE]"),
        ([{"id": "a"}], b"[DONE]"),
    ],
    ids=["no end", "reason", "count", "id", "error", "no choices"],
)
def test_a_wrong_answer_is_a_failure(events: list[dict[str, Any]], done: bytes) -> None:
    assert judge(TWO, answered(TWO, events, done)).fault


def test_a_server_without_ignore_eos_may_stop_early() -> None:
    stream = answered(TWO, completion("a", finish="stop", completion_tokens=1))
    answer = judge(TWO, stream, may_stop=True)
    assert (answer.fault, answer.tokens, judge(TWO, stream).fault is None) == (None, 1, False)


def test_json_must_have_the_shape_asked_for() -> None:
    request = Request("x", 9, GREEDY, json=True)
    right = completion(json.dumps(THING), finish="stop")
    assert judge(request, answered(request, right)).fault is None
    assert judge(request, answered(request, completion("{}", finish="stop"))).fault
    check_shape(THING, SCHEMA)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "abc"}, {"kind": "idea"}, {"size": 1000}, {"size": True}, {"known": 1},
        {"tags": ["ab"]}, {"tags": ["ab", "c"]}, {"more": 1},
    ],
)  # fmt: skip
def test_another_shape_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ClientError):
        check_shape({**THING, **change}, SCHEMA)


def test_ratios_are_medians_of_rounds() -> None:
    found = {
        "cLLM": {"tokens/s": [2.0, 4.0, 9.0], "failures": [1.0, 0.0, 1.0]},
        "llama-server": {"tokens/s": [1.0, 4.0, 3.0], "failures": [0.0, 0.0, 0.0]},
    }
    assert ratio(found, "cLLM", "llama-server", "tokens/s") == 2.0
    assert ratio(found, "cLLM", "xllamacpp", "tokens/s") is None
    assert rows(found) == [
        {"server": "cLLM", "tokens/s": "4 (2.00×)", "failures": 2},
        {"server": "llama-server", "tokens/s": "3", "failures": 0},
    ]


def test_a_target_that_is_missed_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("x")
    found = {
        "cLLM": {"tokens/s": [9.0], "ITL p99": [6.0], "failures": [0.0]},
        "llama-server": {"tokens/s": [9.0], "ITL p99": [10.0], "failures": [1.0]},
    }
    check_targets(report, "long-prompt", found, [])
    check_targets(report, "seed", found, [{"where": "cLLM", "Python %": 2.0}])
    assert report.missed == [
        "long-prompt: ITL p99 of cLLM at most 0.5 × llama-server",
        "long-prompt: no failures of llama-server",
        "seed: tokens/s of cLLM at least 1.05 × llama-server",
        "seed: no failures of llama-server",
    ]
    said = capsys.readouterr().out
    assert "measured 0.6: MISSED" in said
    assert "long-prompt: tokens/s of cLLM at least 1 × llama-server: measured 1: met" in said


def test_the_picture_has_every_workload_and_server(tmp_path: Path) -> None:
    one = {"tokens/s": [2.0], "TTFT p50": [3.0], "ITL p99": [4.0]}
    results = {"seed": {"cLLM": one, "llama-server": one}, "many": {"cLLM": one}}
    draw(results, "llama-server", tmp_path / "picture.svg")
    drawn = (tmp_path / "picture.svg").read_text()
    assert "seed" in drawn and "cLLM" in drawn
    assert "many" not in drawn  # there is nothing to compare with
    with pytest.raises(BenchError):
        draw({"many": {"cLLM": one}}, "llama-server", tmp_path / "none.svg")


def test_texts_have_about_the_tokens_asked_for_and_are_the_same_for_the_same_seed() -> None:
    writer = Writer(demo_path())
    text = writer.seed("a").text(200)
    assert 180 <= writer.tokens(text) <= 220
    assert writer.seed("a").text(200) == text
    assert writer.seed("b").text(200) != text
