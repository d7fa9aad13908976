"""Messages to a prompt: the model's own Jinja template, in a sandbox.

Templates are written for `transformers`, so they get the variables and functions of its
`apply_chat_template` (transformers/utils/chat_template_utils.py), and render the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.meta
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import SandboxedEnvironment

from cllm.api.chat.control_tokens import ControlTokens, unframed

if TYPE_CHECKING:
    from cllm.engine import Engine
    from cllm.engine.text.piece_cache import Owner

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Marks where the last message ends; the space shows whether the template trims its messages.
_CUT = "\ufdd2"
_CUT_AND_SPACE = _CUT + " "

Message = Mapping[str, Any]
End = Callable[[str], str]
"""Adds to a rendered prompt. Marks that it adds become control tokens."""
Adapt = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
"""Rewrites the messages for a template. Marks that it adds become control tokens."""
_NOTHING: Mapping[str, Any] = {}
_ABSENT: Mapping[str, Any] = {"tools": None, "documents": None}


class TemplateError(ValueError):
    """The template rejects these messages, or is invalid; one line."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt. text: without the special tokens that the model's own rules add."""

    text: str
    tokens: list[int]


class ChatTemplate:
    """A compiled template and the tokens that it may name.

    Messages have the format of OpenAI's chat completions. variables: further variables of the
    template, such as `tools`, `documents` or `enable_thinking`; `add_generation_prompt` is True by
    default: the prompt ends with the start of the assistant's turn.
    continued: the last message is the beginning of that turn, and stays open.
    """

    def __init__(
        self, source: str, bos: str = "", eos: str = "", controls: Collection[str] = ()
    ) -> None:
        """controls: the texts of the vocabulary's control tokens. Raises TemplateError."""
        self.source = source
        self._bos = bos
        self._names = {
            name: text for name, text in (("bos_token", bos), ("eos_token", eos)) if text
        }
        self._controls = ControlTokens(controls)
        try:
            self._template = _ENVIRONMENT.from_string(source)
            self.variables = jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(source))
        except (jinja2.TemplateError, ValueError, RecursionError) as error:
            raise TemplateError(f"the chat template cannot be read: {error}") from None
        self.wants_objects = True
        self.wants_objects = self._shows_objects_as_json()

    def render(
        self,
        messages: Sequence[Message],
        variables: Mapping[str, Any] = _NOTHING,
        *,
        continued: bool = False,
        adapt: Adapt | None = None,
        end: End | None = None,
    ) -> str:
        """The prompt as text. Raises TemplateError."""
        return unframed(self._render(messages, variables, continued, adapt, end))

    def prompt(
        self,
        engine: Engine,
        messages: Sequence[Message],
        variables: Mapping[str, Any] = _NOTHING,
        *,
        continued: bool = False,
        adapt: Adapt | None = None,
        end: End | None = None,
        owner: Owner | None = None,
    ) -> Rendered:
        """The prompt as text and as tokens.

        The template's special tokens become control tokens; the text of a message stays text, even
        if it spells such a token. owner: see Engine.tokenize.
        Raises TemplateError, InvalidRequest, EngineClosed.
        """
        text = self._render(messages, variables, continued, adapt, end)
        add_special = not (self._bos and text.startswith(self._bos))
        return Rendered(unframed(text), self._controls.tokenize(engine, text, add_special, owner))

    def framed(self, value: Any) -> Any:
        """A client's value, which can then be put into a message without becoming a mark."""
        return self._controls.frame(value)

    def _render(
        self,
        messages: Sequence[Message],
        variables: Mapping[str, Any],
        continued: bool,
        adapt: Adapt | None = None,
        end: End | None = None,
    ) -> str:
        frame = self._controls.frame
        shown = [frame(self._shaped(message)) for message in messages]
        if continued:
            content = shown[-1].get("content")
            if not isinstance(content, str):
                raise TemplateError("the last message has no text to continue")
            shown[-1]["content"] = content + _CUT_AND_SPACE
        if adapt is not None:
            shown = adapt(shown)
        given: dict[str, Any] = {"add_generation_prompt": not continued, **self._names}
        given |= {**frame(variables), "messages": shown}
        try:
            # As in transformers. Templates for tools alone iterate over them, which None fails.
            text = self._rendered({**_ABSENT, **given}, given)
        except (
            Exception
        ) as error:  # a template can fail in any way on messages that it does not expect
            raise TemplateError(f"the chat template refuses the messages: {error}") from None
        text = _cut(text) if continued else text
        return text if end is None else end(text)

    def _rendered(self, *ways: Mapping[str, Any]) -> str:
        """The text with the first variables that render; raises the first error."""
        first, *others = ways
        try:
            return self._template.render(first)
        except Exception:
            for way in others:
                try:
                    return self._template.render(way)
                except Exception:
                    continue
            raise

    def _shaped(self, message: Message) -> dict[str, Any]:
        """The message as templates expect it."""
        shaped = {name: value for name, value in message.items() if value is not None}
        if "reasoning_content" in shaped:
            shaped.setdefault("thinking", shaped["reasoning_content"])  # for gpt-oss
        if shaped.get("tool_calls"):
            shape = _with_object if self.wants_objects else _with_text
            shaped["tool_calls"] = [shape(call) for call in shaped["tool_calls"]]
        return shaped

    def _shows_objects_as_json(self) -> bool:
        """Whether the template needs the arguments of tool calls as objects, not JSON text.

        transformers passes objects. A template that does not support them fails, or prints them
        as Python does.
        """
        for adapt in (None, without_content):
            try:
                if _SHOWN_BY_PYTHON in self._render(_CALLING, {"tools": _TOOLS}, False, adapt):
                    return False
            except TemplateError:
                self.wants_objects = False
                takes_text = self._renders(_CALLING, adapt)
                self.wants_objects = True
                if takes_text:
                    return False
        return True

    def _renders(self, messages: Sequence[Message], adapt: Adapt | None) -> bool:
        try:
            self._render(messages, {"tools": _TOOLS}, False, adapt)
        except TemplateError:
            return False
        return True


