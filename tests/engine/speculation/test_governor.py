"""When drafts are evaluated: where they pay, and almost never where they do not; no model runs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cllm.engine import Generation, SamplingParams, llama
from cllm.engine.sequence import Sequence
from cllm.engine.speculation.drafter import Drafter
from cllm.engine.speculation.speculation import Speculation

STEP_S = 0.01
CHEAP, DEAR, TOO_DEAR = (0.05, 0.08), (0.4, 0.45), (0.5, 1.2)  # fixed, each: in steps

Make = Callable[..., Sequence]


@pytest.fixture
def make(model_path: Path) -> Iterator[Make]:
    """Makes a sequence with a prompt."""
    model = llama.Model(str(model_path))

    def sequence(prompt: list[int], drafter: bool = True) -> Sequence:
        generation, params = Generation(len(prompt)), SamplingParams()
        own = Drafter() if drafter else None
        return Sequence(prompt, params, generation, model.vocab, 100_000, None, drafter=own)

    yield sequence
    model.close()


class Play:
    """Lets sequences generate given texts; counts time, in plain steps, and rows."""

    def __init__(self, speculation: Speculation, costs: tuple[float, float]) -> None:
        self.speculation = speculation
        self.fixed, self.each = costs
        self.time = 0.0
        self.steps = self.drafted = self.rejected = 0
        self.lengths: list[set[int]] = []  # of the drafts of each step

    def run(self, sequences: list[Sequence], texts: list[list[int]]) -> None:
        """Generate until the first text is over."""
        at, count = [0] * len(texts), len(sequences)
        while all(a < len(text) for a, text in zip(at, texts, strict=True)):
            self.speculation.draft(sequences, 512, STEP_S)
            rows = 0
            self.lengths.append({sequence.drafted for sequence in sequences})
            for i, (sequence, text) in enumerate(zip(sequences, texts, strict=True)):
                draft, rest = sequence.rollback(), text[at[i] :]
                right = next((n for n, t in enumerate(draft) if rest[n : n + 1] != [t]), len(draft))
                if draft and sequence.drafter is not None:
                    sequence.drafter.observe(len(draft), right)
                sequence.tokens.extend(rest[: right + 1])
                at[i] += right + 1
                rows += len(draft)
                self.rejected += len(draft) - right
            self.steps += 1
            self.drafted += rows
            step = 1 + (self.fixed + self.each * rows / count if rows else 0.0)
            self.time += step
            if rows:
                self.speculation.observe(count, rows, step * STEP_S, STEP_S)


def wandering(dice: random.Random, tokens: int) -> list[int]:
    """A text that often comes by the same three tokens and goes on elsewhere."""
    return dice.choices(range(12), k=tokens)


def source(dice: random.Random, tokens: int = 250) -> list[int]:
    return dice.sample(range(100, 5000), k=tokens)


@pytest.mark.parametrize("costs", [CHEAP, DEAR, TOO_DEAR])
def test_a_text_that_repeats_nothing_takes_at_most_a_hundredth_longer(
    make: Make, costs: tuple[float, float]
) -> None:
    dice, speculation = random.Random(1), Speculation(32, split_cache=False)
    play = Play(speculation, costs)
    for _ in range(8):
        play.run([make(wandering(dice, 300))], [wandering(dice, 300)])
    assert play.time <= 1.01 * 2400


@pytest.mark.parametrize(("costs", "faster"), [(CHEAP, 5.0), (DEAR, 1.5)])
def test_a_quotation_is_drafted_from_its_first_tokens_on(
    make: Make, costs: tuple[float, float], faster: float
) -> None:
    dice, speculation = random.Random(1), Speculation(32, split_cache=False)
    Play(speculation, costs).run([make(wandering(dice, 300))], [wandering(dice, 2000)])
    prompt = source(dice)
    play = Play(speculation, costs)
    play.run([make(prompt + wandering(dice, 20))], [prompt[20:220]])
    assert 200 / play.time > faster
    assert play.rejected < 40


def test_what_a_draft_costs_is_measured_again_where_it_was_too_much(make: Make) -> None:
    dice, speculation = random.Random(1), Speculation(32, split_cache=False)
    dear = Play(speculation, TOO_DEAR)
    for _ in range(10):
        prompt = source(dice)
        dear.run([make(prompt)], [prompt[:200]])
    assert dear.time <= 1.01 * 2000
    later = []
    for _ in range(30):
        prompt, play = source(dice), Play(speculation, CHEAP)
        play.run([make(prompt)], [prompt[:200]])
        later.append(play.time)
    assert later[-1] < 200 / 4


def test_in_a_split_cache_all_draft_equally_many_where_most_of_them_copy(make: Make) -> None:
    dice = random.Random(1)
    for copying, costs, pays in ((7, DEAR, True), (3, DEAR, False), (3, CHEAP, True)):
        speculation = Speculation(32, split_cache=True)
        prompts = [source(dice, 900) for _ in range(8)]
        texts = [p[:800] if i < copying else source(dice, 800) for i, p in enumerate(prompts)]
        play = Play(speculation, costs)
        play.run([make(prompt) for prompt in prompts], texts)
        assert all(len(lengths) == 1 for lengths in play.lengths)
        plain = play.drafted < 0.1 * 8 * play.steps
        assert plain != pays, (copying, costs)
        assert play.time <= 1.01 * 800


def test_a_sequence_that_must_not_draft_keeps_a_split_cache_from_drafting(make: Make) -> None:
    dice, prompt = random.Random(1), source(random.Random(2))
    play = Play(Speculation(32, split_cache=True), CHEAP)
    play.run([make(prompt), make(prompt, drafter=False)], [prompt[:200], source(dice)])
    assert play.drafted == 0
    play = Play(Speculation(32, split_cache=False), CHEAP)
    play.run([make(prompt), make(prompt, drafter=False)], [prompt[:200], source(dice)])
    assert play.drafted > 0


def test_texts_are_read_next_to_the_step_where_no_draft_can_pay(make: Make) -> None:
    """So that a draft that pays later begins where it would have begun otherwise."""
    dice, speculation = random.Random(1), Speculation(32, split_cache=True)
    prompts = [source(dice) for _ in range(2)]
    sequences = [make(prompt) for prompt in prompts]
    for _ in range(64):  # a token costs as much as a step
        speculation.observe(2, 64, STEP_S * 33, STEP_S)
    unread = 0
    for position in range(40):
        speculation.draft(sequences, 512, STEP_S)
        assert not any(sequence.drafted for sequence in sequences)
        unread += speculation.unread == sequences
        if speculation.reading is not None:
            speculation.reading()
        assert not speculation.unread and speculation.reading is None
        for sequence, prompt in zip(sequences, prompts, strict=True):
            sequence.tokens.append(prompt[position])
    assert 30 < unread < 40
    for _ in range(200):
        speculation.observe(2, 64, STEP_S * 1.5, STEP_S)
    speculation.draft(sequences, 512, STEP_S)
    assert [s.rollback()[:2] for s in sequences] == [prompt[40:42] for prompt in prompts]
