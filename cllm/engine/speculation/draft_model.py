"""A smaller model beside the main one, and what its cache holds of each slot's sequence."""

from __future__ import annotations

import logging
from array import array

import numpy as np

from cllm.engine.cache.radix import common_prefix
from cllm.engine.llama import NO_ROOM, Batch, Context, Model, Vocab
from cllm.engine.sequence import Sequence, slot_of

_log = logging.getLogger("cllm.engine")

# As llama.cpp's common_speculative_are_compatible has it: padding may differ, and the first few
# tokens are often spelled otherwise and mean the same.
_PADDING = 128
_FIRST_SPELLED = 5


class DraftModel:
    """Reads sequences and says what follows, greedily. Engine thread only.

    What the cache holds of a slot is compared with the sequence there each time, so that nobody
    need tell of slots that change hands, preemptions or guesses that were wrong.
    """

    def __init__(
        self, model: Model, context: Context, batch: Batch, main: Vocab, copy_gain: int
    ) -> None:
        """main: the vocabulary that guesses must be of, which matches the model's own.
        copy_gain: tokens that a copy between slots must save to be worth it.
        """
        self._model = model
        self._context = context
        self._batch = batch
        self._guessable = min(main.n_tokens, context.n_vocab)
        self._copy_gain = copy_gain
        self._held = [array("i") for _ in range(context.n_seq)]
        self.size_bytes = model.size_bytes
        self.capacity = batch.capacity  # tokens that it evaluates at once
        self.longest = min(context.n_ctx_seq, model.n_ctx_train)  # sequence that it can follow
        self.cells = context.n_ctx  # tokens of all sequences
        self.broken = False  # a decode failed; it guesses no more

    @property
    def context(self) -> Context:
        """What it computes with."""
        return self._context

    def unread(self, sequence: Sequence) -> int:
        """How many of a sequence's tokens the cache lacks: at least one, the newest."""
        slot, tokens = slot_of(sequence).id, sequence.tokens
        shared = self._cut(slot, tokens)
        if len(tokens) - shared > self._copy_gain:
            shared = self._borrow(slot, tokens, shared)
        return len(tokens) - shared

    def _cut(self, slot: int, tokens: array[int]) -> int:
        """Keep what a slot holds of these tokens but the last; return how many they are."""
        held = self._held[slot]
        shared = min(common_prefix(held, tokens), len(tokens) - 1)
        if shared < len(held):
            self._context.remove(slot, shared)
            del held[shared:]
        return shared

    def _borrow(self, slot: int, tokens: array[int], shared: int) -> int:
        """Copy another slot's beginning if that is so much longer; return the length of ours."""
        longest, source = max((common_prefix(h, tokens), i) for i, h in enumerate(self._held))
        if longest - shared < self._copy_gain:
            return shared
        self._context.remove(slot)
        self._context.copy(source, slot)
        self._held[slot] = self._held[source][:]
        return self._cut(slot, tokens)

    def read(self, sequences: list[Sequence], most: int) -> int:
        """Read at most so many tokens, of no sequence the newest; return how many.

        Who lacks least is first. most: at most `capacity`.
        """
        left, parts = most, []
        for sequence in sorted(sequences, key=self.unread):
            slot = slot_of(sequence).id
            start = len(self._held[slot])
            fresh = sequence.tokens[start : min(len(sequence.tokens) - 1, start + left)]
            if fresh:
                parts.append((slot, fresh))
                left -= len(fresh)
        return most - left if self._evaluate(parts, False) else 0

    def guess(self, depths: dict[Sequence, int]) -> dict[Sequence, list[int]]:
        """Guess so many tokens behind each sequence; `capacity` bounds the unread ones."""
        guesses: dict[Sequence, list[int]] = {sequence: [] for sequence in depths}
        order = sorted(depths, key=lambda sequence: slot_of(sequence).id)
        slots = {sequence: slot_of(sequence).id for sequence in order}
        fresh = {s: s.tokens[-self.unread(s) :] for s in order}
        for depth in range(max(depths.values(), default=0)):
            asked = [s for s in order if depths[s] > depth]
            if not self._evaluate([(slots[s], fresh[s]) for s in asked], True):
                return {}
            rows = self._context.logits(len(asked))[:, : self._guessable]
            for sequence, token in zip(asked, rows.argmax(axis=1).tolist(), strict=True):
                guesses[sequence].append(token)
                fresh[sequence] = array("i", [token])
        return guesses

    def _evaluate(self, parts: list[tuple[int, array[int]]], output: bool) -> bool:
        """Decode what follows in some slots. output: logits after each, in the slots' order."""
        batch, at = self._batch, 0
        for slot, tokens in sorted(parts):
            start, end = len(self._held[slot]), at + len(tokens)
            batch.token[at:end] = tokens
            batch.pos[at:end] = range(start, start + len(tokens))
            batch.seq[at:end] = slot
            batch.output[at:end] = 0
            batch.output[end - 1] = output
            at = end
        # The main model may have a few tokens more.
        np.minimum(batch.token[:at], self._context.n_vocab - 1, out=batch.token[:at])
        code = self._context.decode(batch, at)
        if code == NO_ROOM:  # in a cache that is shared: others have left something there
            for slot in set(range(len(self._held))) - {slot for slot, _ in parts}:
                self._forget(slot)
            code = self._context.decode(batch, at)
        if code:
            _log.error("the draft model is now off: llama_decode failed with code %d", code)
            self.broken = True
            return False
        for slot, tokens in parts:
            self._held[slot].extend(tokens)
        return True

    def _forget(self, slot: int) -> None:
        self._context.remove(slot)
        del self._held[slot][:]

    def close(self) -> None:
        """Free everything."""
        self._context.close()
        self._model.close()


def difference(main: Vocab, draft: Vocab) -> str | None:
    """What keeps two vocabularies from being taken for the same; None: nothing does.

    Source: llama.cpp's common_speculative_are_compatible.
    """
    if main.kind != draft.kind:
        return "they are of different kinds"
    if main.bos_added != draft.bos_added or main.eos_added != draft.eos_added:
        return "they add different tokens to a text"
    if abs(main.n_tokens - draft.n_tokens) > _PADDING:
        return f"{main.n_tokens} and {draft.n_tokens} tokens"
    for token, (one, other) in enumerate(zip(main.texts(), draft.texts(), strict=False)):
        if token >= _FIRST_SPELLED and one != other:
            return f"token {token} is {one!r} and {other!r}"
    return None
