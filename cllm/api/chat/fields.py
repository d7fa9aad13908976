"""Field names in errors: other APIs have other names than chat completions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cllm.engine import InvalidRequest, PromptTooLong
from cllm.http import HttpError

Names = Sequence[tuple[re.Pattern[str], str]]
"""What a field's name begins with in chat completions, and what stands there instead."""


@contextmanager
def named(names: Names) -> Iterator[None]:
    """Errors raised inside, with the API's own field names."""
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
