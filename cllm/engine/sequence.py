"""One request's state between submission and end: its tokens, its text, its place in the cache."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Sequence as Seq

from cllm.engine.cache.prefix_cache import Slot
from cllm.engine.constraints.guide import Guide
from cllm.engine.generation import FinishReason, Generation, TokenRecord
from cllm.engine.llama import FloatArray, Vocab
from cllm.engine.sampling.logprobs import logprobs
from cllm.engine.sampling.params import SamplingParams
from cllm.engine.sampling.sampler import TokenSampler
from cllm.engine.speculation.drafter import Guesser
from cllm.engine.text.detokenizer import Detokenizer
from cllm.engine.text.stops import StopMatcher


class Sequence:
    """Prompt and generated tokens in one array; those before slot.length are in the cache.

    A preempted sequence simply has no slot: everything is evaluated again when it gets one, and
    sampler, detokenizer and stop matcher go on where they were.
    """

    __slots__ = (
        "_detokenizer",
        "_newest",
        "_piece",
        "_stops",
        "_vocab",
        "deadline",
        "deadline_s",
        "fresh",
        "generation",
        "guesser",
        "guide",
        "max_length",
        "n_prompt",
        "params",
        "preempted",
        "sampler",
        "slot",
        "supposed",
        "tenant",
        "tokens",
        "wanted_slot",
    )

    def __init__(
        self,
        prompt: Seq[int],
        params: SamplingParams,
        generation: Generation,
        vocab: Vocab,
        ctx_size: int,
        deadline: float | None,
        guide: Guide | None = None,
        wanted_slot: int | None = None,
        fresh: bool = False,
        guesser: Guesser | None = None,
        tenant: str = "",
    ) -> None:
        """wanted_slot: the only one it may run in. fresh: it reuses no tokens of others."""
        self.tokens = array("i", prompt)
        self.n_prompt = len(prompt)
        self.params = params
        self.generation = generation
        self.guide = guide
        self.guesser = guesser
        self.supposed = 0  # of the newest tokens: guessed ones, from planning a step to sampling
        self.deadline_s = deadline
        self.deadline = math.inf if deadline is None else time.monotonic() + deadline
        self.max_length = ctx_size
        if params.max_tokens is not None:
            self.max_length = min(ctx_size, self.n_prompt + params.max_tokens)
        self.wanted_slot = wanted_slot
        self.fresh = fresh
        self.tenant = tenant
        self.slot: Slot | None = None
        self.sampler: TokenSampler | None = None
        self.preempted = False
        self._newest = 0
        self._vocab = vocab
        self._piece = vocab.spelled if params.spell_special else vocab.piece
        self._detokenizer = Detokenizer(self._piece)
        self._stops = StopMatcher(params.stop)

    @property
    def pending(self) -> int:
        """Tokens that are not in the cache yet; just the newest ones while it is generating."""
        assert self.slot is not None
        return len(self.tokens) - self.slot.length

    @property
    def decoding(self) -> bool:
        """Whether it needs just its newest tokens evaluated to go on with its text."""
        return self.pending <= self._newest

    def suppose(self, guessed: list[int]) -> None:
        """Take guessed tokens for the newest ones, so that they are evaluated too."""
        self.tokens.extend(guessed)
        self._newest += len(guessed)
        self.supposed = len(guessed)

    def take_back(self) -> list[int]:
        """Remove the guessed tokens and return them."""
        guessed: list[int] = []
        if self.supposed:
            end = len(self.tokens) - self.supposed
            guessed = self.tokens[end:].tolist()
            del self.tokens[end:]
            self._newest -= self.supposed
            self.supposed = 0
        return guessed

    def choose(self, rows: FloatArray) -> list[int]:
        """Choose what follows from the logits of the newest token and of each guessed one.

        rows: [1 + supposed, n_vocab]; overwritten. The guessed tokens are removed; as long as
        they are what is chosen, the next row counts too. Raises EngineError if there is no choice.
        """
        guessed = self.take_back()
        chosen = self._choose(rows[0])
        length = len(self.tokens)
        for guess, row in zip(guessed, rows[1:], strict=True):
            if chosen[-1] != guess or self._vocab.is_eog(guess):
                break
            self.tokens.append(guess)
            chosen += self._choose(row)
        del self.tokens[length:]
        if guessed and self.guesser is not None:
            self.guesser.observe(len(guessed), len(chosen) - 1)
            self.generation._note_guessed(len(guessed), len(chosen) - 1)
        return chosen

    def _choose(self, row: FloatArray) -> list[int]:
        """Choose the next token from its logits, which are overwritten, and record it if asked.

        Tokens that must follow it by the constraint come with it, except where log-probabilities
        are wanted of each.
        """
        assert self.sampler is not None
        params, guide = self.params, self.guide
        own = row.copy() if params.logprobs is not None else row
        forbidden = None if guide is None else guide.forbidden()
        token = self.sampler.choose(row, self.tokens, forbidden)
        if params.logprobs is not None:
            self._record(token, *logprobs(own, token, params.logprobs))
        chosen = [token]
        if guide is not None and not self._vocab.is_eog(token):
            guide.accept(token)
            if params.logprobs is None:
                chosen += guide.forced(self.max_length - len(self.tokens) - 1)
        return chosen

    def _record(self, token: int, logprob: float, top: tuple[tuple[int, float], ...]) -> None:
        piece = b"" if self._vocab.is_eog(token) else self._piece(token)
        self.generation._record(TokenRecord(token, piece, logprob, top))

    def accept(self, tokens: Seq[int], now: float) -> FinishReason | None:
        """Take the next tokens: publish the text they complete and say whether it was the last."""
        self._newest = len(tokens)
        ended = self.guide is not None and self.guide.ended
        for left, token in enumerate(tokens, start=1 - len(tokens)):
            reason = self._take(token, now, ended and left == 0)
            if reason is not None:
                return reason
        return None

    def _take(self, token: int, now: float, ends: bool) -> FinishReason | None:
        generation, params = self.generation, self.params
        generation._note_token(now)
        self.tokens.append(token)
        if params.record_tokens and params.logprobs is None:
            self._record(token, math.nan, ())
        if self._vocab.is_eog(token):
            self._publish_rest()
            return FinishReason.STOP
        text = self._detokenizer.push(token)
        if text:
            text, stopped = self._stops.push(text)
            if text:
                generation._append(text)
            if stopped:
                generation.stop_text = self._stops.found
                return FinishReason.STOP
        if ends:
            self._publish_rest()
            return FinishReason.STOP
        limit, spent = params.line_limit, now - generation._first_token
        late = limit is not None and generation.has_newline and spent > limit
        if late or len(self.tokens) >= self.max_length:
            self._detokenizer.drop()
            return FinishReason.STOP if self._publish_rest() else FinishReason.LENGTH
        return None

    def _publish_rest(self) -> bool:
        """No token will follow: publish what was held back; True if a stop string ended it."""
        text, stopped = self._stops.push(self._detokenizer.flush())
        text += "" if stopped else self._stops.flush()
        if text:
            self.generation._append(text)
        self.generation.stop_text = self._stops.found
        return stopped

    def close(self) -> None:
        """Free what llama.cpp allocated for it, its lookup table and its matcher."""
        self.guesser = self.guide = None
        if self.sampler is not None:
            self.sampler.close()
            self.sampler = None


def slot_of(sequence: Sequence) -> Slot:
    """The slot of a sequence that runs."""
    assert sequence.slot is not None
    return sequence.slot
