"""Options that change how a model file is read or where its weights lie, parsed and checked."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_KEY = 127
"""Bytes of a metadata key, and of a text value (struct llama_model_kv_override)."""

MAX_SCALE = 3.4e38
"""llama.cpp computes with scales of 32 bits."""

_INT64 = 2**63
_KV_FORM = "KEY=TYPE:VALUE with a type of int, float, bool or str"
_TENSOR_FORM = "PATTERN=BUFFER, a regular expression and the name of a buffer type such as CPU"


@dataclass(frozen=True, slots=True)
class LoraFile:
    """The file of a LoRA adapter, and the scale that applies by default."""

    path: Path
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> LoraFile:
        """Parse `FILE` or `FILE:SCALE`. Raises ValueError with the expected form."""
        name, colon, tail = text.rpartition(":")
        try:
            scale = float(tail) if colon and name else None
        except ValueError:  # a part of the name
            scale = None
        if scale is None:
            return cls(Path(text))
        if not abs(scale) <= MAX_SCALE:
            raise ValueError(f"{text!r} is not valid; expected FILE:SCALE with a finite scale")
        return cls(Path(name), scale)


EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""The names of the weights of experts (llama.cpp: LLM_FFN_EXPS_REGEX)."""


@dataclass(frozen=True, slots=True)
class KvOverride:
    """A value of the model's metadata that replaces the file's."""

    key: str
    value: int | float | bool | str

    @classmethod
    def parse(cls, text: str) -> KvOverride:
        """Parse `KEY=TYPE:VALUE`. Raises ValueError with the expected form."""
        key, equals, typed = text.partition("=")
        kind, colon, value = typed.partition(":")
        if not (key and equals and colon) or kind not in _KV_KINDS:
            raise ValueError(f"{text!r} is not valid; expected {_KV_FORM}")
        if len(key.encode()) > MAX_KEY:
            raise ValueError(f"{text!r} has a key of more than {MAX_KEY} bytes")
        read, expected = _KV_KINDS[kind]
        try:
            return cls(key, read(value))
        except (ValueError, KeyError, OverflowError):
            raise ValueError(f"{text!r} is not valid; {kind}: expected {expected}") from None


def _int64(text: str) -> int:
    value = int(text)
    if not -_INT64 <= value < _INT64:
        raise ValueError
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _short(text: str) -> str:
    if len(text.encode()) > MAX_KEY or "\0" in text:
        raise ValueError
    return text


_KV_KINDS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "int": (_int64, "a whole number of 64 bits"),
    "float": (_finite, "a finite number"),
    "bool": ({"true": True, "false": False}.__getitem__, "true or false"),
    "str": (_short, f"a text of at most {MAX_KEY} bytes"),
}


@dataclass(frozen=True, slots=True)
class TensorOverride:
    """The buffer type of the weights whose names contain a match of the pattern."""

    pattern: str
    buffer: str

    @classmethod
    def parse(cls, text: str) -> TensorOverride:
        """Parse `PATTERN=BUFFER`. Raises ValueError with the expected form."""
        pattern, equals, buffer = text.rpartition("=")
        if not (pattern and equals and buffer):
            raise ValueError(f"{text!r} is not valid; expected {_TENSOR_FORM}")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{text!r} has no valid pattern ({error})") from None
        return cls(pattern, buffer)


def experts_on_cpu(all_layers: bool, first_layers: int) -> list[TensorOverride]:
    """The overrides that keep the experts' weights of all or of the first layers on the CPU."""
    patterns = [EXPERTS] if all_layers else []
    patterns += [rf"blk\.{layer}{EXPERTS}" for layer in range(first_layers)]
    return [TensorOverride(pattern, "CPU") for pattern in patterns]


def overridden(metadata: Mapping[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    """A file's metadata with the values that replace its own."""
    given = (KvOverride.parse(text) for text in overrides)
    return {**metadata, **{each.key: each.value for each in given}}
