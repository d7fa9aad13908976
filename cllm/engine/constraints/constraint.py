"""A constraint on the text of a generation: a grammar in one of several languages."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import gbnf_to_lark

from cllm.engine.constraints.json_normal import normalized
from cllm.engine.constraints.json_schema import lark_expression
from cllm.engine.errors import InvalidRequest

Kind = Literal["json_schema", "json_object", "gbnf", "regex", "lark"]

MAX_SOURCE = 2**18
"""Characters of a constraint's source."""

_SHORT = 4096  # characters of a schema whose expression is remembered

MAX_RULES = 1000
"""Rules of a grammar: a chain of some 4 000 overflows llguidance's stack."""

_RULE = re.compile(r"^\s*[?!]?[\w.-]+[^:\n]*:", re.MULTILINE)
_GBNF_ESCAPE = re.compile(
    r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|.)", re.DOTALL
)
_GBNF_TEXT = re.compile(r'"(?:\\.|[^"\\])*"|(?<!<)\[(?:\\.|[^\]\\])*\]|#[^\n]*')
_GBNF_TOKEN = re.compile(r"!?<[^<>\n]*>")
_GBNF_SPELLED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


@dataclass(frozen=True, slots=True)
class Constraint:
    """A language that the text must belong to, from its first character to its last.

    kind "json_schema": source is a JSON schema, as text or as the result of json.loads.
    "json_object": any JSON object; no source. "gbnf": llama.cpp's grammars. "regex": an expression
    (Rust's regex crate, no look-around) that matches the whole text. "lark": llguidance's dialect
    of Lark, in which a token of the vocabulary that is not text is spelled <|name|>.
    JSON is written on one line with ", " and ": " between, as json.dumps does.
    Raises InvalidRequest; Engine.check_constraint finds errors that depend on the vocabulary.
    """

    kind: Kind
    source: str = ""

    def __init__(self, kind: Kind, source: str | Mapping[str, Any] | bool = "") -> None:
        if kind not in get_args(Kind):
            raise InvalidRequest("constraint", kind, f"one of {', '.join(get_args(Kind))}")
        if kind == "json_schema" and not isinstance(source, str):
            source = _written(source)
        if not isinstance(source, str):
            raise InvalidRequest(kind, source, "text")
        if len(source) > MAX_SOURCE:
            found = f"{len(source)} characters"
            raise InvalidRequest(kind, found, f"at most {MAX_SOURCE} characters")
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "source", source)

    def grammar(self) -> str:
        """Return it in a form that llguidance reads. Raises InvalidRequest."""
        if self.kind == "json_object":
            return f"start: {json_rule({'type': 'object'})}"
        if self.kind == "json_schema":
            return f"start: {json_rule(_read(self.source))}"
        if self.kind == "regex":
            return LLMatcher.grammar_from_regex(self.source)
        if len(_RULE.findall(self.source)) > MAX_RULES:
            raise InvalidRequest(self.kind, "a grammar", f"at most {MAX_RULES} rules")
        return _lark_of_gbnf(self.source) if self.kind == "gbnf" else self.source


def json_rule(schema: Mapping[str, Any] | bool) -> str:
    """Return the Lark expression for JSON that `schema` describes; for use within a grammar.

    Raises InvalidRequest, which names a keyword that is not supported.
    """
    try:
        source = json.dumps(schema)
    except (TypeError, ValueError, RecursionError):  # the next line says what is wrong
        source = ""
    try:
        return _short_rule(source) if 0 < len(source) <= _SHORT else lark_expression(schema)
    except RecursionError:
        raise InvalidRequest("json_schema", "a schema", "fewer levels of nesting") from None


@lru_cache(maxsize=512)
def _short_rule(source: str) -> str:
    """The expression of a schema that is likely to come again, as those of tools do."""
    return lark_expression(json.loads(source))


def relaxed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """What can be held of the schema of an object: without the keywords that cannot.

    Raises InvalidRequest for one that is too large or too deep.
    """
    try:
        if len(json.dumps(schema)) > MAX_SOURCE:
            raise InvalidRequest("json_schema", "a schema", f"at most {MAX_SOURCE} characters")
        found = normalized(schema, lenient=True)
    except RecursionError:
        raise InvalidRequest("json_schema", "a schema", "fewer levels of nesting") from None
    return found if isinstance(found, dict) else {"type": "object"}


def _read(source: str) -> Mapping[str, Any] | bool:
    try:
        schema = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("json_schema", source, f"JSON ({error})") from None
    return schema  # type: ignore[no-any-return]  # check_schema checks its type


def _written(schema: object) -> str:
    try:
        return json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest("json_schema", schema, f"a JSON schema ({error})") from None


def _lark_of_gbnf(source: str) -> str:
    token = _GBNF_TOKEN.search(_GBNF_TEXT.sub("", source))
    if token is not None:
        expected = (
            "no tokens in GBNF; use text, or Lark, where <[5]> is token 5 and <|name|> by name"
        )
        raise InvalidRequest("gbnf", token[0], expected)
    try:
        return gbnf_to_lark(_GBNF_ESCAPE.sub(_unescaped, source))
    except Exception as error:  # the converter raises bare Exceptions, and RecursionError
        raise InvalidRequest("gbnf", source, f"a grammar that can be read ({error})") from None


def _unescaped(match: re.Match[str]) -> str:
    """Write a code point literally: the converter emits numbers in a form that Lark lacks."""
    digits = match[1] or match[2] or match[3]
    if digits is None or int(digits, 16) > 0x10FFFF:
        return match[0]
    character = chr(int(digits, 16))
    if character in '"\\[]^-':
        return "\\" + character
    return _GBNF_SPELLED.get(character, character)
