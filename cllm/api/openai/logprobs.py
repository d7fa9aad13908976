"""Log-probabilities of tokens in OpenAI's two shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cllm.engine import Engine
    from cllm.engine.generation import TokenRecord

_LEAST = -9999.0  # stands for a probability of 0, as OpenAI has it; JSON knows no infinity


def chat_logprobs(engine: Engine, records: Iterable[TokenRecord]) -> dict[str, Any]:
    """`logprobs` of a chat completion's choice. A token that ends the answer is not shown."""
    content = [
        {
            **_token(record.piece, record.logprob),
            "top_logprobs": [_token(engine.piece(id), logprob) for id, logprob in record.top],
        }
        for record in records
        if record.piece
    ]
    return {"content": content, "refusal": None}


def _token(piece: bytes, logprob: float) -> dict[str, Any]:
    return {
        "token": piece.decode("utf-8", "replace"),
        "logprob": max(logprob, _LEAST),
        "bytes": list(piece),
    }


class TextLogprobs:
    """`logprobs` of a text completion's choice, as its text goes on."""

    __slots__ = ("_engine", "_offset")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._offset = 0  # characters of the generated text so far

    def of(self, records: Sequence[TokenRecord]) -> dict[str, Any]:
        """For the tokens that follow those before."""
        records = [record for record in records if record.piece]
        offsets = []
        tokens = [_text(record.piece) for record in records]
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [max(record.logprob, _LEAST) for record in records],
            "top_logprobs": [self._top(record) for record in records],
            "text_offset": offsets,
        }

    def _top(self, record: TokenRecord) -> dict[str, float]:
        """Alternatives, and the token that was chosen where it is none of them."""
        found = [*record.top, (record.token, record.logprob)]
        return {_text(self._engine.piece(id)): max(value, _LEAST) for id, value in found}


def _text(piece: bytes) -> str:
    """The token as text; one that is a part of a character as OpenAI spells bytes."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
