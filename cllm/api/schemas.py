"""Request bodies: their fields, types, ranges and defaults, and the text that says what was wrong.

msgspec decodes and checks in one pass; only a body that failed is parsed a second time, to name
the field, its value and what was expected.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import Meta, inspect

from cllm.http import HttpError

TOO_DEEP = "the body is nested too deeply"
INT32 = 2**31 - 1  # llama.cpp counts tokens in 32 bits

NonEmpty = Annotated[str, Meta(min_length=1)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
TokenId = Annotated[int, Meta(ge=0, le=INT32)]


T = TypeVar("T")

_AT = re.compile(r" - at (?:`key` in )?`\$(.*)`$")
_MISSING = re.compile(r"missing required field `(\w+)`")
_NAMED = re.compile(r"[\w.\[\]]+: ")  # a structure's own check, which names the field
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")
_SHOWN = 80  # characters of an offending value repeated to the client


class Schema(Generic[T]):
    """Decodes one kind of request body: an object, or a list."""

    __slots__ = ("_decode", "_form", "_kind", "type")

    def __init__(self, kind: type[T]) -> None:
        self.type = kind
        self._decode = msgspec.json.Decoder(kind).decode
        info = inspect.type_info(kind)
        assert isinstance(info, (inspect.StructType, inspect.ListType))
        self._form = "object" if isinstance(info, inspect.StructType) else "list"
        self._kind = info
        _expected(info)  # every type has words, or this is a bug to see at once

    def decode(self, body: bytes) -> T:
        """The checked body.

        The Content-Type is ignored: curl -d sends JSON bodies with a form's type.
        Raises HttpError 400 that names the field, the value and what was expected.
        """
        try:
            # msgspec skips the bytes of unknown fields unread, so UTF-8 is checked here for all.
            str(body, "utf-8")
            return self._decode(body)
        except UnicodeDecodeError as error:
            raise HttpError(
                400,
                f"the body is not valid UTF-8: byte 0x{body[error.start]:02x} at offset "
                f"{error.start}; expected a JSON {self._form} in UTF-8",
            ) from None
        except msgspec.ValidationError as error:
            try:
                # Some clients write integers as 8.0, and null for what they leave out.
                value = _without_nulls(_whole(msgspec.json.decode(body)), self._kind)
                return msgspec.convert(value, self.type)
            except (msgspec.MsgspecError, RecursionError):
                raise HttpError(400, self._explain(str(error), body)) from None
        except msgspec.DecodeError as error:
            if not body.strip():
                raise HttpError(400, f"the body is empty: expected a JSON {self._form}") from None
            raise HttpError(
                400, f"the body is not valid JSON ({error}): expected a JSON {self._form}"
            ) from None
        except RecursionError:
            raise HttpError(400, TOO_DEEP) from None

    def _explain(self, problem: str, body: bytes) -> str:
        missing = _MISSING.search(problem)
        if missing:
            name = missing[1]
            path = f"{at[1].lstrip('.')}.{name}" if (at := _AT.search(problem)) else name
            return f"{path}: missing; expected {_expected(_find(self._kind, path))}"
        at = _AT.search(problem)
        if _NAMED.match(problem):
            inside = f"{at[1].lstrip('.')}." if at and at[1] else ""
            return inside + (problem[: at.start()] if at else problem)
        if not at or not at[1]:
            return f"the body must be a JSON {self._form}: {problem[0].lower()}{problem[1:]}"
        path = at[1].replace("[...]", "").lstrip(".")
        expected = _expected(_find(self._kind, path))
        return f"{path}: {_lookup(body, at[1])} is not valid; expected {expected}"


def _whole(value: Any) -> Any:
    """The value with integers for all numbers that are whole."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(each) for each in value]
    if isinstance(value, dict):
        return {name: _whole(each) for name, each in value.items()}
    return value


