"""The finished file, used through llama.cpp like by any program."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_cpp import Llama

from .dialogue import ASSISTANT, Turn


def chat_prompt(turns: list[Turn]) -> str:
    """The turns in the chat format, with an open assistant turn at the end."""
    told = "".join(f"<|im_start|>{turn.role}\n{turn.text}<|im_end|>\n" for turn in turns)
    return f"{told}<|im_start|>{ASSISTANT}\n"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; temperature 0: greedily."""

    temperature: float = 0.0
    top_p: float = 0.95
    top_k: int = 40
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Reply:
    """The text, its number of tokens, and whether an end token ended it."""

    text: str
    tokens: int
    ended: bool
    seconds: float


class Speaker:
    """One loaded GGUF file and one stream."""

    def __init__(self, path: Path, threads: int = 2) -> None:
        self._model: Any = Llama(
            str(path), n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False
        )

    def tokenize(self, text: str) -> list[int]:
        """The ids of plain text, without a start token."""
        ids: list[int] = self._model.tokenize(text.encode(), add_bos=False, special=False)
        return ids

    def detokenize(self, ids: list[int]) -> bytes:
        """The bytes of the ids."""
        text: bytes = self._model.detokenize(ids)
        return text

    def complete(self, prompt: str, most: int = 400, how: Sampling | None = None) -> Reply:
        """The continuation of a prompt in which specials are written out."""
        how = how or Sampling()
        ids = self._model.tokenize(prompt.encode(), add_bos=True, special=True)
        self._model.set_seed(how.seed)
        text, count, ended, started = b"", 0, False, time.perf_counter()
        ends = {self._model.token_eos(), self._model.tokenize(b"<|im_end|>", False, True)[0]}
        chosen = {"temp": how.temperature, "top_p": how.top_p, "top_k": how.top_k}
        for token in self._model.generate(ids, **chosen, repeat_penalty=1.0):
            if token in ends:
                ended = True
                break
            text += self._model.detokenize([token])
            count += 1
            if count == most or len(ids) + count >= 2047:
                break
        seconds = time.perf_counter() - started
        return Reply(text.decode(errors="replace"), count, ended, seconds)

    def answer(self, turns: list[Turn], how: Sampling | None = None) -> Reply:
        """The assistant's next turn."""
        return self.complete(chat_prompt(turns), how=how)
