"""SIGHUP from the first moments of the program on, when there are files to read again and not."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import resource
import shutil
import signal
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from tests.http.http_wire import certificate, client_context, wait_until
from tests.test_https import health
from tests.test_main import LONG, Child, Start, events_of, refusal, start, unreadable_yet

__all__ = ["start", "unreadable_yet"]

CERT, KEY = certificate("localhost")


def command(disposition: str) -> list[str]:
    """`cllm` with what its parent has set for SIGHUP: SIG_DFL, or SIG_IGN as `nohup` does."""
    code = (
        f"import signal, sys; signal.signal(signal.SIGHUP, signal.{disposition});"
        "from cllm.main import main; sys.exit(main())"
    )
    return [sys.executable, "-c", code]


class Starting:
    """A program that has begun, and whose start lasts: it reads a pipe."""

    def __init__(self, start: Start, folder: Path, disposition: str, *argv: str) -> None:
        self.pipe = folder / "keys"
        os.mkfifo(self.pipe)
        self.child: Child = start(
            "--api-key-file", str(self.pipe), *argv, command=command(disposition)
        )
        self.writer = -1
        wait_until(self._is_read, "the program reads the pipe")

    def _is_read(self) -> bool:
        assert self.child.process.poll() is None, self.child.seen
        try:
            self.writer = os.open(self.pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nobody reads
                raise
        return self.writer >= 0

    def hang_up_and_go_on(self) -> Child:
        self.child.signal(signal.SIGHUP)
        try:
            os.write(self.writer, b"sk-1\n")
        except BrokenPipeError:
            pass  # the program has ended
        finally:
            os.close(self.writer)
        return self.child


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, str]:
    file = tmp_path / "keys.toml"
    file.write_text(f'[keys.alice]\nsha256 = "{sha256(b"alice").hexdigest()}"\n')
    return "--api-keys-file", str(file)


def test_a_hangup_while_the_program_starts_reads_the_keys_again(
    start: Start, tmp_path: Path, keys: tuple[str, str]
) -> None:
    child = Starting(start, tmp_path, "SIG_DFL", *keys).hang_up_and_go_on().listening()
    child.until("SIGHUP: .* has 1 keys")
    wait_until(lambda: child.get("/health")[0] == 200, "the model is loaded")


def test_a_hangup_while_the_program_starts_reads_the_certificates_again(
    start: Start, tmp_path: Path
) -> None:
    options = ("--tls-cert", CERT, "--tls-key", KEY)
    child = Starting(start, tmp_path, "SIG_DFL", *options).hang_up_and_go_on().listening()
    child.until("loaded the TLS certificates: localhost")
    assert health(child.port, client_context())[0], "it answers"


def test_a_hangup_while_the_model_is_read_reads_the_keys_again(
    start: Start, keys: tuple[str, str], unreadable_yet: Path
) -> None:
    child = start("--model", str(unreadable_yet), *keys, command=command("SIG_DFL")).listening()
    child.until("loading ")
    child.signal(signal.SIGHUP)
    child.until("SIGHUP: .* has 1 keys")
    assert child.get("/health")[0] == 503


def test_the_keys_are_read_again_also_under_nohup(
    start: Start, tmp_path: Path, keys: tuple[str, str]
) -> None:
    child = Starting(start, tmp_path, "SIG_IGN", *keys).hang_up_and_go_on().ready()
    child.signal(signal.SIGHUP)
    child.until("SIGHUP: .* has 1 keys")
    assert child.get("/health")[0] == 200


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("weight = 1" + 400 * "0", r"keys\.alice\.weight: 10+… is not valid; expected a number"),
        ("queued = " + 5000 * "9", r"keys\.alice\.queued: 9+… is not valid; expected a whole"),
        ("priority = 0x" + 5000 * "f", r"keys\.alice\.priority: 0xf+… is not valid; expected"),
    ],
    ids=["float", "decimal", "hexadecimal"],
)
def test_a_number_that_is_too_large_leaves_the_keys_as_they_are(
    start: Start, keys: tuple[str, str], value: str, told: str
) -> None:
    child = start(*keys).ready()
    with open(keys[1], "a", encoding="utf-8") as file:
        file.write(value)
    child.signal(signal.SIGHUP)
    child.until(f"SIGHUP: --api-keys-file: .* {told}.*; the keys stay as they are")
    assert max(map(len, child.seen)) < 400
    assert child.get("/health")[0] == 200
    assert told_at_start(*keys, told=told)


def told_at_start(*argv: str, told: str) -> bool:
    return re.search(told, refusal(*argv)) is not None


def test_requests_that_wait_get_the_new_terms_of_their_key(
    start: Start, keys: tuple[str, str]
) -> None:
    file = Path(keys[1])
    head = file.read_text()
    file.write_text(f"{head}concurrent = 1\n")
    child = start("--context-shift", *keys).ready()
    with contextlib.ExitStack() as stack:
        streams = []
        for _ in range(2):
            connection = stack.enter_context(contextlib.closing(child.connection()))
            body = json.dumps(LONG | {"max_tokens": 1_000_000})
            connection.request("POST", "/generate_stream", body, {"x-api-key": "alice"})
            streams.append(events_of(connection.getresponse()))
        assert next(streams[0])["done"] is False
        file.write_text(f"{head}concurrent = 2\n")
        child.signal(signal.SIGHUP)
        assert next(streams[1])["done"] is False
        assert next(streams[0])["done"] is False


def test_whatever_is_wrong_with_the_files_the_server_goes_on(
    start: Start, tmp_path: Path, keys: tuple[str, str]
) -> None:
    """No memory for their content; the log says where."""
    own = shutil.copy(CERT, tmp_path)
    child = start("--tls-cert", own, "--tls-key", KEY, *keys).ready()
    resource.prlimit(child.process.pid, resource.RLIMIT_AS, (1 << 40, 1 << 40))
    for file in (own, keys[1]):
        os.truncate(file, 2 << 40)  # takes no space on the disk
    child.signal(signal.SIGHUP)
    child.until("SIGHUP: the certificates could not be read again")
    child.until("MemoryError")
    child.until("SIGHUP: the keys could not be read again")
    child.until("MemoryError")
    assert health(child.port, client_context())[0], "it answers with the old certificate"


def test_a_hangup_without_files_to_read_again_ends_the_program(
    start: Start, tmp_path: Path
) -> None:
    child = Starting(start, tmp_path, "SIG_DFL").hang_up_and_go_on()
    assert child.wait() == -signal.SIGHUP
    child = start(command=command("SIG_DFL")).ready()
    child.signal(signal.SIGHUP)
    assert child.wait() == -signal.SIGHUP


def test_nohup_is_obeyed_without_files_to_read_again(start: Start, tmp_path: Path) -> None:
    child = Starting(start, tmp_path, "SIG_IGN").hang_up_and_go_on().ready()
    child.signal(signal.SIGHUP)
    assert child.get("/health")[0] == 200
    child.signal(signal.SIGTERM)
    assert child.wait() == 0
