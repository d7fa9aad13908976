"""The command line as a child process; over 400 lines of output, errors, start and stop."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import pty
import queue
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from cllm.messages import LoadFailed, Message, StopSignal
from cllm.models import demo_path
from cllm.option_table import load_settings
from cllm.program import Program
from cllm.version import __version__
from tests import embedding_models

WAIT = 60.0  # seconds; generous, since the machine may be busy with other tests
LONG = {"prompt": "Hello", "max_tokens": 800, "ignore_eos": True, "temperature": 0.0}


def clean_environment(**more: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("CLLM_")}
    return own | {"PYTHONUNBUFFERED": "1"} | more


def run(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run to the end; for what ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "cllm.main", *argv], env=clean_environment(**environ),
        capture_output=True, text=True, timeout=WAIT, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


def refusal(*argv: str, **environ: str) -> str:
    """Run to a refusal: status 2, one line on standard error and no traceback; returns the line."""
    done = run("--log-level", "error", *argv, **environ)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("cllm: ")
    return line.removeprefix("cllm: ")


class Child:
    """A running `cllm`: its output by lines as they come, its port, its end."""

    def __init__(self, *argv: str, command: list[str] | None = None, **environ: str) -> None:
        self.process = subprocess.Popen(
            [*(command or [sys.executable, "-m", "cllm.main"]), "--port", "0", *argv],
            env=clean_environment(**environ), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.seen: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(stream,), daemon=True)
            for stream in (self.process.stdout, self.process.stderr)
        ]
        for reader in self._readers:
            reader.start()
        self.port = 0

    def _read(self, stream: Any) -> None:
        for line in stream:
            self.lines.put(line.rstrip("\n"))

    def until(self, pattern: str) -> re.Match[str]:
        """The next line that matches; fails after WAIT, or when the child ended without it."""
        limit = time.monotonic() + WAIT
        while True:
            try:
                line = self.lines.get(timeout=0.1)
            except queue.Empty:
                ended = not any(reader.is_alive() for reader in self._readers)
                if (ended and self.lines.empty()) or time.monotonic() > limit:
                    said = "\n".join(self.seen)
                    raise AssertionError(f"no line matched {pattern!r} in:\n{said}") from None
                continue
            self.seen.append(line)
            found = re.search(pattern, line)
            if found:
                return found

    def listening(self) -> Child:
        """Wait until the port is open."""
        self.port = int(self.until(r"listening on https?://127\.0\.0\.1:(\d+)")[1])
        return self

    def ready(self) -> Child:
        """Wait until the model is loaded."""
        self.listening()
        self.until(r"cLLM \S+ serves http")
        return self

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(WAIT)

    def get(self, path: str) -> tuple[int, Any]:
        return self.ask("GET", path)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        with contextlib.closing(self.connection()) as connection:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)

    def refuses_connections(self) -> None:
        """Wait until the port is closed, which is soon after the log says that it stops."""
        limit = time.monotonic() + WAIT
        with contextlib.suppress(ConnectionRefusedError, ConnectionResetError):
            while time.monotonic() < limit:
                socket.create_connection(("127.0.0.1", self.port), timeout=WAIT).close()
            raise AssertionError("the port still listens")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT)
        for reader in self._readers:
            reader.join(WAIT)


Start = Callable[..., Child]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts children and sees to it that none outlives the test."""
    with contextlib.ExitStack() as stack:

        def start_one(*argv: str, **more: Any) -> Child:
            child = Child(*argv, **more)
            stack.callback(child.close)
            return child

        yield start_one


@pytest.fixture
def unreadable_yet(tmp_path: Path) -> Path:
    """A model whose loading lasts: a pipe into which nobody writes."""
    path = tmp_path / "slow.gguf"
    os.mkfifo(path)
    return path


