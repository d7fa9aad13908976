"""The tool calls of one answer: its tools, the events of a call, calls in JSON."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Sequence
from typing import Any

from cllm.api.chat.conversation import Tool
from cllm.api.chat.events import CallArguments, CallBegin, CallEnd, Event
from cllm.api.formats.reader import ObjectScan, Reader, Steps

_ALPHABET = string.ascii_letters + string.digits
_SURROGATE = re.compile("[\ud800-\udfff]")
_NAMES = ("name", "tool_name")
_ARGUMENTS = ("arguments", "parameters")
_IDS = ("id", "tool_call_id", "type")
_FIRST_KEYS = (*_NAMES, *_ARGUMENTS, *_IDS, "function")
_FIRST_KEY = re.compile(r'\{\s*"([^"\\]*)("?)')
# The usual order of the keys, in which the arguments can be streamed.
_HEAD = re.compile(
    r'\{\s*(?:"(?:id|tool_call_id|type)"\s*:\s*"[^"\\]*"\s*,\s*)*'
    r'"(?:name|tool_name)"\s*:\s*"([^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_KEY_BEGUN = re.compile(r'\{\s*(?:"([^"\\]*)("\s*(?::\s*)?)?)?')
_KEYED = re.compile(r'\{\s*"([^"\\]*)"\s*:\s*(?=\{)')


class Calls:
    """Counts the calls and assigns their ids."""

    __slots__ = ("_count", "_id", "tools")

    def __init__(self, tools: Sequence[Tool], new_id: Callable[[], str]) -> None:
        self.tools = {tool.name: tool for tool in tools}
        self._id = new_id
        self._count = 0

    def begin(self, name: str) -> CallBegin:
        """A call begins; earlier ones have ended."""
        self._count += 1
        return CallBegin(self._count - 1, self._id(), name)

    def arguments(self, text: str) -> CallArguments:
        """A piece of its arguments."""
        return CallArguments(self._count - 1, text)

    def end(self) -> CallEnd:
        """Its arguments are complete."""
        return CallEnd(self._count - 1)

    def whole(self, name: str, arguments: str) -> list[Event]:
        """A complete call."""
        return [self.begin(name), self.arguments(arguments), self.end()]


def long_id() -> str:
    """An id in OpenAI's form."""
    return "call_" + "".join(secrets.choice(_ALPHABET) for _ in range(24))


def short_id() -> str:
    """An id in the form that Mistral's templates require."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(9))


def read_json_call(reader: Reader, calls: Calls) -> Steps[bool]:
    """Read `{"name": …, "arguments": {…}}`, also with the other names of these two keys.

    Returns whether it was a call; if not, nothing was read.
    """
    scan, scanned = ObjectScan(), 0
    while True:
        text = reader.text
        head = _HEAD.match(text)
        if head is not None:
            if head[1] not in calls.tools:
                return False
            yield from _read_arguments(reader, calls, head)
            return True
        end = scan.push(text[scanned:]) if text.startswith("{") else None
        if end is not None:
            end += scanned
            found = json_calls(_decoded(text[:end]), calls)
            for name, arguments in found or ():
                yield from calls.whole(name, arguments)
            reader.skip(end if found else 0)
            return bool(found)
        scanned = len(text)
        possible = _may_be_call(text)
        if reader.ended and reader.cut and possible:
            reader.skip(len(text))
        if reader.ended or not possible:
            return False
        yield None


def read_keyed_call(reader: Reader, calls: Calls) -> Steps[bool]:
    """The same for `{"NAME": {…}}`."""
    while True:
        text = reader.text
        head = _KEYED.match(text)
        if head is not None:
            if head[1] not in calls.tools:
                return False
            yield from _read_arguments(reader, calls, head)
            return True
        begun = _KEY_BEGUN.fullmatch(text)
        possible = not text
        if begun is not None:
            key, closed = begun[1] or "", begun[2] is not None
            names = calls.tools
            possible = key in names if closed else any(name.startswith(key) for name in names)
        if reader.ended and reader.cut and possible:
            reader.skip(len(text))
        if reader.ended or not possible:
            return False
        yield None


def _read_arguments(reader: Reader, calls: Calls, head: re.Match[str]) -> Steps[None]:
    """Read from the beginning of a call, whose head matched, to the brace that ends it."""
    yield calls.begin(head[1])
    reader.skip(head.end())
    if (yield from reader.pass_object(calls.arguments)):
        yield calls.end()
        yield from _rest_of_object(reader)


def _rest_of_object(reader: Reader) -> Steps[None]:
    """Read from the end of the arguments to the brace that ends the call."""
    space = yield from reader.space()
    if reader.text.startswith("}"):
        reader.skip(1)
    elif reader.text.startswith(","):
        scan, read = ObjectScan(depth=1), ""
        while True:
            end = scan.push(reader.text)
            read += reader.skip(len(reader.text) if end is None else end)
            if end is not None:
                return
            if reader.ended:
                yield from reader.left(space + read)
                return
            yield None


def json_calls(value: Any, calls: Calls) -> list[tuple[str, str]] | None:
    """(name, arguments) of a decoded call; None if it is not one."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict):
        return None
    name = next((value[key] for key in _NAMES if key in value), None)
    if not isinstance(name, str) or name not in calls.tools:
        return None
    given = next((value[key] for key in _ARGUMENTS if key in value), None)
    arguments = given
    if isinstance(given, str):
        arguments = _decoded(given)
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        return None
    try:
        return [(name, dump(arguments))]
    except ValueError:  # a number beyond the range of floats
        return None


def _decoded(text: str) -> Any:
    try:
        return load(text)
    except (ValueError, RecursionError):
        return None


def load(text: str) -> Any:
    """Strict JSON, without Python's extensions. Raises ValueError, RecursionError."""
    return json.loads(text, parse_constant=refuse)


def refuse(name: str) -> None:
    """For Python's names of numbers that JSON lacks. Raises ValueError."""
    raise ValueError(f"{name} is not JSON")


def dump(value: Any) -> str:
    """JSON text as models write it; lone surrogates, which UTF-8 lacks, stay escaped.

    Raises ValueError for a number that JSON cannot represent.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text if text.isascii() or not _SURROGATE.search(text) else json.dumps(value)


def _may_be_call(text: str) -> bool:
    """Whether an object with this beginning may be a call; only its first key is known."""
    if not text:
        return True
    if text[0] != "{":
        return False
    key = _FIRST_KEY.match(text)
    if key is None:
        return not text[1:].strip()
    return key[1] in _FIRST_KEYS if key[2] else any(k.startswith(key[1]) for k in _FIRST_KEYS)
