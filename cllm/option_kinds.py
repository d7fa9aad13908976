"""Kinds of option values: how each is parsed from text or YAML, bounded, shown and explained."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

_ON = {"on", "true", "yes", "1"}
_OFF = {"off", "false", "no", "0"}
_SHOWN = 80  # characters of a value in an error message
_LARGEST = (1 << 63) - 1  # where there is no other bound
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True, slots=True)
class Kind:
    """How one sort of value is read and shown.

    `parse` takes a string (command line, environment) or a YAML scalar or list, and raises
    ValueError with the expected form.
    """

    metavar: str
    parse: Callable[[object], Any]
    show: Callable[[Any], str] = str
    choices: tuple[str, ...] = ()
    is_flag: bool = False
    is_list: bool = False  # repeating the option adds values
    is_secret: bool = False  # neither shown nor repeated in an error


def text(metavar: str = "TEXT") -> Kind:
    """Any non-empty text."""

    def parse(raw: object) -> str:
        if isinstance(raw, (str, int, float)) and not isinstance(raw, bool):
            word = _word(raw, "text")
            if word.strip():
                return word
        raise ValueError("expected text")

    return Kind(metavar, parse, lambda value: "" if value is None else str(value))


def path(metavar: str = "FILE") -> Kind:
    """A file name; `~` is the home directory."""
    plain = text(metavar)
    return Kind(metavar, lambda raw: _file(plain.parse(raw)), plain.show)


def _file(name: str) -> str:
    """The name with `~` expanded. Raises ValueError for one that the system cannot take."""
    with suppress(UnicodeEncodeError):
        if b"\0" not in os.fsencode(name):
            return os.path.expanduser(name)
    raise ValueError("expected a file name")


def integer(low: int, high: int | None = None, *, auto: bool = False) -> Kind:
    """A whole number from `low` to `high`; `auto` allows the word for None."""

    def convert(raw: object) -> int:
        if isinstance(raw, str):
            return int(raw)
        if isinstance(raw, int) and not isinstance(raw, bool):
            return raw
        raise ValueError

    return _number("N", convert, low, high, "a whole number", str, auto)


def seconds(low: float, high: float | None = None) -> Kind:
    """A duration in seconds."""

    def convert(raw: object) -> float:
        if isinstance(raw, bool) or not isinstance(raw, (str, int, float)):
            raise ValueError
        return float(raw)

    return _number("SECONDS", convert, low, high, "a number of seconds", lambda v: f"{v:g}", False)


def number(*, zero_is_auto: bool = False) -> Kind:
    """A finite number of at least 0, or auto for None; a negative one is auto, as in llama.cpp.

    zero_is_auto: 0 is auto as well, and a negative number is an error.
    """
    least = "above 0" if zero_is_auto else "of at least 0"

    def parse(raw: object) -> float | None:
        if raw is None or raw == "auto":
            return None
        with suppress(ValueError, OverflowError):
            if isinstance(raw, (str, int, float)) and not isinstance(raw, bool):
                value = float(raw)
                if value == 0 and zero_is_auto:
                    return None
                if value < 0 and not zero_is_auto and math.isfinite(value):
                    return None
                if value >= 0 and math.isfinite(value):
                    return value
        raise ValueError(f"expected a number {least}, or auto")

    return Kind("N", parse, lambda value: "auto" if value is None else f"{value:g}")


def gpu_layers() -> Kind:
    """A number of layers; `all` is -1, `auto` None."""
    plain = integer(-1, auto=True)

    def parse(raw: object) -> int | None:
        if raw == "all":
            return -1
        try:
            layers: int | None = plain.parse(raw)
        except ValueError:
            raise ValueError("expected a number of layers, all or auto") from None
        return layers

    return Kind("N", parse, lambda value: "all" if value == -1 else plain.show(value))


def shares() -> Kind:
    """Numbers of at least 0, separated by commas or slashes, or a YAML list of them."""

    def parse(raw: object) -> tuple[float, ...]:
        items = raw if isinstance(raw, list) else [raw]
        with suppress(ValueError, RecursionError):
            words = [word for item in items for word in re.split("[,/]+", str(item).strip(",/ "))]
            found = tuple(float(word) for word in words if word)
            if all(math.isfinite(share) and share >= 0 for share in found):
                return found
        raise ValueError("expected numbers of at least 0, separated by commas, such as 3,1")

    return Kind("N,…", parse, lambda value: ",".join(f"{x:g}" for x in value), is_list=True)


def size(low: int, high: int | None = None, *, auto: bool = False) -> Kind:
    """A number of bytes: `65536`, `64K`, `16M`, `2G` (powers of 1024)."""

    def convert(raw: object) -> int:
        if isinstance(raw, int) and not isinstance(raw, bool):
            return raw
        if not isinstance(raw, str):
            raise ValueError
        word = raw.strip().lower()
        for tail in ("ib", "b"):
            word = word.removesuffix(tail)
        number = word.rstrip("kmgt")
        unit = _UNITS[word[len(number) :]]
        return int(float(number) * unit)

    return _number(
        "BYTES", convert, low, high, "a size like 65536, 64K, 16M or 2G", show_size, auto
    )


def show_size(value: int) -> str:
    """Bytes in the largest unit that divides them: 16777216 is `16M`."""
    for letter in ("t", "g", "m", "k"):
        unit = _UNITS[letter]
        if value and value % unit == 0:
            return f"{value // unit}{letter.upper()}"
    return str(value)


def _number(
    metavar: str,
    convert: Callable[[object], Any],
    low: float,
    high: float | None,
    what: str,
    show: Callable[[Any], str],
    auto: bool,
) -> Kind:
    bounds = f"of at least {show(low)}" if high is None else f"from {show(low)} to {show(high)}"
    expected = f"expected {what} {bounds}" + (", or auto" if auto else "")

    def parse(raw: object) -> Any:
        if auto and (raw is None or raw == "auto"):
            return None
        try:
            value = convert(raw)
        except (ValueError, KeyError, OverflowError):
            raise ValueError(expected) from None
        if high is None and value > _LARGEST:
            raise ValueError(f"{expected}, below 2^63")
        if value < low or (high is not None and not value <= high):
            raise ValueError(expected)
        return value

    return Kind(metavar, parse, lambda value: "auto" if value is None else show(value))


def choice(*names: str) -> Kind:
    """One of several words. YAML reads bare on/off as true/false, which are accepted as words."""

    def parse(raw: object) -> str:
        word = ("on" if raw else "off") if isinstance(raw, bool) else raw
        if isinstance(word, str) and word.lower() in names:
            return word.lower()
        raise ValueError(f"expected one of {', '.join(names)}{did_you_mean(word, names)}")

    return Kind("|".join(names) if len(names) <= 4 else "NAME", parse, choices=names)


def switch(*, auto: bool = False) -> Kind:
    """On or off; `--name` and `--no-name` on the command line. `auto` allows the word for None."""

    def parse(raw: object) -> bool | None:
        if isinstance(raw, bool):
            return raw
        if auto and (raw is None or raw == "auto"):
            return None
        expected = "on, off or auto" if auto else "on or off"
        word = _word(raw, expected).strip().lower()
        if word not in _ON | _OFF:
            raise ValueError(f"expected {expected}")
        return word in _ON

    def show(value: bool | None) -> str:
        return "auto" if value is None else "on" if value else "off"

    return Kind("", parse, show, is_flag=True)


def names() -> Kind:
    """A list of words: separated by commas, given several times, or a YAML list."""

    def parse(raw: object) -> tuple[str, ...]:
        items = raw if isinstance(raw, list) else [_word(raw, "a list of words")]
        if not all(isinstance(item, str) for item in items):
            raise ValueError("expected a list of words")
        words = [word.strip() for item in items for word in item.split(",")]
        return tuple(word for word in words if word)

    return Kind("A,B,…", parse, ",".join, is_list=True)


def quoted(metavar: str, *, files: bool = False) -> Kind:
    """A list as in a CSV file: a part in quotation marks may contain commas.

    files: `~` is the home directory.
    """

    def parse(raw: object) -> tuple[str, ...]:
        items = raw if isinstance(raw, list) else [raw]
        texts = [item for item in items if isinstance(item, str)]
        if texts != items:
            raise ValueError("expected a list of texts")
        if files and any("\0" in each for each in texts):  # csv refuses it before Python 3.11
            raise ValueError("expected a file name")
        try:
            words = [word.strip() for row in csv.reader(texts) for word in row]
        except csv.Error:
            raise ValueError("expected a list separated by commas, without line breaks") from None
        return tuple(_file(word) if files else word for word in words if word)

    def show(value: Iterable[str]) -> str:
        return ",".join(f'"{word}"' if "," in word else word for word in value)

    return Kind(metavar, parse, show, is_list=True)


def paths() -> Kind:
    """As `names`, of files; `~` is the home directory."""
    plain = names()

    def parse(raw: object) -> tuple[str, ...]:
        return tuple(_file(word) for word in plain.parse(raw))

    return Kind("FILE,…", parse, ",".join, is_list=True)


def pairs() -> Kind:
    """Names with values: `a=1,b=2`, given several times, or a YAML mapping."""

    def parse(raw: object) -> dict[str, Any]:
        expected = "NAME=VALUE, separated by commas"
        if isinstance(raw, dict):
            return {_word(name, expected): value for name, value in raw.items()}
        items = raw if isinstance(raw, list) else [raw]
        found: dict[str, Any] = {}
        for item in (part for each in items for part in _word(each, expected).split(",")):
            name, equals, value = item.partition("=")
            if not equals or not name.strip() or not value.strip():
                raise ValueError(f"expected {expected}")
            found[name.strip()] = value.strip()
        return found

    def show(value: Mapping[str, Any] | None) -> str:
        return ",".join(f"{name}={each}" for name, each in (value or {}).items())

    return Kind("NAME=VALUE,…", parse, show, is_list=True)


def json_object() -> Kind:
    """A JSON object, or a YAML mapping."""

    def parse(raw: object) -> dict[str, Any]:
        with suppress(ValueError, RecursionError):
            value = json.loads(raw) if isinstance(raw, str) else raw
            if isinstance(value, dict):
                return value
        raise ValueError('expected a JSON object, such as {"enable_thinking": false}')

    return Kind("JSON", parse, lambda value: json.dumps(value) if value else "")


def secrets() -> Kind:
    """As `names`, of visible ASCII characters, which a header field can contain; not empty."""
    plain = names()

    def parse(raw: object) -> tuple[str, ...]:
        words = plain.parse(raw)
        if not words or not all(is_visible_ascii(word) for word in words):
            raise ValueError("expected keys of visible ASCII characters, separated by commas")
        return tuple(words)

    return Kind("KEY,…", parse, lambda value: "", is_list=True, is_secret=True)


def is_visible_ascii(word: str) -> bool:
    """Whether every character is visible ASCII, which excludes blanks."""
    return all("!" <= character <= "~" for character in word)


def shown(value: object, spell: Callable[[object], str] = str) -> str:
    """A value as an error message repeats it: the beginning."""
    try:
        text = spell(value)
    except (ValueError, RecursionError):
        # A number of thousands of digits or what contains one, or deeply nested.
        text = hex(value) if isinstance(value, int) else f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _word(raw: object, expected: str) -> str:
    """A value as text. Raises ValueError: Python spells no number of thousands of digits."""
    try:
        return str(raw)
    except (ValueError, RecursionError):
        raise ValueError(f"expected {expected}") from None


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """`; did you mean "port"?`, or nothing if no known word is similar."""
    import difflib

    near = difflib.get_close_matches(shown(word).lower(), list(known), n=1)
    return f'; did you mean "{near[0]}"?' if near else ""
