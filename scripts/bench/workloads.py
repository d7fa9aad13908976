"""The named workloads: how many clients send which requests."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import llama_cpp

from cllm.engine.llama import Vocab, init_backend

from .common import BenchError

SEED_PROMPT = "人工智能是计算机科学的一个分支"
SAMPLING = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
GREEDY = {"temperature": 0.0}
# Every string is bounded: a model with random weights would never close one by itself.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 4, "maxLength": 12},
        "kind": {"enum": ["person", "place", "thing"]},
        "size": {"type": "integer", "minimum": 0, "maximum": 999},
        "known": {"type": "boolean"},
        "tags": {
            "type": "array", "minItems": 2, "maxItems": 3,
            "items": {"type": "string", "minLength": 2, "maxLength": 8},
        },
    },
    "required": ["name", "kind", "size", "known", "tags"],
    "additionalProperties": False,
}  # fmt: skip
_TEXT = (
    "the old house by the river was quiet that morning and nobody knew why the door stood open "
    "when a small dog ran over the bridge with something red between its teeth so people from "
    "town came out to look at it while rain began to fall on their hats"
)


@dataclass(frozen=True, slots=True)
class Request:
    """One requested generation."""

    prompt: str
    max_tokens: int
    sampling: dict[str, Any]
    json: bool = False  # the answer is JSON of the shape SCHEMA
    leave_after: int = 0  # events after which the client disconnects; 0: it stays
    first_counts: bool = True  # the time to its first token is part of the result
    gaps_count: bool = True  # the times between its tokens are


Script = Sequence[Request]


@dataclass(frozen=True, slots=True)
class Crowd:
    """The requests of one round: scripts that `clients` share, and late ones.

    earlier: scripts before a restart of the server, which is not measured.
    limit: seconds after which the answers that are not complete are cut.
    """

    clients: int
    scripts: Sequence[Script]
    late: Sequence[Script] = ()
    earlier: Sequence[Script] = ()
    limit: float = float("inf")


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload; `make` gives a round's crowd from its writer, different in each round."""

    name: str
    about: str
    make: Callable[[Writer, bool], Crowd]  # the writer, whether the smallest will do
    parallel: int = 8  # sequences of the server
    ctx_size: int = 512  # tokens of each
    alone: bool = False  # for the engine and llama-batched-bench, no server
    probed: bool = False  # with /health meanwhile
    copies: bool = False  # needs the model that copies
    hybrid: bool = False  # needs a model with recurrent layers
    json: bool = False
    restarts: bool = False  # the servers restart between a crowd's earlier scripts and the others


class Writer:
    """Writes texts of a given length in a model's tokens; the same seed, the same texts."""

    def __init__(self, model: Path) -> None:
        init_backend()  # silences llama.cpp
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        handle = llama_cpp.llama_model_load_from_file(os.fsencode(model), params)
        if not handle:
            raise BenchError(f"{model} is no model that llama.cpp can read")
        self._vocab = Vocab(llama_cpp.llama_model_get_vocab(handle), adds_space=False)
        self._dice = random.Random(0)

    def seed(self, seed: str) -> Writer:
        self._dice = random.Random(seed)
        return self

    def tokens(self, text: str) -> int:
        return len(self._vocab.tokenize(text, add_special=False, parse_special=False))

    def text(self, tokens: int) -> str:
        """Words without sense, no two texts alike."""
        words = self._dice.choices(_TEXT.split(), k=tokens)
        words = words[: max(1, round(tokens * tokens / self.tokens(" ".join(words))))]
        return " ".join(words)

    def repeated(self, text: str, tokens: int) -> str:
        return text * max(1, round(tokens / self.tokens(text)))


def _seed(writer: Writer, quick: bool) -> Crowd:
    request = Request(writer.repeated(SEED_PROMPT, 32), 5 if quick else 50, SAMPLING)
    return Crowd(8, [[request]] * (8 if quick else 40))


def _shared_prefix(writer: Writer, quick: bool) -> Crowd:
    system = writer.text(40 if quick else 1000)
    return Crowd(8, [
        [Request(f"{system}\n{writer.text(24)}", 4 if quick else 32, SAMPLING)]
        for _ in range(8 if quick else 24)
    ])  # fmt: skip


def _multi_turn(writer: Writer, quick: bool, tokens: int = 24) -> Crowd:
    """Each client takes the turns of two conversations alternately, so that none stays put."""

    def conversation() -> list[Request]:
        text, turns = writer.text(30 if quick else 240), []
        for _ in range(2 if quick else 3):
            turns.append(Request(text, 4 if quick else tokens, SAMPLING))
            # The answer in the history is the workload's, so that every server reads the same.
            text += f"\n{writer.text(24)}\n{writer.text(56)}"
        return turns

    return Crowd(8, [
        [turn for turns in zip(conversation(), conversation(), strict=True) for turn in turns]
        for _ in range(2 if quick else 8)
    ])  # fmt: skip


