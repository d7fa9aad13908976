"""A smaller model that drafts for the main one, and what its cache holds of each sequence."""

from __future__ import annotations

import logging
from array import array

import numpy as np

from cllm.engine.cache.radix import common_prefix
from cllm.engine.llama import NO_ROOM, Batch, Context, Model, Vocab
from cllm.engine.sequence import Sequence, slot_of
from cllm.engine.sharing import COMMON

_log = logging.getLogger("cllm.engine")

# As in llama.cpp's common_speculative_are_compatible: padding may differ, and the first few tokens
# are often spelled differently with the same meaning.
_PADDING = 128
_FIRST_SPELLED = 5


class DraftModel:
    """Reads sequences and drafts what follows, greedily. Engine thread only.

    Each call compares what the cache holds of a slot with the sequence there, so the model needs
    no notice of slots that are reassigned, of preemptions or of rejected drafts.
    """

    def __init__(
        self, model: Model, context: Context, batch: Batch, main: Vocab, copy_gain: int
    ) -> None:
        """main: the main model's vocabulary, which drafted tokens belong to.
        copy_gain: tokens that a copy between slots must save to be worth it.
        """
        self._model = model
        self._context = context
        self._batch = batch
        self._draftable = min(main.n_tokens, context.n_vocab)
        self._copy_gain = copy_gain
        self._held = [array("i") for _ in range(context.n_seq)]
        self._scopes = [COMMON] * context.n_seq  # of what is held
        self.size_bytes = model.size_bytes
        self.capacity = batch.capacity  # tokens that it evaluates at once
        self.longest = min(context.n_ctx_seq, model.n_ctx_train)  # sequence that it can follow
        self.cells = context.n_ctx  # tokens of all sequences
        self.broken = False  # it failed and drafts no more

    @property
    def context(self) -> Context:
        """The context that it decodes with."""
        return self._context

    def unread(self, sequence: Sequence) -> int:
        """The number of a sequence's tokens that the cache lacks: at least one, the newest."""
        slot, tokens = slot_of(sequence).id, sequence.tokens
        if self._scopes[slot] != sequence.scope:  # nothing is shared between scopes, not even time
            self._forget(slot)
            self._scopes[slot] = sequence.scope
        shared = self._cut(slot, tokens)
        if len(tokens) - shared > self._copy_gain:
            shared = self._borrow(slot, tokens, shared)
        return len(tokens) - shared

    def _cut(self, slot: int, tokens: array[int]) -> int:
        """Keep what a slot holds of these tokens except the last; return their number."""
        held = self._held[slot]
        shared = min(common_prefix(held, tokens), len(tokens) - 1)
        if shared < len(held):
            self._context.remove(slot, shared)
            del held[shared:]
            window, first = self._model.window, self._context.first_position(slot)
            if window and first > max(0, shared - window):  # what it looks back to is gone
                self._forget(slot)
        return len(held)

    def _borrow(self, slot: int, tokens: array[int], shared: int) -> int:
        """Copy a prefix of the same scope if that saves enough; return the length of ours."""
        longest, source = max(
            (common_prefix(held, tokens), other)
            for other, held in enumerate(self._held)
            if self._scopes[other] == self._scopes[slot]
        )
        if longest - shared < self._copy_gain:
            return shared
        self._context.remove(slot)
        self._context.copy(source, slot)
        self._held[slot] = self._held[source][:]
        return self._cut(slot, tokens)

    def read(self, sequences: list[Sequence], limit: int) -> int:
        """Read up to `limit` tokens, never a sequence's newest; return their number.

        The sequence that lacks least is read first. limit: at most `capacity`.
        """
        left, parts = limit, []
        for sequence in sorted(sequences, key=self.unread):
            slot = slot_of(sequence).id
            start = len(self._held[slot])
            fresh = sequence.tokens[start : min(len(sequence.tokens) - 1, start + left)]
            if fresh:
                parts.append((slot, fresh))
                left -= len(fresh)
        return limit - left if self._evaluate(parts, False) else 0

    def draft(self, lengths: dict[Sequence, int]) -> dict[Sequence, list[int]]:
        """Draft a number of tokens after each sequence; `capacity` bounds the unread ones."""
        drafts: dict[Sequence, list[int]] = {sequence: [] for sequence in lengths}
        order = sorted(lengths, key=lambda sequence: slot_of(sequence).id)
        slots = {sequence: slot_of(sequence).id for sequence in order}
        fresh = {s: s.tokens[-self.unread(s) :] for s in order}
        for depth in range(max(lengths.values(), default=0)):
            unfinished = [s for s in order if lengths[s] > depth]
            if not self._evaluate([(slots[s], fresh[s]) for s in unfinished], True):
                return {}
            rows = self._context.logits(len(unfinished))[:, : self._draftable]
            for sequence, token in zip(unfinished, rows.argmax(axis=1).tolist(), strict=True):
                drafts[sequence].append(token)
                fresh[sequence] = array("i", [token])
        return drafts

    def _evaluate(self, parts: list[tuple[int, array[int]]], output: bool) -> bool:
        """Decode what follows in some slots. output: compute logits after each, in slot order."""
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
        if code == NO_ROOM:  # in a unified cache: other slots hold tokens there
            for slot in set(range(len(self._held))) - {slot for slot, _ in parts}:
                self._forget(slot)
            code = self._context.decode(batch, at)
        if code:
            _log.error("the draft model is no longer used: llama_decode failed with code %d", code)
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
    """Why two vocabularies do not match; None: they match.

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
