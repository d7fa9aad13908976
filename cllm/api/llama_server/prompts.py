"""Prompts in the forms that llama-server takes: texts, tokens, both mixed, or several of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cllm.api.llama_server.schemas import Mixed, Prompt, PromptObject
from cllm.engine import InvalidRequest
from cllm.http import HttpError

if TYPE_CHECKING:
    from cllm.engine import Engine

_FORMS = "text, a list of tokens and texts, or a list of such prompts"


def prompts(engine: Engine, given: Prompt | None) -> list[list[int]]:
    """The prompts as tokens, checked.

    As in llama-server, special tokens in a text are parsed, and BOS is added if a prompt begins
    with text and the model needs it. Raises HttpError 400, InvalidRequest, PromptTooLong.
    """
    if given is None:
        raise HttpError(400, f"prompt: missing; expected {_FORMS}")
    if not isinstance(given, list):
        several: list[str | PromptObject | Mixed] = [given]
    elif any(isinstance(part, int) for part in given):
        mixed = [part for part in given if isinstance(part, (int, str))]
        if len(mixed) != len(given):
            raise InvalidRequest("prompt", "a mixture of prompts and tokens", _FORMS)
        several = [mixed]
    else:
        several = [part for part in given if not isinstance(part, int)]
    if not several:
        raise InvalidRequest("prompt", given, _FORMS)
    found = [_tokens(engine, each) for each in several]
    for tokens in found:
        engine.check_prompt(tokens)
    return found


def mixed_tokens(
    engine: Engine, parts: str | Mixed, add_special: bool, parse_special: bool
) -> list[int]:
    """Texts and tokens in a row -> tokens; special ones are added only around a leading text."""
    tokens: list[int] = []
    for number, part in enumerate([parts] if isinstance(parts, str) else parts):
        if isinstance(part, int):
            tokens.append(part)
        else:
            first = add_special and not number
            tokens += engine.tokenize(part, add_special=first, parse_special=parse_special)
    return tokens


def spelled(engine: Engine, tokens: list[int]) -> str:
    """The text of tokens, control tokens included. Raises InvalidRequest."""
    return b"".join(engine.pieces(tokens)).decode("utf-8", "replace")


def _tokens(engine: Engine, prompt: str | PromptObject | Mixed) -> list[int]:
    if isinstance(prompt, PromptObject):
        if prompt.multimodal_data:
            raise HttpError(400, "prompt.multimodal_data: this server accepts text only")
        prompt = prompt.prompt_string
    return mixed_tokens(engine, prompt, add_special=True, parse_special=True)