def _thinking(writer: Writer, quick: bool) -> Crowd:
    """The same, but of each answer the history has less than was generated."""
    return _multi_turn(writer, quick, 64)


def _restart(writer: Writer, quick: bool) -> Crowd:
    """Conversations whose first turn is before the restart, and whose second is measured."""
    earlier, later = [], []
    for _ in range(2 if quick else 8):
        text = writer.text(100 if quick else 600)
        earlier.append([Request(text, 4, SAMPLING)])
        text += f"\n{writer.text(24)}\n{writer.text(56)}"
        later.append([Request(text, 4 if quick else 24, SAMPLING)])
    return Crowd(8, later, earlier=earlier)


def _long_prompt(writer: Writer, quick: bool) -> Crowd:
    running = Request("", 6 if quick else 120, SAMPLING, first_counts=False)
    arriving = Request("", 2 if quick else 8, SAMPLING, gaps_count=False)
    return Crowd(
        8,
        [[replace(running, prompt=writer.text(32))] for _ in range(8)],
        [[replace(arriving, prompt=writer.text(60 if quick else 2000))] for _ in range(3)],
    )


def _single(writer: Writer, quick: bool) -> Crowd:
    return Crowd(1, [[Request(writer.text(32), 5 if quick else 128, SAMPLING)]])


def _many(writer: Writer, quick: bool) -> Crowd:
    return Crowd(64, [
        [Request(writer.text(32), 2 if quick else 24, SAMPLING)] for _ in range(64 if quick else 96)
    ])  # fmt: skip


def _copy(writer: Writer, quick: bool) -> Crowd:
    """The text, then its beginning again: a model that copies goes on with the rest."""

    def request() -> Request:
        text = writer.text(60 if quick else 320)
        beginning = " ".join(text.split()[:12])
        return Request(f"{text}\n{beginning}", 8 if quick else 192, GREEDY)

    return Crowd(1, [[request()], [request()]])


def _json(writer: Writer, quick: bool) -> Crowd:
    return Crowd(8, [
        [Request(writer.text(32), 400, GREEDY, json=True)] for _ in range(4 if quick else 24)
    ])  # fmt: skip


def _churn(writer: Writer, quick: bool) -> Crowd:
    """Every other client leaves at its sixth event of the many that it asked for."""
    tokens = 4 if quick else 32
    stays = Request("", tokens, SAMPLING)
    leaves = Request("", 40 if quick else 200, SAMPLING, leave_after=6)
    return Crowd(8, [
        [replace(leaves if number % 2 else stays, prompt=writer.text(32))]
        for number in range(8 if quick else 48)
    ])  # fmt: skip


def _ceiling(sequences: int) -> Workload:
    def make(writer: Writer, quick: bool) -> Crowd:
        request = Request("", 4 if quick else CEILING_TOKENS, GREEDY)
        return Crowd(sequences, [
            [replace(request, prompt=writer.text(CEILING_PROMPT))] for _ in range(sequences)
        ])  # fmt: skip

    plural = "s" if sequences > 1 else ""
    about = f"the engine alone, {sequences} sequence{plural}, against llama-batched-bench"
    return Workload(f"ceiling-{sequences}", about, make, parallel=sequences, alone=True)


CEILING_PROMPT, CEILING_TOKENS = 32, 64
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "seed", "40 requests, 8 at a time, one prompt of 32 tokens, 50 tokens each", _seed
        ),
        Workload(
            "shared-prefix", "24 questions behind one system prompt of 1 000 tokens, 8 at a time",
            _shared_prefix, ctx_size=1536,
        ),
        Workload(
            "multi-turn", "16 conversations of 3 turns, 8 at a time: each comes back",
            _multi_turn, ctx_size=1024,
        ),
        Workload(
            "thinking", "multi-turn with a hybrid model; the history leaves the thinking out",
            _thinking, ctx_size=1024, hybrid=True,
        ),
        Workload(
            "restart", "8 conversations of 600 tokens that come back after a restart", _restart,
            ctx_size=1024, restarts=True,
        ),
        Workload(
            "long-prompt", "8 running streams while prompts of 2 000 tokens arrive one by one",
            _long_prompt, parallel=9, ctx_size=2560,
        ),
        Workload("single", "one stream of 128 tokens", _single),
        Workload(
            "many", "64 clients on 16 sequences, /health meanwhile", _many, parallel=16,
            probed=True,
        ),
        Workload(
            "copy", "one stream that repeats a text of its prompt, greedy", _copy, ctx_size=1024,
            copies=True,
        ),
        Workload(
            "json", "8 at a time, answers constrained by a JSON schema, greedy", _json,
            ctx_size=768, json=True,
        ),
        Workload("churn", "8 at a time, every other client leaves after six events", _churn),
        *map(_ceiling, (1, 8, 16)),
    )
}  # fmt: skip