def _without_nulls(value: Any, kind: inspect.Type) -> Any:
    """The value without nulls for fields that have a default and do not take null."""
    kinds = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    if isinstance(value, list):
        inner = next((each.item_type for each in kinds if isinstance(each, inspect.ListType)), None)
        return value if inner is None else [_without_nulls(each, inner) for each in value]
    if not isinstance(value, dict):
        return value
    for each in kinds:
        if isinstance(each, inspect.StructType) and each.tag in (None, value.get(each.tag_field)):
            fields = {field.encode_name: field for field in each.fields}
            return {
                name: _without_nulls(given, fields[name].type) if name in fields else given
                for name, given in value.items()
                if given is not None or name not in fields or _takes_null(fields[name])
            }
    return value


def _takes_null(field: inspect.Field) -> bool:
    kinds = field.type.types if isinstance(field.type, inspect.UnionType) else (field.type,)
    nullable = any(isinstance(each, (inspect.NoneType, inspect.AnyType)) for each in kinds)
    return field.required or nullable


def _find(kind: inspect.Type, path: str) -> inspect.Type:
    """The type of what stands at the path, or of the last part of it that has one type."""
    for name, _ in _STEP.findall("." + path):
        inner = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
        if name:
            found = [
                f.type
                for t in inner
                if isinstance(t, inspect.StructType)
                for f in t.fields
                if f.name == name
            ]
        else:
            found = [t.item_type for t in inner if isinstance(t, inspect.ListType)]
        if len(found) != 1:
            break
        kind = found[0]
    return kind


def _lookup(body: bytes, path: str) -> str:
    """The offending value as compact JSON, shortened.

    For an entry of a mapping the whole mapping: msgspec does not tell the key.
    """
    raw = body
    try:
        for name, index in _STEP.findall(path):
            if name:
                raw = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])[name]
            else:
                raw = msgspec.json.decode(raw, type=list[msgspec.Raw])[int(index)]
    except (msgspec.MsgspecError, RecursionError):
        return "what was given"  # a later part of the body is malformed
    with suppress(msgspec.MsgspecError, RecursionError):  # 1e999 stays as the client wrote it
        raw = msgspec.json.encode(msgspec.json.decode(raw))
    text = str(raw, "utf-8")
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _expected(kind: inspect.Type) -> str:
    """What a field takes, in words; ``null`` is accepted for optional fields but not advertised."""
    if isinstance(kind, inspect.UnionType):
        return " or ".join(_expected(t) for t in kind.types if not isinstance(t, inspect.NoneType))
    if isinstance(kind, inspect.IntType):
        return "an integer" + _range(kind)
    if isinstance(kind, inspect.FloatType):
        return "a number" + _range(kind)
    if isinstance(kind, inspect.StrType):
        return "a non-empty string" if kind.min_length else "a string"
    if isinstance(kind, inspect.BoolType):
        return "true or false"
    if isinstance(kind, inspect.ListType):
        most = f" (at most {kind.max_length})" if kind.max_length else ""
        return f"a list{most} where each item is {_expected(kind.item_type)}"
    if isinstance(kind, inspect.DictType):
        return f"an object from {_expected(kind.key_type)} to {_expected(kind.value_type)}"
    if isinstance(kind, inspect.LiteralType):
        return " or ".join(f'"{value}"' for value in kind.values)
    if isinstance(kind, inspect.StructType):
        required = [f"{f.name} ({_expected(f.type)})" for f in kind.fields if f.required]
        if kind.tag is not None:
            required.insert(0, f'{kind.tag_field} "{kind.tag}"')
        return "an object" + (" with " + ", ".join(required) if required else "")
    if isinstance(kind, inspect.AnyType):
        return "any value"
    raise TypeError(f"no words for {kind}")


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.ge is not None and kind.le is not None:
        return f" from {kind.ge:g} to {kind.le:.10g}"
    if kind.gt is not None and kind.le is not None:
        return f" above {kind.gt:g} and up to {kind.le:.10g}"
    return f" of {kind.ge:g} or more" if kind.ge is not None else ""
