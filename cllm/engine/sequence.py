"""One request's state between submission and end: its tokens, its text, its slot."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Sequence as Seq

from cllm.engine.cache.prefix_cache import Slot
from cllm.engine.constraints.guide import Guide
from cllm.engine.generation import FinishReason, Generation, GenerationWriter, TokenRecord
from cllm.engine.llama import FloatArray, Vocab
from cllm.engine.sampling.logprobs import logprobs
from cllm.engine.sampling.params import SamplingParams
from cllm.engine.sampling.prefilter import Found, row_of
from cllm.engine.sampling.prompt_scores import PromptScores
from cllm.engine.sampling.sampler import TokenSampler
from cllm.engine.sharing import COMMON, EQUAL, AdapterSet, Scope, Share
from cllm.engine.speculation.drafter import Drafter
from cllm.engine.text.detokenizer import Detokenizer
from cllm.engine.text.indent import IndentLimit
from cllm.engine.text.stops import StopMatcher

_ENDLESS = 2**62  # tokens


class Sequence:
    """Prompt and generated tokens in one array; those before slot.length are in the cache.

    A preempted sequence has no slot: all tokens are evaluated again when it gets one, and sampler,
    detokenizer and stop matcher continue where they were.
    """

    __slots__ = (
        "_ctx_size",
        "_detokenizer",
        "_end",
        "_indent",
        "_newest",
        "_passes",
        "_piece",
        "_prepares",
        "_stops",
        "_vocab",
        "deadline",
        "deadline_s",
        "drafted",
        "drafter",
        "fresh",
        "generation",
        "guide",
        "max_length",
        "n_prompt",
        "params",
        "preempted",
        "priority",
        "reproducible",
        "sampler",
        "scope",
        "scores",
        "share",
        "slot",
        "tenant",
        "tokens",
        "wanted_slot",
        "writer",
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
        drafter: Drafter | None = None,
        tenant: str = "",
        share: Share = EQUAL,
        priority: int = 0,
        scope: Scope = COMMON,
        shifts: bool = False,
        reproducible: bool = False,
    ) -> None:
        """wanted_slot: the only slot it may run in. fresh: it reuses no cached tokens.
        shifts: it goes on when the context is full, after a call of shift(). reproducible: its
        rows are computed alone, in the same parts whatever else runs.
        """
        self.tokens = array("i", prompt)
        self.n_prompt = len(prompt)
        self.params = params
        self.generation = generation
        self.writer = GenerationWriter(generation)
        self.guide = guide
        self.drafter = drafter
        self.drafted = 0  # of the newest tokens, from planning a step to sampling
        self.deadline_s = deadline
        self.deadline = math.inf if deadline is None else time.monotonic() + deadline
        most = _ENDLESS if params.max_tokens is None else self.n_prompt + params.max_tokens
        self._ctx_size = ctx_size
        self._end = most if shifts else min(ctx_size, most)  # length at which it ends
        self.max_length = min(ctx_size, most)  # that its tokens reach before the next shift
        self.wanted_slot = wanted_slot
        self.fresh = fresh or reproducible
        self.reproducible = reproducible
        self.tenant = tenant
        self.share = share
        self.priority = priority
        self.scope = scope
        self.slot: Slot | None = None
        # On the thread that submits: the engine thread has streams that wait.
        self.sampler: TokenSampler | None = TokenSampler(params, vocab)
        plain = params.logprobs is None and params.max_tokens != 0
        self._prepares = self.sampler.filter if plain else 0
        self.preempted = False
        self._newest = 0
        self._vocab = vocab
        self._piece = vocab.spelled if params.spell_special else vocab.piece
        known = vocab.spelled_texts if params.spell_special else vocab.texts_of_ascii
        self._detokenizer = Detokenizer(self._piece, known)
        self._stops = StopMatcher(params.stop)
        self._indent = IndentLimit(params.min_indent) if params.min_indent else None
        self._passes = not params.stop and self._indent is None  # all text, as it is
        self.scores: PromptScores | None = None
        if params.prompt_logprobs is not None:
            prompt_tokens, record = self.tokens[:], self.writer.record_prompt
            self.scores = PromptScores(prompt_tokens, params.prompt_logprobs, vocab.spelled, record)

    @property
    def request(self) -> Generation:
        """What the engine loop ends."""
        return self.generation

    @property
    def adapters(self) -> AdapterSet:
        """The LoRA adapters that it is computed with."""
        return self.scope.adapters

    @property
    def pending(self) -> int:
        """Tokens that are not in the cache yet; only the newest ones while it is generating."""
        assert self.slot is not None
        return len(self.tokens) - self.slot.length

    @property
    def decoding(self) -> bool:
        """Whether only its newest tokens must be evaluated before the next can be chosen."""
        assert self.slot is not None
        return len(self.tokens) - self.slot.length <= self._newest

    def add_draft(self, draft: list[int]) -> None:
        """Append drafted tokens, which are evaluated with the newest one."""
        self.tokens.extend(draft)
        self._newest += len(draft)
        self.drafted = len(draft)

    def rollback(self) -> list[int]:
        """Remove the drafted tokens and return them."""
        draft: list[int] = []
        if self.drafted:
            end = len(self.tokens) - self.drafted
            draft = self.tokens[end:].tolist()
            del self.tokens[end:]
            self._newest -= self.drafted
            self.drafted = 0
        return draft

    def shift(self, keep: int, discard: int) -> None:
        """Discard tokens after the first `keep`, as its slot has done. Not with a draft."""
        before, end = self.tokens[:], keep + discard
        del self.tokens[keep:end]
        self.n_prompt -= max(0, min(self.n_prompt, end) - keep)
        self._end -= discard
        self.max_length = min(self._ctx_size, self._end)
        if self.sampler is not None:
            self.sampler.note_shift(before, len(self.tokens))
        if self.drafter is not None:
            self.drafter = Drafter(self.drafter.chance)  # its positions are those of before
        self.generation.discarded += discard

    def prepare(self, row: FloatArray) -> int:
        """Prepare the logits of the newest token for a RowFilter; return the sampler's filter.

        0: nothing was done, choose() does all. Negative: a few tokens that the constraint forbids
        may still have their logits.
        """
        wanted, guide = self._prepares, self.guide
        if not wanted or self.drafted:
            return 0
        assert self.sampler is not None
        if guide is not None:
            if not guide.ready:
                return 0
            if wanted > 0 or not guide.forbids_few:
                guide.exclude(row)
        self.sampler.prepare(row, self.tokens)
        return wanted

    def exclude(self, row: FloatArray) -> None:
        """Exclude in a prepared row what the constraint forbids."""
        if self.guide is not None:
            self.guide.exclude(row)

    def choose_among(self, found: Found | Exception) -> list[int]:
        """Choose what follows from what a RowFilter found in the newest token's row."""
        if isinstance(found, Exception):
            raise found
        sampler, guide = self.sampler, self.guide
        assert sampler is not None
        if guide is None:
            return [sampler.choose_among(found, self.tokens)]
        token: int | None
        if isinstance(found, tuple):
            token = sampler.draw(found) if guide.allows(found[0], found[2]) else None
            if token is None:
                row = row_of(found)
                guide.exclude(row)
                token = sampler.choose_prepared(row, self.tokens)
                guide.check(token)
        else:
            token = sampler.choose_among(found, self.tokens)
            guide.check(token)
        return self._guided(guide, token, alone=True)

    def choose(self, rows: FloatArray) -> list[int]:
        """Choose what follows from the logits of the newest token and of each drafted one.

        rows: [1 + drafted, n_vocab]; overwritten. Removes the draft. A drafted token is accepted if
        it is the one chosen, or if chance has it chosen; then the next row counts too. Raises
        EngineError if no token can be chosen.
        """
        if self.params.max_tokens == 0:
            return []
        draft = self.rollback()
        if self.guide is not None and self.guide.complete():
            return []
        chosen = self._choose(rows[0], alone=not draft)
        length = len(self.tokens)
        chance = None if self.drafter is None else self.drafter.chance
        for index, (drafted, row) in enumerate(zip(draft, rows[1:], strict=True)):
            if chance is not None:
                if not chance.accepts(index) or self._vocab.is_eog(drafted):
                    break
                chosen[-1] = drafted
            elif chosen[-1] != drafted or self._vocab.is_eog(drafted):
                break
            self.tokens.append(drafted)
            chosen += self._choose(row)
        del self.tokens[length:]
        if draft and self.drafter is not None:
            self.drafter.observe(len(draft), len(chosen) - 1)
            self.writer.count_draft(len(draft), len(chosen) - 1)
        return chosen

    def _choose(self, row: FloatArray, alone: bool = False) -> list[int]:
        """Choose the next token from its logits, which are overwritten, and record it if asked.

        alone: no drafted token follows.
        """
        assert self.sampler is not None
        params, guide = self.params, self.guide
        own = row.copy() if params.logprobs is not None else row
        if guide is not None:
            guide.exclude(row)
        token = self.sampler.choose(row, self.tokens)
        if guide is not None:
            guide.check(token)  # before it is recorded
        if params.logprobs is not None and params.sampled_logprobs:
            self._record(token, *self.sampler.chances(token, params.logprobs))
        elif params.logprobs is not None:
            self._record(token, *logprobs(own, token, params.logprobs, params.logprob_token_ids))
        return [token] if guide is None else self._guided(guide, token, alone)

    def _guided(self, guide: Guide, token: int, alone: bool) -> list[int]:
        """The token, with those that the constraint forces after it, for which room is left.

        None is forced where the request wants the log-probabilities of each.
        """
        if self._vocab.is_eog(token):
            return [token]
        room = self.max_length - len(self.tokens) - 1 if self.params.logprobs is None else 0
        return [token, *guide.accept(token, room, alone and self._vocab.is_prose(token))]

    def _record(self, token: int, logprob: float, top: tuple[tuple[int, float], ...]) -> None:
        piece = b"" if self._vocab.is_eog(token) else self._piece(token)
        self.writer.record(TokenRecord(token, piece, logprob, top))

    def accept(self, tokens: Seq[int], now: float) -> FinishReason | None:
        """Append the next tokens and publish the text they complete; return how it ended, if so."""
        if self.params.max_tokens == 0:
            return FinishReason.LENGTH
        if not tokens:  # the constraint ends the text here
            self._publish_rest()
            return FinishReason.STOP
        self._newest = len(tokens)
        ended = self.guide is not None and self.guide.ended
        for left, token in enumerate(tokens, start=1 - len(tokens)):
            reason = self._take(token, now, ended and left == 0)
            if reason is not None:
                return reason
        return None

    def _take(self, token: int, now: float, ends: bool) -> FinishReason | None:
        generation, writer, params = self.generation, self.writer, self.params
        since_first = writer.count_token(now)
        self.tokens.append(token)
        if params.record_tokens and params.logprobs is None:
            self._record(token, math.nan, ())
        if self._vocab.is_eog(token):
            self._publish_rest()
            return FinishReason.STOP
        text = self._detokenizer.push(token)
        if text and self._passes:
            writer.append(text)
        elif text:
            text, stopped = self._stops.push(text)
            shallow = self._publish(text)
            if stopped:
                generation.stop_text = self._stops.found
                return FinishReason.STOP
            if shallow:
                return FinishReason.LENGTH
        if ends:
            self._publish_rest()
            return FinishReason.STOP
        limit = params.line_limit
        late = limit is not None and generation.has_newline and since_first > limit
        if late or len(self.tokens) >= self._end:
            self._detokenizer.drop()
            return FinishReason.STOP if self._publish_rest() else FinishReason.LENGTH
        return None

    def _publish_rest(self) -> bool:
        """After the last token, publish what was held back; True if a stop string ended it."""
        text, stopped = self._stops.push(self._detokenizer.flush())
        text += "" if stopped else self._stops.flush()
        self._publish(text)
        self.generation.stop_text = self._stops.found
        return stopped

    def _publish(self, text: str) -> bool:
        """Publish text up to a line that is indented too little; whether there is one."""
        shallow = False
        if self._indent is not None:
            text, shallow = self._indent.push(text)
        if text:
            self.writer.append(text)
        return shallow

    def close(self) -> None:
        """Free what llama.cpp allocated for it, its lookup table and its matcher."""
        self.drafter = self.guide = self.scores = None
        if self.sampler is not None:
            self.sampler.close()
            self.sampler = None


def slot_of(sequence: Sequence) -> Slot:
    """The slot of a sequence that runs."""
    assert sequence.slot is not None
    return sequence.slot
