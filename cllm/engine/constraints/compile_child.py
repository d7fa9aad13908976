"""The child process that compiles a request's constraint before the server does.

A grammar may crash llguidance, or take minutes or gigabytes: only this process then dies.
Protocol, all on pipes: the server writes frames (four bytes of length, little-endian, then the
content): the vocabulary, then one frame of JSON for each constraint; the child answers each with
a line of JSON, the vocabulary with `{}`. At the end of its input the server is gone, and the child
exits. It imports neither llama.cpp nor numpy.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

from llguidance import LLTokenizer, TokenizerWrapper

from cllm.engine.constraints.compiling import compile_constraint
from cllm.engine.constraints.constraint import Constraint
from cllm.engine.errors import InvalidRequest, shortened

MEMORY = 384 * 2**20
"""Bytes that compiling may add to the address space; a usual constraint takes about a megabyte."""

_KEPT = 128 * 2**20  # bytes of growth since the start at which the child is replaced
_STACK = 4 * 2**20  # bytes; a server thread has 8 MiB, or half of that if the limit is lower
_MOST_TEXT = 2000  # characters of an error, which may quote a constraint
_LENGTH = struct.Struct("<I")

Compile = Callable[[Constraint, LLTokenizer], Any]


def frame(content: bytes) -> bytes:
    """One frame, as the server writes it."""
    return _LENGTH.pack(len(content)) + content


def vocabulary_frame(pieces: Sequence[bytes], eos: Sequence[int]) -> bytes:
    """The first frame: the bytes of all tokens, and which of them end a text."""
    head = json.dumps({"lengths": [len(piece) for piece in pieces], "eos": list(eos)}).encode()
    return frame(frame(head) + b"".join(pieces))


def constraint_frame(constraint: Constraint, cpu_s: float) -> bytes:
    """A constraint to compile, with its limit of processor seconds."""
    job = {"kind": constraint.kind, "source": constraint.source, "cpu_s": cpu_s}
    return frame(json.dumps(job).encode())


class _Vocabulary(TokenizerWrapper):
    """Tokens by their bytes. A text becomes the longest tokens that match: any split works here."""

    def __init__(self, content: bytes) -> None:
        begin = _LENGTH.size + _LENGTH.unpack_from(content)[0]
        head = json.loads(content[_LENGTH.size : begin])
        self.tokens = []
        for length in head["lengths"]:
            self.tokens.append(content[begin : begin + length])
            begin += length
        self._eos: list[int] = head["eos"]
        self.eos_token_id = self._eos[0] if self._eos else 0
        self.bos_token_id = None
        self.special_token_ids = []
        self.is_tokenizer_wrapper = True
        self._tokenizer: LLTokenizer | None = None

    def __call__(self, text: str) -> list[int]:
        return [] if self._tokenizer is None else self._tokenizer.greedy_tokenize(text)

    def tokenizer(self) -> LLTokenizer:
        """For llguidance."""
        self._tokenizer = LLTokenizer(self, eos_token=self._eos or None)
        self.tokens = []
        return self._tokenizer


class Child:
    """Reads on the main thread, so that it sees the end of its input; compiles on another."""

    def __init__(self, compile: Compile = compile_constraint) -> None:
        self._compile = compile
        self._input = sys.stdin.buffer
        self._output = os.dup(1)
        os.dup2(2, 1)  # output of a library is not an answer
        self._jobs: SimpleQueue[dict[str, Any]] = SimpleQueue()

    def run(self) -> None:
        """Serve until the input ends."""
        _give_way()
        content = _read(self._input)
        if content is None:
            return
        tokenizer = _Vocabulary(content).tokenizer()
        del content
        _limit_memory()
        threading.stack_size(_stack())
        thread = threading.Thread(target=self._work, args=(tokenizer,), daemon=True)
        thread.start()
        self._answer({})
        while (content := _read(self._input)) is not None:
            self._jobs.put(json.loads(content))
        os._exit(0)  # even while compiling a constraint

    def _work(self, tokenizer: LLTokenizer) -> None:
        before = _resident()
        while True:
            job = self._jobs.get()
            os.ftruncate(2, 0)  # after a crash the file is about this constraint
            os.lseek(2, 0, os.SEEK_SET)
            _limit_time(job["cpu_s"])
            self._answer(self._tried(job, tokenizer))
            if _resident() > before + _KEPT:
                os._exit(0)

    def _tried(self, job: dict[str, Any], tokenizer: LLTokenizer) -> dict[str, Any]:
        before = _resident()
        try:
            copy = self._compile(Constraint(job["kind"], job["source"]), tokenizer).deep_copy()
            copy.compute_bitmask()
            copy.compute_ff_bytes()
            return {"bytes": max(0, _resident() - before)}
        except InvalidRequest as error:
            return {"value": shortened(error.value), "expected": error.expected[:_MOST_TEXT]}
        except MemoryError:
            return {"memory": True}
        except BaseException as error:  # a panic of llguidance is not an Exception
            return {"failed": f"{type(error).__name__}: {error}"[:200]}

    def _answer(self, answer: dict[str, Any]) -> None:
        os.write(self._output, json.dumps(answer).encode() + b"\n")


def _read(source: BinaryIO) -> bytes | None:
    head = source.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    content = source.read(length)
    return content if len(content) == length else None


def _give_way() -> None:
    """Leave no core file, and be the first process killed when memory runs out."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # not Linux
        Path("/proc/self/oom_score_adj").write_text("1000")


def _limit_memory() -> None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return  # not Linux
    most = pages * resource.getpagesize() + MEMORY
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _limit_time(cpu_s: float) -> None:
    """End the process with SIGXCPU `cpu_s` processor seconds from now, rounded up."""
    most = int(time.process_time() + cpu_s) + 1
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (most, hard))


def _stack() -> int:
    """Less than any thread of the server has: what compiles here does not overflow there."""
    soft = resource.getrlimit(resource.RLIMIT_STACK)[0]
    default = 2 * 2**20 if soft == resource.RLIM_INFINITY else soft  # glibc's pthread_create
    page = resource.getpagesize()
    return max(256 * 1024, min(_STACK, default // 2) // page * page)


def _resident() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * resource.getpagesize()


if __name__ == "__main__":
    Child().run()
