"""Prefixes of one scope are not reused, copied, restored, saved or erased from another."""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np
import pytest

from cllm.engine import Engine, InvalidRequest
from cllm.engine.cache.prefix_cache import PrefixCache
from cllm.engine.cache.radix import RadixForest
from cllm.engine.cache.saved_prefixes import Saved
from cllm.engine.sharing import COMMON, Scope
from tests.engine.engine_helpers import WAIT, Loader, Watched, finished, greedy

PROMPT = [20 + i % 300 for i in range(200)]
ALICE, BOB, SALTED = Scope("alice"), Scope("bob"), Scope("alice", "salt")


def tokens(*values: int) -> array[int]:
    return array("i", values)


def test_a_lookup_finds_holders_of_its_scope_only() -> None:
    forest: RadixForest[str] = RadixForest()
    forest.insert("a", tokens(1, 2, 3), ALICE)
    forest.insert("b", tokens(1, 2, 9), BOB)
    assert forest.shared(tokens(1, 2, 3), ALICE) == {"a": 3}
    assert forest.shared(tokens(1, 2, 3), BOB) == {"b": 2}
    assert forest.shared(tokens(1, 2, 3), COMMON) == {}
    forest.insert("a", tokens(1, 2, 9), BOB)  # it moves
    assert forest.shared(tokens(1, 2, 9), ALICE) == {}
    assert forest.shared(tokens(1, 2, 9), BOB) == {"a": 3, "b": 3}
    for holder in ("a", "b", "b"):
        forest.remove(holder)
    assert len(forest) == 0


@pytest.mark.parametrize("other", [BOB, SALTED, COMMON])
def test_neither_slot_nor_copy_nor_host_memory_is_reused(other: Scope) -> None:
    cache = PrefixCache(2, 1, False, 100)
    content = tokens(*PROMPT)
    cache.fill(cache.slots[0], content, ALICE)
    cache.save(Saved(content, np.zeros(10, np.uint8), False, ALICE))
    for wanted in (None, 0, 1):
        assert cache.choose(content, wanted, scope=other)[1].reuse == 0
    assert cache.choose(content, scope=ALICE)[1].reuse == len(PROMPT) - 1
    cache.occupy(cache.slots[0], content, 5, ALICE)  # a prompt that is being read
    assert cache.choose(content, 1, scope=other)[1].leader is None
    assert cache.choose(content, 1, scope=ALICE)[1].source is not None


def cached(engine: Engine, scope: Scope, slot: int | None = None) -> int:
    done = finished(engine.submit(PROMPT, greedy(1), scope=scope, slot=slot))
    return done.usage.cached_tokens


@pytest.mark.parametrize("unified", [False, True])
def test_the_engine_keeps_scopes_apart(load: Loader, unified: bool) -> None:
    engine = load(parallel=2, ctx_size=512, kv_unified=unified)
    assert cached(engine, ALICE, 0) == 0
    # In the very slot that holds the prefix, and next to it.
    assert cached(engine, BOB, 1) == 0 and cached(engine, SALTED, 0) == 0
    # It was put into host memory meanwhile.
    assert cached(engine, ALICE) == cached(engine, BOB) == cached(engine, SALTED) == 199
    assert cached(engine, COMMON) == 0


def test_a_prompt_that_is_being_read_is_not_waited_for(load: Loader) -> None:
    engine = load(parallel=2, ctx_size=2048, batch_size=64, ubatch_size=64)
    prompt = [20 + i % 300 for i in range(1500)]
    first = Watched(engine, prompt, greedy(1), scope=ALICE)
    second = finished(engine.submit(prompt, greedy(1), scope=BOB))
    first.wait_until_done()
    assert second.usage.cached_tokens == 0


def test_a_slot_is_nobody_s_while_its_tokens_change(load: Loader) -> None:
    engine = load(parallel=1, ctx_size=512)
    context = engine._scheduler._context
    real, seen = context.remove, list[tuple[str | None, int]]()

    def remove(seq: int, start: int = -1) -> bool:
        (slot,) = engine.slots()  # as another thread may see it now
        seen.append((slot.tenant, slot.tokens))
        return real(seq, start)

    for tenant, prompt in (("alice", PROMPT), ("bob", [5, *PROMPT][:100])):
        finished(engine.submit(prompt, greedy(1), tenant=tenant))
    context.remove = remove  # type: ignore[method-assign]
    # Its beginning comes from host memory, from where more is restored than it has.
    done = finished(engine.submit([*PROMPT[:120], 7], greedy(1), tenant="alice"))
    assert done.usage.cached_tokens == 120
    assert (None, 200) in seen
    assert not any(tenant == "bob" and tokens > 100 for tenant, tokens in seen)


def test_files_of_slots_belong_to_their_owner(load: Loader, tmp_path: Path) -> None:
    engine = load(parallel=1, ctx_size=512, cache_ram=0, slot_save_path=str(tmp_path))
    sessions = engine.sessions
    cached(engine, SALTED)
    for owner in ("bob", ""):
        with pytest.raises(InvalidRequest, match="a slot that holds tokens"):
            sessions.save(0, "talk", owner).result(WAIT)
        assert sessions.erase(0, owner).result(WAIT) == 0
    assert sessions.save(0, "talk", "alice").result(WAIT).n_tokens == 200
    for owner in ("bob", ""):
        with pytest.raises(InvalidRequest, match="a file in --slot-save-path"):
            sessions.restore(0, "talk", owner).result(WAIT)
    assert sessions.erase(0, "alice").result(WAIT) == 200
    sessions.restore(0, "talk", "alice").result(WAIT)
    assert cached(engine, BOB, 0) == 0
    sessions.restore(0, "talk", "alice").result(WAIT)
    assert cached(engine, ALICE, 0) == 0  # it was computed with a salt
    sessions.restore(0, "talk", "alice").result(WAIT)
    assert cached(engine, SALTED) == 199


@pytest.mark.parametrize("owner", ["..", "a/b", "../x", "@bob", "2001:db8::/64", "key 1"])
def test_no_owner_reaches_out_of_its_folder(load: Loader, tmp_path: Path, owner: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    engine = load(parallel=1, ctx_size=512, slot_save_path=str(inner))
    cached(engine, Scope(owner))
    engine.sessions.save(0, "talk", owner).result(WAIT)
    (folder,) = inner.iterdir()
    assert [path.name for path in folder.iterdir()] == ["talk"]
    assert list(tmp_path.iterdir()) == [inner]
