"""How a step's plan is put into the batch that llama_decode gets."""

from __future__ import annotations

from collections.abc import Iterable

from cllm.engine.cache.prefix_cache import Slot
from cllm.engine.llama import Batch
from cllm.engine.scheduling.passes import Plan
from cllm.engine.sequence import slot_of


def fill(batch: Batch, plan: Plan, holes: Iterable[Slot] = ()) -> int:
    """Put a plan into the batch; return its number of tokens. Last and scored tokens get logits.

    holes: slots that get a token without meaning.
    """
    at, before = 0, {slot.id + 1: slot for slot in holes}
    if not before and all(
        count == 1 and not sequence.drafted and sequence.scores is None for sequence, count in plan
    ):
        return _fill_newest(batch, plan)
    for sequence, count in plan:
        slot = slot_of(sequence)
        if (hole := before.get(slot.id)) is not None:
            batch.token[at] = sequence.tokens[slot.length]
            batch.pos[at] = hole.length
            batch.seq[at] = hole.id
            batch.output[at] = 0
            at += 1
        start, end = slot.length, slot.length + count
        if count == 1:
            batch.token[at] = sequence.tokens[start]
            batch.pos[at] = start
            batch.seq[at] = slot.id
        else:
            batch.token[at : at + count] = sequence.tokens[start:end]
            batch.pos[at : at + count] = range(start, end)
            batch.seq[at : at + count] = slot.id
            batch.output[at : at + count] = 0
        at += count
        rows = 1 + sequence.drafted
        batch.output[at - rows : at] = end == len(sequence.tokens)
        if sequence.scores is not None and (scored := sequence.scores.wanted(start, end)):
            batch.output[at - end + scored.start : at - end + scored.stop] = 1
    return at


def _fill_newest(batch: Batch, plan: Plan) -> int:
    """fill() for one token of each sequence, in one pass without numpy."""
    tokens, positions, ids, outputs = batch.views
    for at, (sequence, _) in enumerate(plan):
        slot, text = slot_of(sequence), sequence.tokens
        length = slot.length
        tokens[at] = text[length]
        positions[at] = length
        ids[at] = slot.id
        outputs[at] = length + 1 == len(text)
    return len(plan)
