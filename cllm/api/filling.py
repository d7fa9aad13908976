"""The prompt for a gap: a model trained for it writes what stands before a suffix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cllm.engine import InvalidRequest

if TYPE_CHECKING:
    from cllm.engine import Engine


def filling(engine: Engine, tokens: list[int], suffix: str) -> list[int]:
    """The prompt by which a model writes what stands between the tokens and the suffix.

    Raises InvalidRequest if the model was not trained for it.
    """
    info = engine.info()
    before, behind, middle = info.fim.prefix, info.fim.suffix, info.fim.middle
    if before is None or behind is None or middle is None:
        able = "no suffix: this model has no fill-in-the-middle tokens"
        raise InvalidRequest("suffix", suffix, able)
    behind_tokens = engine.tokenize(suffix, add_special=False)
    start, rest = [], tokens
    if tokens and tokens[0] == info.bos_token:
        start, rest = tokens[:1], tokens[1:]
    return [*start, before, *rest, behind, *behind_tokens, middle]
