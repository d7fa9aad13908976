"""The draft model: a draft depends on the sequence alone, with any earlier cache."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cllm.engine import EngineConfig, Generation, SamplingParams, llama
from cllm.engine.cache.prefix_cache import Slot
from cllm.engine.layout.layout import Layout
from cllm.engine.loading.draft import DraftFile
from cllm.engine.sequence import Sequence
from cllm.engine.sharing import COMMON, Scope
from cllm.engine.speculation.draft_model import DraftModel
from tests.engine.engine_helpers import PRECISE
from tests.engine.engine_models import write_windowed

SLOTS, CTX = 3, 256

Loader = Callable[..., DraftModel]


@pytest.fixture
def main(model_path: Path) -> Iterator[llama.Model]:
    model = llama.Model(str(model_path))
    yield model
    model.close()


@pytest.fixture
def load_draft(main: llama.Model, f32_path: Path) -> Iterator[Loader]:
    """Loads draft models for `main` and closes them afterwards."""
    drafts: list[DraftModel] = []

    def loader(cells: int = SLOTS * CTX, **fields: Any) -> DraftModel:
        settings = {"model_draft": str(f32_path), "parallel": SLOTS, "threads": 1, **PRECISE}
        config = EngineConfig(**(settings | fields))
        file = DraftFile.of(config)
        assert file is not None
        drafts.append(file.load("main", main.vocab, cells, config, Layout.of(config), None))
        return drafts[-1]

    yield loader
    for draft in drafts:
        draft.close()


@pytest.fixture
def sequence(main: llama.Model) -> Callable[..., Sequence]:
    def make(tokens: list[int], slot: int, scope: Scope = COMMON) -> Sequence:
        generation = Generation(len(tokens))
        made = Sequence(tokens, SamplingParams(), generation, main.vocab, CTX, None, scope=scope)
        made.slot = Slot(slot)
        return made

    return make


def tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(300) for _ in range(count)]


def test_it_drafts_for_sequences_of_different_lengths_at_once(
    load_draft: Loader, sequence: Callable[..., Sequence]
) -> None:
    rng = random.Random(1)
    draft, alone = load_draft(), load_draft()
    lengths = {
        sequence(tokens(rng, count), slot): 2 + slot for slot, count in enumerate((1, 90, 7))
    }
    together = draft.draft(lengths)
    for asked, length in lengths.items():
        assert together[asked] == alone.draft({asked: length})[asked]
        assert len(together[asked]) == length


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("unified", [False, True])
def test_it_drafts_the_same_whatever_became_of_its_earlier_drafts_and_slots(
    load_draft: Loader,
    sequence: Callable[..., Sequence],
    f32_path: Path,
    tmp_path: Path,
    unified: bool,
    windowed: bool,
) -> None:
    rng, path = random.Random(2), f32_path
    if windowed:
        path = tmp_path / "windowed.gguf"
        write_windowed(f32_path, path)
    draft = load_draft(model_draft=str(path), kv_unified=unified)
    anew = load_draft(model_draft=str(path))
    running = [sequence(tokens(rng, 30), slot) for slot in range(SLOTS)]
    for _ in range(40):
        drafts = draft.draft({s: rng.randint(1, 4) for s in rng.sample(running, 2)})
        for asked, drafted in drafts.items():
            assert (
                drafted == anew.draft({sequence(list(asked.tokens), 0): len(drafted)}).popitem()[1]
            )
            asked.tokens.extend(drafted[: rng.randint(0, len(drafted))])
            asked.tokens.append(rng.randrange(300))  # what was chosen instead, or next
        at = rng.randrange(SLOTS)
        if rng.random() < 0.3 or len(running[at].tokens) > 150:  # another request has the slot
            shared = list(rng.choice(running).tokens[: rng.randint(0, 100)])
            running[at] = sequence(shared + tokens(rng, 3), at)


def test_it_reads_in_pieces_and_never_the_newest_token(
    load_draft: Loader, sequence: Callable[..., Sequence]
) -> None:
    rng = random.Random(3)
    draft, at_once = load_draft(), load_draft()
    long, short = sequence(tokens(rng, 100), 0), sequence(tokens(rng, 21), 1)
    assert (draft.unread(long), draft.unread(short)) == (100, 21)
    assert draft.read([long, short], 50) == 50
    assert (draft.unread(long), draft.unread(short)) == (70, 1), "who lacks least is first"
    assert draft.read([long, short], 100) == 69
    assert (draft.unread(long), draft.unread(short)) == (1, 1)
    assert draft.draft({long: 3, short: 3}) == at_once.draft({long: 3, short: 3})


@pytest.mark.parametrize("unified", [False, True])
def test_a_beginning_that_another_slot_has_read_is_copied(
    load_draft: Loader, sequence: Callable[..., Sequence], unified: bool
) -> None:
    rng = random.Random(4)
    draft, anew = load_draft(kv_unified=unified), load_draft()
    beginning = tokens(rng, 80)
    first, second = (sequence(beginning + tokens(rng, 5), slot) for slot in (0, 2))
    draft.draft({first: 2})
    assert draft.unread(second) == 5
    assert draft.draft({second: 3, first: 3}) == anew.draft({second: 3, first: 3})


def test_where_cells_are_shared_idle_slots_make_room(
    load_draft: Loader, sequence: Callable[..., Sequence]
) -> None:
    rng = random.Random(5)
    draft, anew = load_draft(cells=CTX, kv_unified=True), load_draft()
    idle, running = sequence(tokens(rng, 150), 0), sequence(tokens(rng, 150), 1)
    draft.draft({idle: 2})
    assert draft.draft({running: 3}) == anew.draft({running: 3})
    assert not draft.broken


def test_a_token_that_only_the_main_model_has_is_no_harm(
    load_draft: Loader, sequence: Callable[..., Sequence], main: llama.Model
) -> None:
    draft = load_draft()
    beyond = sequence([5, main.vocab.n_tokens + 7, 9], 0)
    assert len(draft.draft({beyond: 2})[beyond]) == 2
    assert not draft.broken


def test_a_decode_that_fails_is_the_last(
    load_draft: Loader, sequence: Callable[..., Sequence], monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = load_draft()
    monkeypatch.setattr(draft._context, "decode", lambda batch, count: -3)
    assert draft.draft({sequence([1, 2, 3], 0): 2}) == {}
    assert draft.broken


def test_it_shares_nothing_between_scopes(
    load_draft: Loader, sequence: Callable[..., Sequence]
) -> None:
    draft, prompt = load_draft(), tokens(random.Random(4), 100)
    draft.draft({sequence(prompt, 0, Scope("alice")): 1})
    for other in (Scope("bob"), Scope("alice", "salt"), COMMON):
        assert draft.unread(sequence(prompt, 1, other)) == 100
    assert draft.unread(sequence(prompt, 1, Scope("alice"))) == 1
    assert draft.unread(sequence(prompt, 0, Scope("bob"))) == 100
