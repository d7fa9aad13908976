"""Files of the disk cache: a prefix's tokens and llama.cpp's state, checked when they are read.

Layout: a line that names the format, a line of JSON (`Head`), the tokens as 32-bit integers, the
state, and a CRC-32 of everything before it. A file is written under a temporary name and renamed,
so that no reader sees a part of it, and only its owner can read it.
"""

from __future__ import annotations

import json
import os
import zlib
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from cllm.engine.llama import Bytes
from cllm.engine.machine.user_cache import replacing

FORMAT = b"cLLM cached prefix 1\n"
_CHUNK = 4 << 20  # bytes between two looks at whether to go on


@dataclass(frozen=True, slots=True)
class Head:
    """What a file holds.

    identity: of the model, layout and build that can restore the state. kind: the form of the
    state, for its reader. scope: a digest of the scope in which the tokens may be reused. whole:
    whether a part of the state is useless. n_state: bytes.
    """

    identity: str
    kind: str
    scope: str
    whole: bool
    n_tokens: int
    n_state: int


class DamagedError(Exception):
    """A file does not hold what it should; the message says what is wrong."""


class StoppedError(Exception):
    """Reading or writing was stopped."""


GoOn = Callable[[], bool]


def write(path: Path, head: Head, tokens: array[int], state: Bytes, go_on: GoOn) -> int:
    """Write a file and return its size in bytes. Raises OSError, or StoppedError after go_on()."""
    with replacing(path) as part, part.open("wb") as file:
        crc = 0
        for piece in (FORMAT, json.dumps(asdict(head)).encode() + b"\n", tokens.tobytes()):
            crc = zlib.crc32(piece, crc)
            file.write(piece)
        for begin in range(0, state.size, _CHUNK):
            if not go_on():
                raise StoppedError
            chunk = state[begin : begin + _CHUNK].data
            crc = zlib.crc32(chunk, crc)
            file.write(chunk)
        file.write(crc.to_bytes(4, "little"))
        return file.tell()


def read_head(path: Path) -> tuple[Head, array[int]]:
    """What a file holds, without its state; only its size is checked.

    Raises DamagedError and OSError.
    """
    with path.open("rb") as file:
        head, tokens, _ = _begin(file)
        return head, tokens


def read(path: Path, head: Head, tokens: array[int], state: Bytes, go_on: GoOn) -> None:
    """Read the state of a file with this head and these tokens into `state`, n_state bytes.

    Raises DamagedError if the file holds anything else, OSError, or StoppedError after go_on().
    """
    with path.open("rb") as file:
        found, found_tokens, crc = _begin(file)
        if found != head or found_tokens != tokens:
            raise DamagedError("it holds another prefix than before")
        for begin in range(0, state.size, _CHUNK):
            if not go_on():
                raise StoppedError
            chunk = state[begin : begin + _CHUNK].data
            if file.readinto(chunk) != chunk.nbytes:
                raise DamagedError("it is truncated")
            crc = zlib.crc32(chunk, crc)
        if file.read() != crc.to_bytes(4, "little"):
            raise DamagedError("its checksum is wrong")


def _begin(file: BinaryIO) -> tuple[Head, array[int], int]:
    """The head, the tokens, and the CRC of all bytes up to there."""
    if file.readline(len(FORMAT)) != FORMAT:
        raise DamagedError("it has another format")
    line = file.readline(4096)
    try:
        head = Head(**json.loads(line))
        numbers = (head.n_tokens, head.n_state)
        texts = (head.identity, head.kind, head.scope)
        if not (all(type(n) is int and n > 0 for n in numbers) and isinstance(head.whole, bool)):
            raise ValueError
        if not all(isinstance(text, str) for text in texts):
            raise ValueError
    except (ValueError, TypeError, RecursionError):
        raise DamagedError("its head is wrong") from None
    size = os.fstat(file.fileno()).st_size
    if file.tell() + 4 * head.n_tokens + head.n_state + 4 != size:
        raise DamagedError("it is truncated")
    held = file.read(4 * head.n_tokens)
    if len(held) != 4 * head.n_tokens:
        raise DamagedError("it is truncated")
    return head, array("i", held), zlib.crc32(held, zlib.crc32(line, zlib.crc32(FORMAT)))