def events_of(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        if line.startswith(b"data: "):
            yield json.loads(line.removeprefix(b"data: "))


# What ends at once


def test_version_names_cllm_and_llama_cpp_python() -> None:
    done = run("--version")
    assert done.returncode == 0
    assert re.fullmatch(
        rf"cllm {re.escape(__version__)}, llama-cpp-python \d\S+, Python \d\S+\n", done.stdout
    )


def test_help_is_on_standard_output_and_needs_no_library() -> None:
    code = (
        "import sys, cllm.main\n"
        "try: cllm.main.main(['--help'])\n"
        "except SystemExit as end: print(end.code, sorted({'llama_cpp', 'numpy', 'yaml', 'tqdm',"
        " 'msgspec', 'prometheus_client'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment(), capture_output=True, text=True,
        timeout=WAIT, check=True,
    )  # fmt: skip
    assert "usage: cllm" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 []"


# Refusals


def test_a_terminal_that_knows_only_ascii_sees_the_help_too() -> None:
    done = run("--help", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--cors-origins" in done.stdout


def test_closed_standard_streams_are_no_hindrance(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = f"exec {sys.executable} -m cllm.main --port 0 --log-file {log} 0<&- 1>&- 2>&-"
    with subprocess.Popen(["bash", "-c", command], env=clean_environment()) as process:
        limit = time.monotonic() + WAIT
        while process.poll() is None and not (log.exists() and "serving" in log.read_text()):
            assert time.monotonic() < limit
            time.sleep(0.05)
        process.terminate()
        assert process.wait(WAIT) == 0, log.read_text()


def test_an_unknown_option() -> None:
    assert refusal("--prot", "1") == 'unknown option "--prot"; did you mean "--port"?'


def test_a_bad_file_of_settings(tmp_path: Path) -> None:
    path = tmp_path / "cllm.yaml"
    path.write_text("max-bdoy: 1")
    assert refusal("--config", str(path)) == (
        f'{path}: max-bdoy: there is no such setting; did you mean "max-body"?'
    )


def test_a_bad_variable() -> None:
    assert "CLLM_PORT" in refusal(CLLM_PORT="http")


def test_settings_that_contradict_each_other() -> None:
    assert "raise --batch-size or lower parallel" in refusal("--batch-size", "4")


def test_a_missing_model(tmp_path: Path) -> None:
    path = tmp_path / "no.gguf"
    for flag in ("--model", "--model-draft"):
        done = run("--port", "0", flag, str(path))
        assert done.returncode == 2
        assert done.stdout == ""
        remedy = "check the path, or download the model first"
        assert done.stderr == f"cllm: {flag}: there is no file {path}; {remedy}\n", "no port before"


def test_a_file_that_is_not_gguf(tmp_path: Path) -> None:
    path = tmp_path / "page.gguf"
    path.write_text("<html>not found</html>")
    assert "give a model in GGUF format" in refusal("--port", "0", "--model", str(path))


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.gguf"
    path.touch()
    assert "empty.gguf" in refusal("--port", "0", "--model", str(path))


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_a_model_cut_short(tmp_path: Path, share: float) -> None:
    whole = demo_path().read_bytes()
    path = tmp_path / "part.gguf"
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "download it again" in refusal("--port", "0", "--model", str(path))


def test_a_damaged_model(tmp_path: Path) -> None:
    whole = demo_path().read_bytes()
    path = tmp_path / "damaged.gguf"
    path.write_bytes(whole[:8] + b"\xff" * 64 + whole[72:])
    assert "damaged.gguf" in refusal("--port", "0", "--model", str(path))


def test_a_folder_as_model(tmp_path: Path) -> None:
    assert "is a directory" in refusal("--port", "0", "--model", str(tmp_path))


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        said = refusal("--port", str(port))
    assert f"127.0.0.1:{port} is in use" in said
    assert "choose another port" in said


def test_an_address_of_another_machine() -> None:
    assert "is not an address of this machine" in refusal("--port", "0", "--host", "192.0.2.1")


def test_more_memory_than_there_is() -> None:
    said = refusal("--port", "0", "--parallel", "256", "--ctx-size", "8000000")
    assert "lower ctx_size, parallel or keep_sequences" in said


def test_a_log_file_that_cannot_be_written(tmp_path: Path) -> None:
    said = refusal("--log-file", str(tmp_path / "no" / "folder.log"))
    assert said.startswith("--log-file: cannot write")


# Starting


def test_the_banner_says_what_is_served_and_why_so_much(start: Start) -> None:
    child = start("--parallel", "3")
    child.ready()
    child.until(r"model +cLLM Stories: qwen3, .* parameters, Q8_0")
    child.until(r"context +3 sequences of 2048 tokens \(what the model was trained for; .*\)")
    child.until(r"threads +\d+ for generation, \d+ for prompts, 16 for HTTP")
    child.until(r"endpoints +/  .*/health  /generate ")
    child.until(r"built-in model. It writes short stories")
    child.until(r"add:  --model FILE\.gguf")
    child.until(rf"curl http://127\.0\.0\.1:{child.port}/generate")


@pytest.mark.parametrize(
    ("model", "path"),
    [
        (demo_path, "/generate"),
        (embedding_models.bert, "/embedding"),
        (lambda: embedding_models.qwen3(demo_path(), "rank"), "/rerank"),
    ],
    ids=["generates", "embeds", "ranks"],
)
def test_the_command_in_the_banner_is_one_that_the_model_answers(
    start: Start, model: Callable[[], Path], path: str
) -> None:
    child = start("--model", str(model())).ready()
    words = shlex.split(child.until(r"curl .*")[0])
    assert words[:3] == ["curl", f"http://127.0.0.1:{child.port}{path}", "-d"]
    with contextlib.closing(child.connection()) as connection:
        # What curl -d says of the body.
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        connection.request("POST", path, words[3], form)
        response = connection.getresponse()
        assert response.status == 200, response.read()


@pytest.mark.parametrize(
    ("argv", "warned"),
    [
        (["--host", "0.0.0.0"], True),
        (["--host", "0.0.0.0", "--api-key", "sk-1"], False),
        (["--host", "127.0.0.2"], False),
    ],
)
def test_a_port_that_strangers_reach_without_a_key_is_warned_of(
    start: Start, argv: list[str], warned: bool
) -> None:
    child = start(*argv)
    header = " -H 'Authorization: Bearer KEY'" if "--api-key" in argv else ""
    child.until(rf"curl http://\S+/generate{header} -d ")
    assert any("require a key with --api-keys-file" in line for line in child.seen) == warned
    assert not any("sk-1" in line for line in child.seen)


def test_the_garbage_collector_leaves_the_loaded_program_alone(start: Start) -> None:
    code = """
import gc, sys
from cllm import main, startup
announce = startup.announce
def told(*about):
    announce(*about)
    print("kept", gc.get_freeze_count(), len(gc.get_objects()), flush=True)
startup.announce = told
sys.exit(main.main())
"""
    child = start(command=[sys.executable, "-c", code])
    kept, others = map(int, child.until(r"^kept (\d+) (\d+)").groups())
    assert kept > 10 * others


def test_a_small_memory_budget_makes_a_smaller_context_and_the_banner_says_so(start: Start) -> None:
    child = start("--memory-budget", "12M")
    child.ready()
    child.until(r"8 sequences of 512 tokens \(of 2048, limited by --memory-budget")


# All that --tune may choose, but for the cache's layout: so it is soon over. Each of these tests
# has a user's cache of its own, in which the preflight of extra_bufts would run again.
TUNE = ["--extra-bufts", "off",
        "--tune", "--parallel", "2", "--threads", "1", "--threads-batch", "1", "--flash-attn", "on",
        "--ubatch-size", "512"]  # fmt: skip


def test_what_is_tuned_is_logged_once_and_the_banner_says_since_when(
    start: Start, tmp_path: Path
) -> None:
    own = {"XDG_CACHE_HOME": str(tmp_path)}
    first = start(*TUNE, **own)
    first.until(r"tuning: measuring which layout is fastest")
    first.until(r"tuning: kv_unified=True takes \d\.\d\d of the time: (taken|left)")
    first.until(r"tuned +(--kv-unified|the defaults are fastest).*measured in \d+(\.\d)? s\)")
    first.port = int(first.until(r"curl http://127\.0\.0\.1:(\d+)/")[1])
    assert first.get("/model/info")[1]["data"]["llama_cpp"]["tuning"]["cached"] is False

    second = start(*TUNE, **own)
    second.until(r"tuning: .*; taken from .*/tuning-[0-9a-f]+\.json")
    second.until(r"tuned +.*from an earlier start\)")
    assert not any("measuring" in line for line in second.seen)


def test_a_signal_while_it_is_tuned_exits_0(start: Start, tmp_path: Path) -> None:
    child = start("--tune", "--extra-bufts", "off", XDG_CACHE_HOME=str(tmp_path))
    child.until(r"tuning: measuring which layout is fastest")
    child.signal(signal.SIGINT)
    assert child.wait() == 0
    child.until("stopped")
    assert not any("Traceback" in line for line in child.seen)


def test_a_model_of_ones_own_is_named(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    shutil.copy(demo_path(), path)
    child = start("--model", str(path), "--ctx-size", "256")
    child.ready()
    child.until(r"8 sequences of 256 tokens \(set by --ctx-size;")
    status, answer = child.get("/model/info")
    assert status == 200
    assert answer["data"]["model_path"] == "mine.gguf"
    assert answer["data"]["llama_cpp"]["ctx_size"] == 256
    assert not any("built-in" in line for line in child.seen)


def test_the_port_listens_and_answers_503_while_the_model_loads(
    start: Start, unreadable_yet: Path
) -> None:
    child = start("--model", str(unreadable_yet)).listening()
    status, answer = child.get("/health")
    assert (status, answer["data"]["status"]) == (503, "loading")
    for method, path in [("GET", "/"), ("GET", "/model/info"), ("POST", "/generate")]:
        status, answer = child.ask(method, path, {"prompt": "x"} if method == "POST" else None)
        assert (status, answer["success"]) == (503, False)
    unreadable_yet.write_bytes(b"not a model")
    child.until("give a model in GGUF format")
    assert child.wait() == 2


def test_a_signal_while_the_model_loads_exits_0(start: Start, unreadable_yet: Path) -> None:
    child = start("--model", str(unreadable_yet)).listening()
    child.signal(signal.SIGINT)
    assert child.wait() == 0
    child.until("stopping while the model is loading")


def test_a_load_that_fails_after_the_signal_does_not_matter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mailbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
    mailbox.put(StopSignal(signal.SIGTERM))
    mailbox.put(LoadFailed(ValueError("cut off")))
    broken = tmp_path / "broken.gguf"
    broken.write_text("no model")
    settings = load_settings(["--port", "0", "--model", str(broken)], {})
    assert Program(settings, mailbox).run() == 0
    assert capsys.readouterr().err == ""


def test_sources_are_weighed_in_the_running_program(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "cllm.yaml"
    path.write_text("parallel: 2\nctx-size: 256\nbatch-size: 1024\n")
    child = start(
        "--config", str(path), "--parallel", "5", CLLM_PARALLEL="4", CLLM_CTX_SIZE="512"
    ).ready()  # fmt: skip
    live = child.get("/model/info")[1]["data"]["llama_cpp"]
    assert (live["parallel"], live["ctx_size"], live["batch_size"]) == (5, 512, 1024)


def test_the_console_script_serves_too(start: Start) -> None:
    script = Path(sys.executable).with_name("cllm")
    child = start(command=[str(script)]).ready()
    assert child.get("/health")[0] == 200
    child.signal(signal.SIGTERM)
    assert child.wait() == 0


def test_a_terminal_sees_a_progress_bar_that_vanishes_and_log_lines_stay_whole(
    tmp_path: Path,
) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cllm.main", "--port", "0", *TUNE],
        env=clean_environment(TERM="xterm", COLUMNS="100", XDG_CACHE_HOME=str(tmp_path)),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs, text=True,
    )  # fmt: skip
    os.close(theirs)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "curl" in line:
                break
        process.send_signal(signal.SIGTERM)
        shown = b""
        with contextlib.suppress(OSError):  # a terminal nobody has open any more reads as EIO
            while piece := os.read(ours, 65536):
                shown += piece
        assert process.wait(WAIT) == 0
    finally:
        process.kill()
        process.wait(WAIT)
        process.stdout.close()
        os.close(ours)
    text = shown.decode()
    assert re.search(r"\rloading +\d+ % \|", text)
    assert re.search(r"\rmeasuring +\d+ % \|", text)
    assert re.search(r"[\r\n]\d{4}-\d\d-\d\d \S+ INFO +cllm\.main  stopped\r\n$", text)


def limited_files(soft: int, hard: int) -> list[str]:
    code = (
        f"import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}));"
        "runpy.run_module('cllm.main', run_name='__main__')"
    )
    return [sys.executable, "-c", code]


def test_the_limit_of_open_files_is_raised_to_hold_the_connections(start: Start) -> None:
    child = start("--max-connections", "2000", command=limited_files(256, 4096)).ready()
    limit, _ = resource.prlimit(child.process.pid, resource.RLIMIT_NOFILE)
    assert limit == 2256
    assert not any("ulimit" in line for line in child.seen)


def test_a_limit_of_open_files_that_cannot_be_raised_is_told(start: Start) -> None:
    child = start(command=limited_files(256, 1024)).ready()
    assert resource.prlimit(child.process.pid, resource.RLIMIT_NOFILE) == (1024, 1024)
    assert any("--max-connections 10000" in line and "ulimit -n" in line for line in child.seen)


# The log


def test_json_log_lines_are_objects_and_the_banner_is_one_of_them(start: Start) -> None:
    child = start("--log-json")
    child.port = int(child.until(r'"listening on https?://127\.0\.0\.1:(\d+)')[1])
    child.until(r'"serving cLLM Stories on http')
    child.get("/health")
    child.signal(signal.SIGTERM)
    assert child.wait() == 0
    child.until('"message": "stopped"')
    lines = [json.loads(line) for line in child.seen]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    (access,) = (line for line in lines if line["logger"] == "cllm.access")
    assert (access["method"], access["path"], access["status"]) == ("GET", "/health", 200)
    assert access["message"].startswith(f"client={access['client']} method=GET path=/health ")


def test_a_log_file_takes_the_log_and_standard_error_stays_empty(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    process = subprocess.Popen(
        [sys.executable, "-m", "cllm.main", "--port", "0", "--log-file", str(path)],
        env=clean_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "curl" in line:
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=WAIT)
    assert (process.returncode, errors) == (0, "")
    log = path.read_text()
    assert "listening on" in log and "serving cLLM Stories" in log and "stopped" in log


def test_the_access_log_can_be_turned_off(start: Start) -> None:
    child = start("--no-access-log").ready()
    child.get("/health")
    child.signal(signal.SIGTERM)
    child.until("cllm.main  stopped")
    assert not any("cllm.access" in line for line in child.seen)


# Stopping


def interrupted_by_its_imports(number: int) -> list[str]:
    """cLLM, which a signal reaches while it imports what reads its options."""
    code = (
        "import os, runpy, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        f"        name == 'cllm.option_table' and os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "runpy.run_module('cllm.main', run_name='__main__')"
    )
    return [sys.executable, "-c", code]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_while_it_imports_its_parts(start: Start, number: int) -> None:
    child = start(command=interrupted_by_its_imports(number))
    child.until("stopped")
    assert child.wait() == 0
    assert not any("Traceback" in line for line in child.seen)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_idle_server_stops_with_status_0(start: Start, number: signal.Signals) -> None:
    child = start().ready()
    child.signal(number)
    assert child.wait() == 0
    child.until(rf"{number.name}: stopping; a second signal ends the process now")


def test_a_signal_that_another_thread_receives_stops_the_server_too(start: Start) -> None:
    child = start().ready()
    pid = child.process.pid
    other = max(int(each.name) for each in Path(f"/proc/{pid}/task").iterdir())
    assert other != pid
    # Linux may choose any thread for a signal to the process; Python's os.kill cannot.
    assert ctypes.CDLL(None).tgkill(pid, other, signal.SIGTERM) == 0
    assert child.wait() == 0


def test_an_unloaded_model_is_loaded_for_a_request_and_no_hindrance_to_the_exit(
    start: Start,
) -> None:
    child = start("--sleep-idle-seconds", "0.1").listening()
    child.until("unloading the model")
    status, answer = child.ask("POST", "/tokenize", {"content": "Hello"})
    assert (status, bool(answer["tokens"])) == (200, True)
    child.until("the model is loaded after")
    child.until("unloading the model")
    while child.get("/props")[1]["is_sleeping"] is False:
        pass  # the line precedes the state
    child.signal(signal.SIGTERM)
    assert child.wait() == 0
    child.until("SIGTERM: stopping while the model is unloaded")


def test_a_request_for_which_the_model_is_being_loaded_is_answered_before_the_exit(
    start: Start,
) -> None:
    child = start("--sleep-idle-seconds", "0.1").listening()
    child.until("unloading the model")
    with contextlib.closing(child.connection()) as connection:
        connection.request("POST", "/v1/completions", json.dumps(LONG | {"max_tokens": 4}))
        child.until("a request came: loading the model")
        child.signal(signal.SIGTERM)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        assert json.loads(response.read())["usage"]["completion_tokens"] == 4
    assert child.wait() == 0
    child.until("stopped")


def test_a_stream_in_flight_is_finished_before_the_exit(start: Start) -> None:
    child = start("--grace", "600", "--context-shift").ready()
    long = LONG | {"max_tokens": 4000}
    with contextlib.closing(child.connection()) as connection:
        connection.request("POST", "/generate_stream", json.dumps(long))
        events = events_of(connection.getresponse())
        next(events)
        child.signal(signal.SIGTERM)
        child.until(r"SIGTERM: stopping; generations in flight \(1\) have 600 s to finish")
        child.refuses_connections()
        *_, last = events
    assert last["done"] is True
    assert last["finish_reason"] == "length"
    assert last["usage"]["completion_tokens"] == long["max_tokens"]
    assert child.wait() == 0


def test_a_stream_past_the_grace_period_ends_with_a_last_event(start: Start) -> None:
    child = start("--grace", "0").ready()
    with contextlib.closing(child.connection()) as connection:
        connection.request("POST", "/generate_stream", json.dumps(LONG))
        events = events_of(connection.getresponse())
        next(events)
        child.signal(signal.SIGTERM)
        *_, last = events
    assert last["done"] is True
    assert child.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_exits_at_once(start: Start, number: signal.Signals) -> None:
    child = start("--grace", "600").ready()
    with contextlib.ExitStack() as stack:
        # A request that never comes to its end: its body is awaited for as long as the grace lasts.
        half = stack.enter_context(
            socket.create_connection(("127.0.0.1", child.port), timeout=WAIT)
        )
        half.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
        assert child.get("/health")[0] == 200  # later than the half request on the same poller
        child.signal(number)
        child.until("stopping; ")
        child.signal(number)
        assert child.wait() == 128 + number


def test_the_keys_are_read_again_on_sighup(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"

    def write(*names: str) -> None:
        lines = (f'[keys.{n}]\nsha256 = "{sha256(n.encode()).hexdigest()}"\n' for n in names)
        file.write_text("".join(lines))

    write("alice", "bob")
    child = start("--api-keys-file", str(file)).ready()

    def status(key: str) -> int:
        with contextlib.closing(child.connection()) as connection:
            connection.request("GET", "/usage", headers={"x-api-key": key})
            return connection.getresponse().status

    assert [status(key) for key in ("alice", "bob", "carol")] == [200, 200, 401]
    write("bob", "carol")
    child.process.send_signal(signal.SIGHUP)
    child.until("SIGHUP: .* has 2 keys")
    assert [status(key) for key in ("alice", "bob", "carol")] == [401, 200, 200]
    file.write_text("[keys.bob]\nsha256 = 3")
    child.process.send_signal(signal.SIGHUP)
    child.until("SIGHUP: --api-keys-file: .* keys.bob.sha256: expected .*; the keys stay")
    assert [status(key) for key in ("alice", "bob", "carol")] == [401, 200, 200]


def test_a_file_of_keys_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    assert refusal("--api-keys-file", str(file)).startswith("--api-keys-file: cannot read")
    file.write_text("[keys.a]\nsha256 = 'x'\nweight = 2")
    assert "keys.a.sha256: expected" in refusal("--api-keys-file", str(file))


def test_networks_of_proxies_that_cannot_be_used() -> None:
    assert "--trusted-proxies" in refusal("--trusted-proxies", "10.0.0.1/8")
    assert "--proxy-protocol needs --trusted-proxies" in refusal("--proxy-protocol")
