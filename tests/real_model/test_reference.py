"""Greedy texts are llama.cpp's own; what shares the batch changes no more than rounding."""

from __future__ import annotations

import pytest

from cllm.engine import Engine, SamplingParams
from tests.engine.engine_helpers import finished
from tests.real_model.reference import Reference

QUESTIONS = [
    "What is the capital of France?",
    "Name three colours.",
    "What is 2 + 2?",
    "Why is the sky blue?",
    "Write a sentence about a dog.",
    "Who wrote Hamlet?",
    "List the days of the week.",
    "What is photosynthesis?",
    "Translate 'good morning' into Spanish.",
    "How many legs does a spider have?",
    "Give me a recipe for pancakes.",
    "What is the largest ocean?",
    "Explain gravity to a child.",
    "Write a haiku about rain.",
    "What does a compiler do?",
    "Say hello in German.",
    "人工智能是什么？",
    "Qu'est-ce que la photosynthèse ?",
    "What does 🙂 mean?",
    "Continue: 1, 2, 3, 4,",
]
GREEDY = SamplingParams(max_tokens=24, temperature=0.0, record_tokens=True)

# Where rows share a batch, sums are taken in another order, and activations are rounded to 8 bits.
ROUNDING = 1.0


def prompt(question: str) -> str:
    """What the model's own template makes of a question."""
    return (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        f"<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_lone_greedy_text_is_that_of_llama_cpp(
    engine: Engine, reference: Reference, question: str
) -> None:
    tokens = reference.tokenize(prompt(question))
    assert engine.tokenize(prompt(question), parse_special=True) == tokens
    generation = engine.submit(tokens, GREEDY, fresh=True)
    expected = reference.greedy(tokens, 24)
    # A character that max_tokens cuts is left out.
    assert finished(generation).text == reference.text(expected).removesuffix("\ufffd")


def test_each_token_of_texts_that_share_batches_is_llama_cpps_choice_up_to_rounding(
    engine: Engine, reference: Reference
) -> None:
    prompts = [reference.tokenize(prompt(question)) for question in QUESTIONS]
    generations = [engine.submit(tokens, GREEDY) for tokens in prompts]
    for tokens, generation in zip(prompts, generations, strict=True):
        finished(generation)
        chosen = [record.token for record in generation.take_tokens()]
        assert chosen
        assert max(reference.shortfalls(tokens, chosen)) < ROUNDING


def test_the_bound_of_rounding_tells_texts_apart(reference: Reference) -> None:
    one, other = (reference.tokenize(prompt(question)) for question in QUESTIONS[:2])
    assert max(reference.shortfalls(one, reference.greedy(other, 24))) > 3 * ROUNDING
