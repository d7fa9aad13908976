"""Field names in errors: those of chat completions are replaced by an API's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from cllm.engine import InvalidRequest, PromptTooLong
from cllm.http import HttpError

Names = Sequence[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]]
"""Patterns of the field names of chat completions, and their replacements."""


@contextmanager
def named(names: Names) -> Iterator[None]:
    """Errors raised inside get an API's own field names."""
    try:
        yield
    except PromptTooLong as error:
        field = _renamed(error.field, names)
        raise PromptTooLong(error.prompt_tokens, error.ctx_size, field) from None
    except InvalidRequest as error:
        field = _renamed(error.field, names)
        raise InvalidRequest(field, error.value, error.expected) from None
    except HttpError as error:
        raise HttpError(error.status, _renamed(error.message, names), error.headers) from None


def _renamed(text: str, names: Names) -> str:
    for pattern, replacement in names:
        renamed, count = pattern.subn(replacement, text, count=1)
        if count:
            return renamed
    return text
