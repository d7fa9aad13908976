"""Control tokens that a client's text spells out stay text, wherever a template puts it.

Each such spelling is framed by two noncharacters before the template sees it. The template handles
the surrounding text as usual, and framed text is tokenized as text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cllm.engine import Engine
    from cllm.engine.text.piece_cache import Owner

# Noncharacters, which ordinary text does not contain.
_BEGIN, _END = "\ufdd0", "\ufdd1"


class ControlTokens:
    """The texts of a vocabulary's control tokens."""

    def __init__(self, spellings: Collection[str]) -> None:
        spelled = _longest(sorted(filter(None, spellings))) or "(?!)"
        self._spelled = re.compile(spelled)
        # A template that cuts texts may split a frame; each half still protects.
        self._framed = re.compile(f"{_BEGIN}({spelled})?{_END}?|({spelled})?{_END}")

    def frame(self, value: Any) -> Any:
        """The value with every control token spelled in any of its texts framed."""
        if isinstance(value, str):
            return self._spelled.sub(_framed, unframed(value))
        if isinstance(value, Mapping):
            return {self.frame(key): self.frame(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.frame(entry) for entry in value]
        return value

    def tokenize(
        self, engine: Engine, text: str, add_special: bool, owner: Owner | None = None
    ) -> list[int]:
        """A template's text -> tokens: framed parts are text, the rest is parsed.

        owner: see Engine.tokenize. Raises InvalidRequest, EngineClosed.
        """
        parsed = partial(engine.tokenize, parse_special=True, owner=owner)
        tokens: list[int] = []
        at = 0
        for match in self._framed.finditer(text):
            outside, inside = text[at : match.start()], match[1] or match[2]
            if outside or not at:
                tokens += parsed(outside, add_special and not at)
            if inside:
                tokens += engine.tokenize(inside, add_special=False)
            at = match.end()
        if text[at:] or not at:
            tokens += parsed(text[at:], add_special and not at)
        return tokens


def unframed(text: str) -> str:
    """The text without the marks."""
    return text.replace(_BEGIN, "").replace(_END, "")


def _framed(match: re.Match[str]) -> str:
    return _BEGIN + match[0] + _END


def _longest(texts: Collection[str]) -> str:
    """A regular expression of the longest of these sorted texts; a trie, so its time is linear."""
    branches = [
        re.escape(first) + _longest([text[1:] for text in group])
        for first, group in groupby(filter(None, texts), key=lambda text: text[0])
    ]
    if not branches:
        return ""
    body = branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
    return f"(?:{body})?" if "" in texts else body
