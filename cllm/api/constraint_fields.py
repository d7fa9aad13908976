"""The constraints that a request body may ask for, in the spellings of all servers; one at most.

    response_format                       OpenAI, llama-server, llama-cpp-python, Hugging Face
    grammar, json_schema                  llama-server
    structured_outputs, guided_*          vLLM
    regex, ebnf                           SGLang
    format                                Ollama

Every API reads them here, so that none of them is ever overlooked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cllm.api.unserved_fields import UnservedFields
from cllm.engine import Constraint, InvalidRequest

if TYPE_CHECKING:
    from cllm.engine import Engine


class ConstraintFields(UnservedFields, kw_only=True):
    """The fields of a body; `asked_constraint` reads them."""

    response_format: Any = None
    grammar: Any = None
    json_schema: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    regex: Any = None
    ebnf: Any = None
    format: Any = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A constraint, and the field of the body that asked for it."""

    constraint: Constraint
    field: str


def asked_constraint(body: object, *more: Asked | None) -> Asked | None:
    """The constraint that a body with ConstraintFields asks for; None: any text.

    more: what an API's own field asks for. Raises InvalidRequest, which names the field: a wrong
    value, or two constraints.
    """
    found = [asked for asked in more if asked is not None]
    for name, read in _READERS.items():
        value = getattr(body, name, None)
        if value is not None:
            found += read(value, name)
    if len(found) > 1:
        expected = f"no other constraint; leave out {found[0].field} or {found[1].field}"
        raise InvalidRequest(found[1].field, f"a constraint next to {found[0].field}", expected)
    return found[0] if found else None


def form_of(form: Any, field: str) -> Asked | None:
    """What an object in the shape of `response_format` asks for. Raises InvalidRequest."""
    return next(_form(form, field), None)


def checked(engine: Engine, asked: Asked | None, tenant: str) -> Constraint | None:
    """The constraint, once it is compiled. Raises InvalidRequest with the field, ConstraintPending.

    For texts without a chat template: thoughts and calls are not let through.
    """
    if asked is None:
        return None
    try:
        engine.check_constraint(asked.constraint, wait=False, tenant=tenant)
    except InvalidRequest as error:
        raise InvalidRequest(asked.field, error.value, error.expected) from None
    return asked.constraint


def _form(form: Any, field: str) -> Iterator[Asked]:
    if not isinstance(form, dict):
        raise InvalidRequest(field, form, "an object with type")
    kind, schema_at = form.get("type"), f"{field}.json_schema.schema"
    wrapper = form.get("json_schema")
    match kind:
        case "text":
            return
        case "json_object":
            for name in ("schema", "value"):
                if form.get(name) is not None:
                    yield from _schema(form[name], f"{field}.{name}")
                    return
            yield Asked(Constraint("json_object"), field)
        case "json_schema" | "json":
            for name in ("schema", "value"):
                if form.get(name) is not None:
                    yield from _schema(form[name], f"{field}.{name}")
                    return
            if not isinstance(wrapper, dict):
                expected = 'an object with schema, as in {"name": "answer", "schema": {…}}'
                raise InvalidRequest(f"{field}.json_schema", wrapper, expected)
            if wrapper.get("schema") is None:
                expected = "a JSON schema; an object without it would allow any JSON"
                raise InvalidRequest(schema_at, wrapper.get("schema"), expected)
            yield from _schema(wrapper["schema"], schema_at)
        case "regex":
            name = next((name for name in ("value", "regex", "pattern") if name in form), "value")
            yield from _text("regex")(form.get(name), f"{field}.{name}")
        case "grammar":
            name = next((name for name in ("value", "grammar") if name in form), "value")
            yield from _grammar(form.get(name), f"{field}.{name}")
        case _:
            known = '"text", "json_object", "json_schema", "json", "regex" or "grammar"'
            raise InvalidRequest(f"{field}.type", kind, known)


def _schema(schema: Any, field: str) -> Iterator[Asked]:
    """A JSON schema, as an object or as text."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(field, schema, f"a JSON schema ({error})") from None
    if not isinstance(schema, (dict, bool)):
        raise InvalidRequest(field, schema, "a JSON schema: an object, true or false")
    yield Asked(_made("json_schema", schema, field), field)


def _schema_or_object(schema: Any, field: str) -> Iterator[Asked]:
    """The same; an empty one means any object, as in llama-server."""
    return _schema({"type": "object"} if schema == {} else schema, field)


def _text(kind: Any) -> Callable[[Any, str], Iterator[Asked]]:
    def read(source: Any, field: str) -> Iterator[Asked]:
        if not isinstance(source, str):
            raise InvalidRequest(field, source, "a string")
        if source:
            yield Asked(_made(kind, source, field), field)

    return read


def _grammar(source: Any, field: str) -> Iterator[Asked]:
    """GBNF, or llguidance's dialect of Lark, which has no `::=`."""
    kind = "gbnf" if not isinstance(source, str) or "::=" in source else "lark"
    return _text(kind)(source, field)


def _choice(choices: Any, field: str) -> Iterator[Asked]:
    if not isinstance(choices, list) or not choices or not all(isinstance(c, str) for c in choices):
        raise InvalidRequest(field, choices, "a list of strings, at least one")
    spelled = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
    yield Asked(_made("lark", f"start: {spelled}", field), field)


def _outputs(given: Any, field: str) -> Iterator[Asked]:
    """vLLM's object of one constraint."""
    if not isinstance(given, dict):
        raise InvalidRequest(field, given, "an object with json, regex, choice or grammar")
    for name, value in given.items():
        if value is None or value is False:
            continue
        if name == "json_object":
            yield Asked(Constraint("json_object"), f"{field}.{name}")
        elif name in _OUTPUTS:
            yield from _OUTPUTS[name](value, f"{field}.{name}")
        elif name not in ("disable_fallback", "disable_any_whitespace", "_backend"):
            known = f"one of {', '.join((*_OUTPUTS, 'json_object'))}"
            raise InvalidRequest(f"{field}.{name}", value, f"no {name}, which is not held; {known}")


def _ollama(form: Any, field: str) -> Iterator[Asked]:
    """Ollama's `format`: "json", or a schema; an empty text asks for nothing."""
    if form == "json":
        yield Asked(Constraint("json_object"), field)
    elif isinstance(form, dict):
        yield from _schema(form, field)
    elif form != "":
        raise InvalidRequest(field, form, '"json" or a JSON schema')


def _made(kind: Any, source: Any, field: str) -> Constraint:
    try:
        return Constraint(kind, source)
    except InvalidRequest as error:
        raise InvalidRequest(field, error.value, error.expected) from None


_Read = Callable[[Any, str], Iterator[Asked]]
_OUTPUTS: Mapping[str, _Read] = {
    "json": _schema,
    "regex": _text("regex"),
    "choice": _choice,
    "grammar": _grammar,
}
_READERS: Mapping[str, _Read] = {
    "response_format": _form,
    "grammar": _grammar,
    "json_schema": _schema_or_object,
    "structured_outputs": _outputs,
    "guided_json": _schema,
    "guided_regex": _text("regex"),
    "guided_choice": _choice,
    "guided_grammar": _grammar,
    "regex": _text("regex"),
    "ebnf": _grammar,
    "format": _ollama,
}