def without_content(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An `Adapt` for templates that ask for None as the content of calls alone."""
    return [
        {**message, "content": None}
        if message.get("tool_calls") and not message.get("content")
        else message
        for message in messages
    ]


_ARGUMENT = "an_argument"
_SHOWN_BY_PYTHON = f"{{'{_ARGUMENT}':"
_FUNCTION = {"name": "a_tool", "arguments": json.dumps({_ARGUMENT: "1"})}
_CALL = {"id": "call00001", "type": "function", "function": _FUNCTION}
_CALLING: Sequence[Message] = (
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
)
_PARAMETERS = {"type": "object", "properties": {"a_parameter": {"type": "string"}}}
_TOOL = {"name": "a_tool", "description": "A tool", "parameters": _PARAMETERS}
_TOOLS = ({"type": "function", "function": _TOOL},)


def _with_object(call: Any) -> Any:
    """A tool call with its arguments as an object."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    arguments = function.get("arguments")
    return {**call, "function": {**function, "arguments": _as_object(arguments)}}


def _with_text(call: Any) -> Any:
    """A tool call with its arguments as the text of an object."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    arguments = function.get("arguments")
    if not isinstance(arguments, str) or not _is_object(arguments):
        arguments = _to_json(_as_object(arguments))
    return {**call, "function": {**function, "arguments": arguments}}


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _as_object(arguments: Any) -> Mapping[str, Any]:
    """The arguments of an earlier call, which may be blank, broken or no object.

    A model makes such calls, and a limit cuts others. The conversation goes on: what is no object
    becomes the only entry of one, so that the model sees it.
    """
    if isinstance(arguments, str):
        if not arguments.strip():
            return {}
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return {"arguments": arguments}
    if isinstance(arguments, Mapping):
        return arguments
    return {} if arguments is None else {"arguments": arguments}


def _cut(text: str) -> str:
    """The prompt up to the end of the message that is continued."""
    shown, cut, behind = text.rpartition(_CUT)
    if not cut:
        raise TemplateError(
            "the chat template does not show the last message, so it cannot be continued"
        )
    return shown if behind.startswith(" ") else shown.rstrip()


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks what is trained on; here it is plain text."""

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
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=_listed,
    )


@jinja2.pass_context
def _built_in(context: jinja2.runtime.Context, name: str) -> str:
    """The prompt as the template of this name that is built into llama.cpp writes it."""
    from cllm.engine.llama.builtin_templates import render  # not before the model is loaded

    messages = [(each["role"], each.get("content") or "") for each in context["messages"]]
    return render(name, messages, bool(context["add_generation_prompt"]))


def _listed(value: Any) -> list[Any]:
    """What a filter such as `map` gives out, as a list. Raises TypeError for anything else."""
    if isinstance(value, Iterator):
        return list(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _environment() -> SandboxedEnvironment:
    # Lists can be changed, unlike in transformers: some templates collect ids with `append`. They
    # change copies, since every rendering gets its own messages and variables.
    environment = SandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_refuse, strftime_now=_now, builtin_template=_built_in
    )
    return environment


_ENVIRONMENT = _environment()
