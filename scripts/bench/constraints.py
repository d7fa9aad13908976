"""The cost of constraints: llguidance against llama.cpp's grammar sampler, and whole generations.

Both compile the same schemas for the same vocabulary and follow the same texts. The time of a token
is the processor time to rule out, in a row of logits, all tokens that may not follow, and to accept
the next one. Then eight sequences generate with and without a constraint.
"""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import llama_cpp.llama_cpp as llama_c
import numpy as np
from llama_cpp.llama_grammar import json_schema_to_gbnf
from llguidance import LLTokenizer

from cllm.engine import Constraint, Engine, SamplingParams
from cllm.engine.constraints.compiling import compile_constraint
from cllm.engine.constraints.guide import Guide
from cllm.engine.llama import CANDIDATE, FloatArray, Vocab

from . import common as bench

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
TOOLS: dict[str, Any] = {
    "anyOf": [
        {
            "type": "object",
            "properties": {
                "name": {"const": f"tool_{i}"},
                "arguments": {
                    "type": "object",
                    "properties": {
                        f"argument_{j}": {"type": ["string", "integer", "boolean"][j % 3]}
                        for j in range(i % 6 + 1)
                    },
                    "required": [f"argument_{j}" for j in range(i % 6 + 1)],
                    "additionalProperties": False,
                },
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for i in range(20)
    ]
}
TEXT: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
SENTENCE = "It was a bright cold day in April, and the clocks were striking thirteen. "
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "one object": (PERSON, {"name": "Ada Lovelace", "age": 36, "tags": ["red", "blue"]}),
    "twenty tools": (
        TOOLS,
        {
            "name": "tool_4",
            "arguments": {
                "argument_0": "Berlin, Alexanderplatz",
                "argument_1": 12345,
                "argument_2": True,
                "argument_3": "tomorrow",
                "argument_4": 7,
            },
        },
    ),
    "long strings": (TEXT, [SENTENCE * 3] * 2),
}
REPEATS = 5
SEQUENCES = 8
PROMPT = "Tell me about "

Step = Callable[[FloatArray, int], None]  # rule out in a row of logits, then accept a token


def main() -> None:
    """Measure both and print the tables."""
    options = bench.parser(__doc__ or "", "")
    options.add_argument("--model", type=Path, required=True, metavar="GGUF")
    options.add_argument("--tokens", type=bench.positive, default=64, help="of each generation")
    options.add_argument("--rounds", type=bench.positive, default=5)
    given = bench.parse(options, tokens=16, rounds=1)
    report = bench.Report("Constraints")
    with Engine.load(given.model, parallel=SEQUENCES, ctx_size=1024) as engine:
        vocab = engine._vocab
        began = time.thread_time()
        tokenizer = vocab.for_llguidance(vocab.pieces_for_llguidance())
        compile_constraint(Constraint("regex", "a"), tokenizer)
        prepared = time.thread_time() - began
        heading = f"{vocab.n_tokens} tokens, prepared for llguidance in {prepared:.2f} s"
        rows = [
            sampler_row(name, by, start, vocab, *case)
            for name, case in CASES.items()
            for by, start in (
                ("llguidance", guided(tokenizer, vocab)),
                ("llama.cpp", sampled(vocab)),
            )
        ]
        report.table(heading, rows)
        generation(engine, given.tokens, given.rounds, report)
    report.write(given.json)


def sampler_row(
    name: str,
    by: str,
    start: Callable[[dict[str, Any]], Step],
    vocab: Vocab,
    schema: dict[str, Any],
    document: Any,
) -> dict[str, Any]:
    """Follow one text several times."""
    tokens = vocab.tokenize(json.dumps(document), False, False)
    row = np.random.default_rng(0).standard_normal(vocab.n_tokens).astype(np.float32)
    compiled, times = [], []
    for repeat in range(REPEATS):
        began = time.thread_time()
        step = start({**schema, "$comment": str(repeat)})  # not compiled before
        compiled.append(time.thread_time() - began)
        for token in tokens:
            logits = row.copy()
            began = time.thread_time()
            step(logits, token)
            times.append(time.thread_time() - began)
            if logits[token] != row[token]:
                raise bench.BenchError(f"{by} does not allow the text of {name!r}")
    return {
        "schema": name,
        "by": by,
        "tokens": len(tokens),
        "compile ms": round(1e3 * median(compiled), 2),
        "ms a token": round(1e3 * sum(times) / len(times), 3),
        "p99 ms": round(1e3 * bench.percentile(times, 99), 3),
    }


def guided(tokenizer: LLTokenizer, vocab: Vocab) -> Callable[[dict[str, Any]], Step]:
    """llguidance, as the engine uses it."""

    def start(schema: dict[str, Any]) -> Step:
        matcher = compile_constraint(Constraint("json_schema", schema), tokenizer)
        guide = Guide(matcher, vocab.n_tokens)

        def step(row: FloatArray, token: int) -> None:
            guide.exclude(row)
            guide.accept(token)

        return step

    return start


def sampled(vocab: Vocab) -> Callable[[dict[str, Any]], Step]:
    """llama.cpp's grammar sampler over all tokens, as a mask covers them."""
    records = np.empty(vocab.n_tokens, dtype=CANDIDATE)
    records["id"] = np.arange(vocab.n_tokens)
    array = llama_c.llama_token_data_array()

    def start(schema: dict[str, Any]) -> Step:
        grammar = json_schema_to_gbnf(json.dumps(schema)).encode()
        sampler = llama_c.llama_sampler_init_grammar(vocab.handle, grammar, b"root")
        if not sampler:
            raise bench.BenchError("llama.cpp cannot read its own grammar")

        def step(row: FloatArray, token: int) -> None:
            records["logit"] = row
            array.data = ctypes.cast(records.ctypes.data, llama_c.llama_token_data_p)
            array.size, array.selected, array.sorted = len(records), -1, False
            llama_c.llama_sampler_apply(sampler, ctypes.byref(array))
            llama_c.llama_sampler_accept(sampler, token)
            row[:] = records["logit"]

        return step

    return start


def generation(engine: Engine, tokens: int, rounds: int, report: bench.Report) -> None:
    """Measure tokens/s in turns. In a long string no token is forced; in a schema many are."""
    long_string = {"type": "array", "items": {"type": "string", "minLength": 100_000}}
    ways = {"free": None, "a long string": long_string, "twenty tools": TOOLS}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name, schema in ways.items():
            constraint = None if schema is None else Constraint("json_schema", schema)
            began = time.perf_counter()
            running = [
                engine.submit(
                    PROMPT,
                    SamplingParams(
                        max_tokens=tokens,
                        ignore_eos=True,
                        seed=turn * SEQUENCES + i,
                        constraint=constraint,
                    ),
                )
                for i in range(SEQUENCES)
            ]
            done = [generation.result() for generation in running]
            made = sum(each.usage.completion_tokens for each in done)
            speeds[name].append(made / (time.perf_counter() - began))
    ratios = {
        name: median(a / b for a, b in zip(speeds[name], speeds["free"], strict=True))
        for name in ways
    }
    report.table(
        f"Generation, {SEQUENCES} sequences of up to {tokens} tokens, {rounds} rounds in turns",
        [
            {"constraint": name, "tokens/s": median(speeds[name]), "of free": ratios[name]}
            for name in ways
        ],
    )
    report.target(
        "constrained ≥ 0.9 of free", ratios["a long string"], ratios["a long string"] >= 0.9
    )
