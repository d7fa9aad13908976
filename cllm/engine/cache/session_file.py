"""Files with a slot's prefix: its tokens and llama.cpp's state, checked when read.

Layout: that of llama.cpp (`llama_state_seq_save_file`) with llama-server's list of tokens in it, so
that its programs read the file too: magic, version, number of words; the words; the state. Ours
follows: JSON (`_Head`), its size and checksum, and a mark. llama-server's older list, which is the
tokens alone, is read as well. A file is written under a temporary name and renamed, so that no
reader sees a part of it.
"""

from __future__ import annotations

import json
import os
import re
import struct
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np

from cllm.engine.errors import EngineError, InvalidRequest
from cllm.engine.llama import Bytes

_START = struct.Struct("<3I")  # magic, version, number of words
_MAGIC, _VERSION = 0x67677371, 3  # LLAMA_STATE_SEQ_MAGIC, LLAMA_STATE_SEQ_VERSION
_LIST = struct.Struct("<i2I")  # before the tokens: no token, version, number of tokens
_LIST_MARK = (-1, 1)  # LLAMA_TOKEN_NULL, SERVER_TOKENS_STATE_VERSION
_NO_MEDIA = struct.pack("<I", 0)  # after them: how many images
_END = struct.Struct("<2I8s")  # size and checksum of the head, mark
_MARK = b"cLLM 1\r\n"
_LONGEST_HEAD = 65536  # bytes
_IN_MEMORY = 8  # bytes that a state begins with in memory, and not in a file: magic, sequence
_NAME = re.compile(r"[^\W_][\w.+=@,-]{0,199}")


@dataclass(frozen=True, slots=True)
class Identity:
    """The model and layout of a saved state; restoring needs the same ones.

    options: those that change what is computed (EngineConfig.alterations).
    """

    model: str
    layout: str
    cache_type_k: str
    cache_type_v: str
    options: str = ""


@dataclass(frozen=True, slots=True)
class _Head:
    identity: Identity
    n_tokens: int
    n_state: int
    crc32: int
    begin: str
    salt: str = ""
    adapters: list[tuple[str, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds. size: in bytes. salt: of the scope in which the tokens were computed.

    adapters: the LoRA adapters of that scope, by the digests of their files, and their scales.
    """

    tokens: array[int]
    state: Bytes
    size: int
    salt: str
    adapters: list[tuple[str, float]]


def checked_name(name: object) -> str:
    """A file name that stays in its directory. Raises InvalidRequest."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        expected = "a file name of letters, digits and ._+=@,- that begins with a letter or digit"
        raise InvalidRequest("filename", name, expected)
    return name


def write(
    path: Path,
    identity: Identity,
    tokens: array[int],
    state: Bytes,
    salt: str = "",
    adapters: Sequence[tuple[str, float]] = (),
) -> int:
    """Write a file, and its folder, and return its size in bytes.

    Raises EngineError with the system's reason.
    """
    begin = state[:_IN_MEMORY].tobytes().hex()
    checksum = _checksum(tokens, state)
    head = _Head(identity, len(tokens), state.size, checksum, begin, salt, list(adapters))
    beside = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        path.parent.mkdir(exist_ok=True)
        with beside.open("wb") as file:
            words = _LIST.pack(*_LIST_MARK, len(tokens)) + tokens.tobytes() + _NO_MEDIA
            file.write(_START.pack(_MAGIC, _VERSION, len(words) // 4) + words)
            file.write(state[_IN_MEMORY:].data)
            last = json.dumps(asdict(head)).encode()
            file.write(last + _END.pack(len(last), zlib.crc32(last), _MARK))
            written = file.tell()
        os.replace(beside, path)
        return written
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise EngineError(f"cannot write {path.name}: {error.strerror}") from None


def read(path: Path, identity: Identity) -> Content:
    """Read a file.

    Raises InvalidRequest if it is missing, is damaged or was saved under another identity.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            end, head = _head(path, file, size)
            _check_identity(path, head.identity, identity)
            file.seek(0)
            magic, version, n_words = _START.unpack(file.read(_START.size))
            if (magic, version) != (_MAGIC, _VERSION):
                raise _refused(path, f"a state file of version {_VERSION} of llama.cpp")
            if _START.size + 4 * n_words + head.n_state - _IN_MEMORY != end:
                raise _refused(path, "a file that is not damaged")
            tokens = _tokens(path, file.read(4 * n_words), head.n_tokens)
            state = np.empty(head.n_state, np.uint8)
            state[:_IN_MEMORY] = list(bytes.fromhex(head.begin))
            file.readinto(state[_IN_MEMORY:].data)
    except FileNotFoundError:
        raise _refused(path, "a file in --slot-save-path") from None
    except OSError as error:
        raise EngineError(f"cannot read {path.name}: {error.strerror}") from None
    except MemoryError:
        raise EngineError(f"cannot read {path.name}: not enough memory") from None
    if _checksum(tokens, state) != head.crc32:
        raise _refused(path, "a file that is not damaged")
    return Content(tokens, state, size, head.salt, head.adapters)


def _checksum(tokens: array[int], state: Bytes) -> int:
    return zlib.crc32(state.data, zlib.crc32(tokens))


def _head(path: Path, file: BinaryIO, size: int) -> tuple[int, _Head]:
    """Where the head begins, and the head."""
    end = size - _END.size
    if end < _START.size:
        raise _refused(path, "a whole file that cLLM saved")
    file.seek(end)
    length, crc32, mark = _END.unpack(file.read(_END.size))
    if mark != _MARK or length > min(_LONGEST_HEAD, end - _START.size):
        raise _refused(path, "a whole file that cLLM saved")
    file.seek(end - length)
    text = file.read(length)
    if zlib.crc32(text) != crc32:
        raise _refused(path, "a file that is not damaged")
    try:
        fields: dict[str, Any] = json.loads(text)
        identity = Identity(**fields.pop("identity"))
        adapters = [(str(digest), float(scale)) for digest, scale in fields.pop("adapters", ())]
        head = _Head(identity, **fields, adapters=adapters)
        if not (head.n_tokens > 0 and head.n_state > _IN_MEMORY and isinstance(head.salt, str)):
            raise ValueError
        if len(bytes.fromhex(head.begin)) != _IN_MEMORY:
            raise ValueError
        return end - length, head
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _refused(path, "a file that is not damaged") from None


def _tokens(path: Path, words: bytes, count: int) -> array[int]:
    """The tokens of llama-server's list of either kind; their checksum is checked later."""
    size = 4 * count
    if len(words) == _LIST.size + size + len(_NO_MEDIA):
        begins = _LIST.unpack_from(words) == (*_LIST_MARK, count)
        if begins and words.endswith(_NO_MEDIA):
            return array("i", words[_LIST.size : _LIST.size + size])
    if len(words) == size:
        return array("i", words)
    raise _refused(path, "a file with a list of tokens alone")


def _check_identity(path: Path, saved: Identity, here: Identity) -> None:
    if saved.model != here.model:
        raise _refused(path, "a file saved with the loaded model; it was saved with another")
    for name, value in asdict(here).items():
        if getattr(saved, name) != value:
            found = getattr(saved, name) or "none"
            expected = f"a file saved with {name} {value or 'none'}; it was with {found}"
            raise _refused(path, expected)


def _refused(path: Path, expected: str) -> InvalidRequest:
    return InvalidRequest("filename", path.name, expected)
