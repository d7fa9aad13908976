"""The tokens in which a reranker reads a query together with a document.

Source: format_prompt_rerank of llama.cpp's server, whose scores these tokens reproduce.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cllm.engine.text.tokenizer import Tokenizer

_PLACE = re.compile(r"\{(query|document)\}")


class PairEncoder:
    """Puts query and document into the model's own template, or between its special tokens."""

    def __init__(self, tokenizer: Tokenizer, template: str | None) -> None:
        self._template = None if template is None else _PLACE.split(template)
        self._tokenizer = tokenizer
        vocab = tokenizer.vocab
        end = vocab.eos if vocab.eos >= 0 else vocab.sep
        self._begin = [vocab.bos] if vocab.adds_bos else []
        self._end = [end] if vocab.adds_eos else []
        self._between = self._end + ([vocab.sep] if vocab.adds_sep else [])

    def pairs(self, query: str, documents: Sequence[str]) -> list[list[int]]:
        """The tokens of each document with the query; raises InvalidRequest."""
        names = [f"documents[{number}]" for number in range(len(documents))]
        if self._template is None:
            asked = self._begin + self._tokenize("query", query, False) + self._between
            return [
                asked + self._tokenize(name, document, False) + self._end
                for name, document in zip(names, documents, strict=True)
            ]
        framed = self._framed("query", query)
        return [
            self._filled(framed, self._framed(name, document))
            for name, document in zip(names, documents, strict=True)
        ]

    def _framed(self, name: str, text: str) -> str | list[int]:
        """The text, or its tokens if it spells out special tokens: those must stay text."""
        tokens = self._tokenize(name, text, False)
        return text if tokens == self._tokenize(name, text, True) else tokens

    def _filled(self, query: str | list[int], document: str | list[int]) -> list[int]:
        """The template's tokens, with both filled in."""
        assert self._template is not None
        tokens: list[int] = []
        text = ""
        for number, part in enumerate(self._template):
            value: str | list[int] = part
            if number % 2:
                value = query if part == "query" else document
            if isinstance(value, str):
                text += value
                continue
            tokens += self._tokenize("query", text, True) + value
            text = ""
        return tokens + self._tokenize("query", text, True)

    def _tokenize(self, name: str, text: str, parse_special: bool) -> list[int]:
        return self._tokenizer.tokenize(text, False, parse_special, name)
