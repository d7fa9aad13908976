"""One request's state between submission and end: its tokens, its text, its place in the cache."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Sequence as Seq

from cllm.engine.detokenizer import Detokenizer
from cllm.engine.generation import FinishReason, Generation, TokenRecord
from cllm.engine.llama import FloatArray, Vocab
from cllm.engine.logprobs import logprobs
from cllm.engine.params import SamplingParams
from cllm.engine.prefix_cache import Slot
from cllm.engine.sampling import TokenSampler
from cllm.engine.stops import StopMatcher


class Sequence:
    """Prompt and generated tokens in one array; those before slot.length are in the cache.

    A preempted sequence simply has no slot: everything is evaluated again when it gets one, and
    sampler, detokenizer and stop matcher go on where they were.
    """

    __slots__ = (
        "_detokenizer",
        "_piece",
        "_stops",
        "_vocab",
        "deadline",
        "deadline_s",
        "generation",
        "max_length",
        "n_prompt",
        "params",
        "preempted",
        "sampler",
        "slot",
        "tokens",
    )

    def __init__(
        self,
        prompt: Seq[int],
        params: SamplingParams,
        generation: Generation,
        vocab: Vocab,
        ctx_size: int,
        deadline: float | None,
    ) -> None:
        self.tokens = array("i", prompt)
        self.n_prompt = len(prompt)
        self.params = params
        self.generation = generation
        self.deadline_s = deadline
        self.deadline = math.inf if deadline is None else time.monotonic() + deadline
        self.max_length = ctx_size
        if params.max_tokens is not None:
            self.max_length = min(ctx_size, self.n_prompt + params.max_tokens)
        self.slot: Slot | None = None
        self.sampler: TokenSampler | None = None
        self.preempted = False
        self._vocab = vocab
        self._piece = vocab.spelled if params.spell_special else vocab.piece
        self._detokenizer = Detokenizer(self._piece)
        self._stops = StopMatcher(params.stop)

    @property
    def pending(self) -> int:
        """Tokens that are not in the cache yet; just the newest while it is generating."""
        assert self.slot is not None
        return len(self.tokens) - self.slot.length

    @property
    def decoding(self) -> bool:
        """Whether it needs just one token evaluated to go on with its text."""
        return self.pending == 1 and len(self.tokens) > self.n_prompt

    def choose(self, row: FloatArray) -> int:
        """Choose the next token from its logits, which are overwritten, and record it if asked.

        Raises EngineError if the model gave no number.
        """
        assert self.sampler is not None
        params = self.params
        if params.logprobs is not None:
            own = row.copy()
            token = self.sampler.choose(row, self.tokens)
            self._record(token, *logprobs(own, token, params.logprobs))
        else:
            token = self.sampler.choose(row, self.tokens)
            if params.record_tokens:
                self._record(token, math.nan, ())
        return token

    def _record(self, token: int, logprob: float, top: tuple[tuple[int, float], ...]) -> None:
        piece = b"" if self._vocab.is_eog(token) else self._piece(token)
        self.generation._record(TokenRecord(token, piece, logprob, top))

    def accept(self, token: int, now: float) -> FinishReason | None:
        """Take the next token: publish the text it completes and say whether it was the last."""
        generation = self.generation
        generation._note_token(now)
        self.tokens.append(token)
        if self._vocab.is_eog(token):
            self._publish_rest()
            return FinishReason.STOP
        text = self._detokenizer.push(token)
        if text:
            text, stopped = self._stops.push(text)
            if text:
                generation._append(text)
            if stopped:
                return FinishReason.STOP
        if len(self.tokens) >= self.max_length:
            return FinishReason.STOP if self._publish_rest() else FinishReason.LENGTH
        return None

    def _publish_rest(self) -> bool:
        """No token will follow: publish what was held back; True if a stop string ended it."""
        text, stopped = self._stops.push(self._detokenizer.flush())
        text += "" if stopped else self._stops.flush()
        if text:
            self.generation._append(text)
        return stopped

    def close(self) -> None:
        """Free what llama.cpp allocated for it."""
        if self.sampler is not None:
            self.sampler.close()
            self.sampler = None
