"""Messages to a prompt: the model's own Jinja template, in a sandbox.

Templates are written for `transformers`, whose environment this one repeats
(`apply_chat_template`, transformers/utils/chat_template_utils.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

if TYPE_CHECKING:
    from cllm.engine import Engine

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Noncharacters, which no text has a reason to hold: they frame what must stay text.
_BEGIN, _END, _CUT = "\ufdd0", "\ufdd1", "\ufdd2"

Message = Mapping[str, Any]


class TemplateError(ValueError):
    """The template refuses these messages, or cannot be read; one line."""


class ChatTemplate:
    """A compiled template and the tokens that it may name."""

    def __init__(self, source: str, bos: str = "", eos: str = "") -> None:
        """Raises TemplateError."""
        self.source = source
        self._bos = bos
        self._eos = eos
        try:
            self._template = _ENVIRONMENT.from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template cannot be read: {error}") from None

    def render(
        self, messages: Sequence[Message], *, continued: bool = False, **variables: Any
    ) -> str:
        """The prompt as text, open for the assistant's turn.

        continued: the last message is the beginning of that turn. Raises TemplateError.
        """
        shown = list(messages)
        if continued:
            last = shown[-1]
            shown[-1] = {**last, "content": str(last["content"]) + _CUT}
        names = {"bos_token": self._bos, "eos_token": self._eos}
        try:
            text = self._template.render(
                **{**names, **variables, "messages": shown, "add_generation_prompt": not continued}
            )
        except Exception as error:  # whatever a template does with messages it did not expect
            raise TemplateError(f"the chat template refuses the messages: {error}") from None
        return text.partition(_CUT)[0] if continued else text

    def tokens(
        self,
        engine: Engine,
        messages: Sequence[Message],
        *,
        continued: bool = False,
        **variables: Any,
    ) -> list[int]:
        """The prompt as tokens.

        The template's special tokens are control tokens; what a message says stays text, also
        where it spells such a token out. Raises TemplateError, InvalidRequest, EngineClosed.
        """
        framed = [_framed(engine, message) for message in messages]
        text = self.render(framed, continued=continued, **variables)
        add_special = not (self._bos and text.startswith(self._bos))
        if _BEGIN not in text:
            return engine.tokenize(text, add_special=add_special, parse_special=True)
        tokens: list[int] = []
        for number, part in enumerate(text.split(_BEGIN)):
            inside, _, outside = part.partition(_END) if number else ("", "", part)
            tokens += engine.tokenize(inside, add_special=False) if inside else []
            if outside or not number:
                tokens += engine.tokenize(
                    outside, add_special=add_special and not number, parse_special=True
                )
        return tokens


def _framed(engine: Engine, value: Any) -> Any:
    """The value with every text framed that would turn into control tokens."""
    if isinstance(value, str):
        plain = value.translate(_NO_FRAMES)
        text, special = (
            engine.tokenize(plain, add_special=False, parse_special=parse)
            for parse in (False, True)
        )
        return plain if text == special else _BEGIN + plain + _END
    if isinstance(value, Mapping):
        return {key: _framed(engine, entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_framed(engine, entry) for entry in value]
    return value


_NO_FRAMES = str.maketrans("", "", _BEGIN + _END + _CUT)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks what is trained on; here it is but text."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_refuse, strftime_now=_now)
    return environment


_ENVIRONMENT = _environment()
