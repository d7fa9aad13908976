"""Log-probabilities of prompts are those of llama.cpp, also next to streams and when cached."""

from __future__ import annotations

import pytest

from cllm.engine import Engine, SamplingParams
from tests.api.api_client import Live
from tests.engine.engine_helpers import Watched, finished, greedy
from tests.real_model.reference import Reference

CONTEXT = "The capital of France is Paris. The capital of Italy is Rome. " * 6
ENDINGS = ["The capital of Germany is Berlin.", "The capital of Germany is a pear.", "人工智能 🙂"]
NEAR = 1e-3


def scores(reference: Reference, tokens: list[int]) -> list[float]:
    rows = reference.logprobs(tokens)
    return [float(row[token]) for row, token in zip(rows, tokens[1:], strict=True)]


def test_scores_are_those_of_llama_cpp(engine: Engine, reference: Reference) -> None:
    prompts = [reference.tokenize(CONTEXT + ending) for ending in ENDINGS]
    finished(engine.submit(prompts[0], greedy(1)))  # its prefix is cached from here on
    stream = Watched(engine, reference.tokenize("Once upon a time"), greedy(None))
    stream.wait_for_tokens(1)
    params = SamplingParams(max_tokens=0, prompt_logprobs=1)
    generations = [engine.submit(prompt, params) for prompt in prompts]
    for prompt, generation in zip(prompts, generations, strict=True):
        finished(generation)
        found = [record.logprob for record in generation.take_prompt_tokens()[1:]]
        assert found == pytest.approx(scores(reference, prompt), abs=NEAR)
    stream.generation.cancel()


def test_lm_evals_requests_find_the_better_ending(live: Live, reference: Reference) -> None:
    """The request and the reading of the answer are those of lm-eval's local-completions."""
    context = live.post("/tokenize", {"prompt": CONTEXT, "add_special_tokens": False}).json()
    begun = len(context["tokens"])
    prompts = [reference.tokenize(CONTEXT + ending) for ending in ENDINGS]
    body = {"model": "any", "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1,
            "seed": 1234, "echo": True}  # fmt: skip
    sums = []
    for prompt, choice in zip(
        prompts, live.post("/v1/completions", body).json()["choices"], strict=True
    ):
        values = choice["logprobs"]["token_logprobs"][begun:-1]
        assert values == pytest.approx(scores(reference, prompt)[begun - 1 :], abs=NEAR)
        sums.append(sum(values))
    assert sums.index(max(sums)) == 0
