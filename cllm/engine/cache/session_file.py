"""Files with a slot's prefix: its tokens and llama.cpp's state, checked when read.

Layout: a line that names the format, a line of JSON (`_Head`), the tokens as 32-bit integers, the
state. A file is written under a temporary name and renamed, so that no reader sees a part of it.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from cllm.engine.errors import EngineError, InvalidRequest
from cllm.engine.llama import Bytes

_FORMAT = b"cLLM prefix 1\n"
_LONGEST_HEAD = 65536  # bytes
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
    head = _Head(identity, len(tokens), state.size, _checksum(tokens, state), salt, list(adapters))
    beside = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        path.parent.mkdir(exist_ok=True)
        with beside.open("wb") as file:
            file.write(_FORMAT)
            file.write(json.dumps(asdict(head)).encode() + b"\n")
            file.write(tokens.tobytes())
            file.write(state.data)
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
            if file.readline(len(_FORMAT)) != _FORMAT:
                raise _refused(path, "a file that cLLM saved")
            head = _head(path, file.readline(_LONGEST_HEAD))
            _check_identity(path, head.identity, identity)
            size = os.fstat(file.fileno()).st_size
            if file.tell() + 4 * head.n_tokens + head.n_state != size:
                raise _refused(path, "a whole file")
            tokens = array("i", file.read(4 * head.n_tokens))
            state = np.fromfile(file, np.uint8)
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


def _head(path: Path, line: bytes) -> _Head:
    try:
        fields: dict[str, Any] = json.loads(line)
        identity = Identity(**fields.pop("identity"))
        adapters = [(str(digest), float(scale)) for digest, scale in fields.pop("adapters", ())]
        head = _Head(identity, **fields, adapters=adapters)
        if not (head.n_tokens > 0 and head.n_state > 0 and isinstance(head.salt, str)):
            raise ValueError
        return head
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _refused(path, "a file that is not damaged") from None


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
