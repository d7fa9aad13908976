"""Reads a GGUF file's header: the model's metadata, and whether the file is complete.

llama.cpp trusts what it maps; this finds a file truncated by an interrupted download.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_LONGEST_LIST = 4096  # longer ones are vocabularies, which llama.cpp reads; this only counts them
_MOST_DIMS = 8

# GGUF value types that struct can read. 8 is a string, 9 an array.
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_SPLIT_NAME = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
_RECURRENT = re.compile(r"\.(ssm|shortconv|wkv|kda)\.")  # keys that describe recurrent layers
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class NotGgufError(ValueError):
    """The file has another format, or a version no longer supported."""


class TruncatedError(ValueError):
    """The file is shorter than its header says."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """metadata: key -> value; vocabularies are omitted. quantized: whether some weights are.

    classifies: there is a classification head, which rerankers have.
    """

    metadata: dict[str, Any]
    n_tensors: int
    quantized: bool
    size_bytes: int
    classifies: bool

    @property
    def recurrent(self) -> bool:
        """Whether some layers are recurrent."""
        return any(map(_RECURRENT.search, self.metadata))


def read_header(path: Path) -> GgufHeader:
    """Read the header of a model, and of each further part if it is split over several files.

    Raises NotGgufError, TruncatedError or OSError (a missing part is a FileNotFoundError).
    """
    header = _read_one(path)
    match = _SPLIT_NAME.match(path.name)
    if match is None or int(header.metadata.get("split.count", 1)) <= 1:
        return header
    count = int(match["count"])
    parts = [
        _read_one(path.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf"))
        for number in range(1, count + 1)
    ]
    return GgufHeader(
        parts[0].metadata,
        sum(part.n_tensors for part in parts),
        any(part.quantized for part in parts),
        sum(part.size_bytes for part in parts),
        any(part.classifies for part in parts),
    )


def _read_one(path: Path) -> GgufHeader:
    with path.open("rb") as file:
        start = file.read(8)
        if start[:4] != _MAGIC:
            raise NotGgufError(f"{path.name} does not begin with the GGUF mark")
        if len(start) < 8:
            raise TruncatedError(f"{path.name} ends within its first 8 bytes")
        version = _U32.unpack_from(start, 4)[0]
        if version not in _VERSIONS:
            raise NotGgufError(f"{path.name} is GGUF version {version}; versions 2 and 3 are read")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _Reader(data, path.name).header()
            except (struct.error, IndexError, OverflowError, RecursionError):
                raise TruncatedError(f"{path.name} ends within its header") from None


class _Reader:
    def __init__(self, data: mmap.mmap, name: str) -> None:
        self._data = data
        self._name = name
        self._at = 8

    def header(self) -> GgufHeader:
        n_tensors, n_keys = self._u64(), self._u64()
        metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self._string()
            value = self._value(self._u32())
            if value is not None:
                metadata[key] = value
        quantized, classifies, extent = False, False, 0
        for _ in range(n_tensors):
            name, kind, end = self._tensor()
            classifies = classifies or name.startswith("cls.")
            quantized = quantized or kind not in _PLAIN
            extent = max(extent, end)
        alignment = int(metadata.get("general.alignment", 32)) or 32
        needed = math.ceil(self._at / alignment) * alignment + extent if n_tensors else self._at
        size = len(self._data)
        if size < needed:
            raise TruncatedError(f"{self._name} has {size:,} of {needed:,} bytes")
        return GgufHeader(metadata, n_tensors, quantized, size, classifies)

    def _tensor(self) -> tuple[str, int, int]:
        """The tensor's name, type and the end of its data, relative to the data's start."""
        name = self._string()
        n_dims = self._u32()
        if n_dims > _MOST_DIMS:
            raise TruncatedError(f"{self._name} has a damaged list of tensors")
        elements = math.prod(self._u64() for _ in range(n_dims))
        kind, offset = self._u32(), self._u64()
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            return name, kind, offset  # a type newer than the gguf package; llama.cpp may know it
        return name, kind, offset + elements // block * block_bytes

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        return self._scalar(kind)

    def _array(self) -> list[Any] | None:
        kind, count = self._u32(), self._u64()
        if kind in _SCALARS and count > _LONGEST_LIST:
            self._at += struct.calcsize(_SCALARS[kind]) * count
            return None
        if kind == _STRING and count > _LONGEST_LIST:
            self._skip_strings(count)
            return None
        if count > len(self._data):
            raise IndexError
        return [self._value(kind) for _ in range(count)]

    def _skip_strings(self, count: int) -> None:
        # A large vocabulary has about 300 000, so without a call for each.
        read, data, at = _U64.unpack_from, self._data, self._at
        for _ in range(count):
            at += 8 + read(data, at)[0]
        self._at = at

    def _scalar(self, kind: int) -> Any:
        form = _SCALARS.get(kind)
        if form is None:
            raise TruncatedError(f"{self._name} has a damaged header (value type {kind})")
        value = struct.unpack_from(form, self._data, self._at)[0]
        self._at += struct.calcsize(form)
        return value

    def _string(self) -> str:
        length = self._u64()
        end = self._at + length
        if end > len(self._data):
            raise IndexError
        text = self._data[self._at : end].decode("utf-8", "replace")
        self._at = end
        return text

    def _u32(self) -> int:
        value: int = _U32.unpack_from(self._data, self._at)[0]
        self._at += 4
        return value

    def _u64(self) -> int:
        value: int = _U64.unpack_from(self._data, self._at)[0]
        self._at += 8
        return value


_PLAIN = {
    int(kind)
    for kind in (
        GGMLQuantizationType.F32,
        GGMLQuantizationType.F16,
        GGMLQuantizationType.BF16,
        GGMLQuantizationType.F64,
    )
}
