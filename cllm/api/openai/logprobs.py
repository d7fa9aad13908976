"""Log-probabilities of tokens in OpenAI's two shapes."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cllm.engine import Engine
    from cllm.engine.generation import TokenRecord

_LEAST = -9999.0  # stands for a probability of 0, as OpenAI has it; JSON knows no infinity


def chat_logprobs(
    engine: Engine, records: Iterable[TokenRecord], by_number: bool = False
) -> dict[str, Any]:
    """`logprobs` of a chat completion's choice. A token that ends the answer is not shown.

    by_number: tokens are shown as vLLM's `token_id:N`, not as text.
    """

    def shown(id: int, piece: bytes, logprob: float) -> dict[str, Any]:
        text = _numbered(id) if by_number else piece.decode("utf-8", "replace")
        return {"token": text, "logprob": max(logprob, _LEAST), "bytes": list(piece)}

    content = [
        {
            **shown(record.token, record.piece, record.logprob),
            "top_logprobs": [shown(id, engine.piece(id), logprob) for id, logprob in record.top],
        }
        for record in records
        if record.piece
    ]
    return {"content": content, "refusal": None}


def prompt_logprobs(
    engine: Engine, records: Sequence[TokenRecord], count: int
) -> list[dict[str, Any] | None]:
    """A prompt's tokens in vLLM's shape: each with its `count` alternatives, by token number."""
    shown: list[dict[str, Any] | None] = []
    pieces = _pieces(engine, records)
    for record in records:
        ranked = [(id, logprob, rank) for rank, (id, logprob) in enumerate(record.top[:count], 1)]
        found = {
            str(id): {
                "logprob": max(logprob, _LEAST),
                "rank": rank,
                "decoded_token": pieces[id].decode("utf-8", "replace"),
            }
            for id, logprob, rank in [(record.token, record.logprob, record.rank), *ranked]
        }
        shown.append(found if record.rank else None)
    return shown


class TextLogprobs:
    """`logprobs` of a text completion's choice, as its text goes on."""

    __slots__ = ("_by_number", "_count", "_decoder", "_echoed", "_engine", "_offset")

    def __init__(self, engine: Engine, count: int = 0, by_number: bool = False) -> None:
        """count: alternatives of each token of an echoed prompt. by_number: as in chat_logprobs."""
        self._engine = engine
        self._by_number = by_number
        self._count = count
        self._echoed = False
        self._offset = 0  # characters of the text so far
        self._decoder = _decoder()

    def of_prompt(self, records: Sequence[TokenRecord], echo: str) -> dict[str, Any]:
        """For each token of an echoed prompt; the first one has no log-probability."""
        self._echoed = True
        # The echo leaves out what tokenizing adds by itself, at the beginning.
        whole = b"".join(record.piece for record in records).decode("utf-8", "replace")
        self._offset = min(0, len(echo) - len(whole))
        shown = self._shown(records, self._count)
        self._offset, self._decoder = len(echo), _decoder()
        return shown

    def of(self, records: Sequence[TokenRecord]) -> dict[str, Any]:
        """For the generated tokens that follow those before.

        After an echo, the token that ends the text counts too: clients take the prompt's part by
        the number of tokens that follow it.
        """
        return self._shown([record for record in records if record.piece or self._echoed])

    def _shown(self, records: Sequence[TokenRecord], count: int | None = None) -> dict[str, Any]:
        offsets, pieces = [], _pieces(self._engine, records)
        for record in records:
            offsets.append(max(0, self._offset))
            self._offset += len(self._decoder.decode(record.piece))
        if self._by_number:
            texts = {id: _numbered(id) for id in pieces}
        else:
            texts = {id: _text(piece) for id, piece in pieces.items()}
            texts |= {r.token: _text(r.piece) for r in records if r.piece}
        return {
            "tokens": [texts[record.token] for record in records],
            "token_logprobs": [_number(record.logprob) for record in records],
            "top_logprobs": [_top(record, count, texts) for record in records],
            "text_offset": offsets,
        }


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several parts of `logprobs` as one."""
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


def _top(
    record: TokenRecord, count: int | None, texts: Mapping[int, str]
) -> dict[str, float] | None:
    """Alternatives, and the token itself where it is none of them.

    Of tokens with the same text the most probable one is shown.
    """
    if math.isnan(record.logprob):
        return None
    top: dict[str, float] = {}
    for id, value in [*record.top[:count], (record.token, record.logprob)]:
        text = texts[id]
        top[text] = max(value, top.get(text, _LEAST))
    return top


def _pieces(engine: Engine, records: Sequence[TokenRecord]) -> Mapping[int, bytes]:
    """The bytes of all tokens in the records."""
    tokens = {record.token for record in records}
    tokens.update(id for record in records for id, _ in record.top)
    return dict(zip(tokens, engine.pieces(list(tokens)), strict=True))


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")


def _number(logprob: float) -> float | None:
    return None if math.isnan(logprob) else max(logprob, _LEAST)


def _numbered(token: int) -> str:
    return f"token_id:{token}"


def _text(piece: bytes) -> str:
    """The token as text; one that is a part of a character as OpenAI spells bytes."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
