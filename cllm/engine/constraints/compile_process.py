"""A child process that compiles constraints first; refuses what kills, stalls or fills it.

For one thread at a time, which waits; any thread may call kill().
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

from cllm.engine.constraints.compile_child import MEMORY, constraint_frame
from cllm.engine.constraints.compiling import refused
from cllm.engine.constraints.constraint import Constraint
from cllm.engine.errors import CompilerUnavailable, EngineClosed, EngineError, InvalidRequest
from cllm.engine.machine.child import child_environment, signal_name

COMMAND = (sys.executable, "-m", "cllm.engine.constraints.compile_child")

_START_S = 60.0  # until a child has the vocabulary; 1.5 s for 151 936 tokens on an idle core
_END_S = 5.0  # for the child to exit once its output has ended
_WALL = 4.0  # seconds of wall time per processor second: the machine may be busy
_ANSWER = 64 * 1024  # bytes


class TooSlow(EngineError):  # noqa: N818
    """The child did not finish in time and has ended. certain: it used all its processor time."""

    def __init__(self, certain: bool) -> None:
        self.certain = certain
        super().__init__("compiling takes too long")


class ChildKilled(InvalidRequest):
    """The system killed the child, most likely for memory; a retry may succeed."""


class _GoneError(Exception):
    """The child has ended."""


class _LateError(Exception):
    """The child did not answer in time."""


@dataclass(frozen=True, slots=True)
class _Death:
    """How a child ended: late or by itself, with the constraint or before it was sent."""

    late: bool
    sent: bool
    status: int
    said: str

    @property
    def tells(self) -> bool:
        """Whether the death was caused by the constraint.

        A child exits on purpose with status 0, and the system may kill it at any time.
        """
        return self.late or (self.sent and self.status not in (0, -signal.SIGKILL))


class CompileProcess:
    """Starts a child for the first constraint, and a new one after each death."""

    def __init__(self, vocabulary: Callable[[], bytes], command: Sequence[str] = COMMAND) -> None:
        self._command = command
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._closed = False
        self._ready = False
        self.deaths = 0

    @property
    def pid(self) -> int | None:
        """The child's process id, if there is one."""
        child = self._child
        return None if child is None else child.pid

    def start(self) -> None:
        """Start the child if there is none; it prepares the vocabulary after the return.

        Raises CompilerUnavailable, EngineClosed.
        """
        if self._child is not None and self._child.poll() is None:
            return
        self._end(kill=False)
        self._ready = False
        try:
            self._spawn()
            self._send(self._vocabulary(), time.monotonic() + _START_S)
        except (OSError, ValueError, _GoneError, _LateError) as error:
            said = self._end(kill=True)[1].rpartition("\n")[2]
            raise self._unavailable(said or f"{error}") from None

    def try_out(self, constraint: Constraint, cpu_s: float) -> int:
        """Compile it in the child; return about how many bytes that takes.

        Raises InvalidRequest, TooSlow, CompilerUnavailable, EngineClosed.
        """
        content = constraint_frame(constraint, cpu_s)
        answer = self._ask(content, cpu_s * _WALL)
        if isinstance(answer, _Death) and not answer.tells:
            answer = self._ask(content, cpu_s * _WALL)
        if isinstance(answer, _Death):
            raise self._verdict(constraint, answer)
        if "expected" in answer:
            raise InvalidRequest(constraint.kind, answer["value"], answer["expected"])
        if "memory" in answer:
            raise _too_large(constraint)
        if "failed" in answer:
            raise refused(constraint, f"the compiler failed, {answer['failed']}; simplify it")
        return int(answer["bytes"])

    def kill(self) -> None:
        """End the child, so that its waiting thread continues; start no other. Any thread."""
        with self._lock:
            self._closed = True
            if self._child is not None:
                self._child.kill()

    def close(self) -> None:
        """End the child and wait for its end."""
        self.kill()
        self._end(kill=True)

    def _spawn(self) -> None:
        with self._lock:
            if self._closed:
                raise EngineClosed
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _end
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
                env=child_environment(),
                start_new_session=True,  # only the server gets Ctrl-C
            )
            os.set_blocking(self._pipes(self._child)[0], False)

    @staticmethod
    def _pipes(child: subprocess.Popen[bytes]) -> tuple[int, int]:
        assert child.stdin is not None and child.stdout is not None
        return child.stdin.fileno(), child.stdout.fileno()

    def _send(self, content: bytes, deadline: float) -> None:
        assert self._child is not None
        pipe, rest = self._pipes(self._child)[0], memoryview(content)
        while rest:
            _wait(pipe, select.POLLOUT, deadline)
            try:
                rest = rest[os.write(pipe, rest) :]
            except BlockingIOError:
                continue
            except OSError:
                raise _GoneError("it has ended") from None

    def _receive(self, deadline: float) -> bytes:
        assert self._child is not None
        pipe, line = self._pipes(self._child)[1], b""
        while not line.endswith(b"\n"):
            _wait(pipe, select.POLLIN, deadline)
            more = os.read(pipe, _ANSWER)
            if not more or len(line) > _ANSWER:
                raise _GoneError("it has ended")
            line += more
        return line

    def _ask(self, content: bytes, wall_s: float) -> dict[str, Any] | _Death:
        """The child's answer, or how it ended."""
        self.start()
        deadline, sent = time.monotonic() + wall_s, False
        try:
            if not self._ready:
                self._receive(time.monotonic() + _START_S)
                self._ready, deadline = True, time.monotonic() + wall_s
            self._send(content, deadline)
            sent = True
            answer: dict[str, Any] = json.loads(self._receive(deadline))
            return answer
        except (_GoneError, _LateError, ValueError) as error:
            late = isinstance(error, _LateError)
            status, said = self._end(kill=not isinstance(error, _GoneError))
            if self._closed:
                raise EngineClosed from None
            if not self._ready:
                raise self._unavailable(said.rpartition("\n")[2] or f"{error}") from None
            return _Death(late, sent, status, said)

    def _verdict(self, constraint: Constraint, death: _Death) -> EngineError:
        """The verdict on the constraint after the child's death."""
        if not death.late and (death.status == 0 or not death.sent):
            return self._unavailable("it ends at once")
        self.deaths += 1
        if death.late or death.status == -signal.SIGXCPU:
            return TooSlow(certain=not death.late)
        if "memory allocation of" in death.said:  # Rust's allocator
            return _too_large(constraint)
        if death.status == -signal.SIGKILL:
            error = refused(constraint, "the compiler was killed for memory; simplify it")
            return ChildKilled(error.field, error.value, error.expected)
        how = f"exit status {death.status}" if death.status > 0 else signal_name(-death.status)
        return refused(constraint, f"the compiler crashed, {how}; simplify it")

    def _unavailable(self, why: str) -> EngineError:
        self._end(kill=True)
        if self._closed:
            return EngineClosed()
        return CompilerUnavailable(
            f"constraints cannot be compiled now: the compiler process does not start ({why})"
        )

    def _end(self, kill: bool) -> tuple[int, str]:
        """Wait for the child's end; return its status and what it wrote to its standard error."""
        child, errors = self._child, self._errors
        if child is None or errors is None:
            return 0, ""
        if kill:
            child.kill()
        try:
            status = child.wait(_END_S)
        except subprocess.TimeoutExpired:
            child.kill()
            status = child.wait()
        with self._lock:
            self._child = self._errors = None
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        with errors:
            errors.seek(0)
            return status, errors.read(_ANSWER).decode(errors="replace").strip()


def _too_large(constraint: Constraint) -> InvalidRequest:
    most = MEMORY // 2**20
    return refused(constraint, f"compiling it needs more than {most} MiB; simplify it")


def _wait(pipe: int, event: int, deadline: float) -> None:
    waiting = select.poll()
    waiting.register(pipe, event)
    if not waiting.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise _LateError("it gives no answer")
