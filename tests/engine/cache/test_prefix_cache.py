"""Where a prompt starts, and which slot is given up for it: the policy alone, without a model."""

from __future__ import annotations

from array import array

import numpy as np

from cllm.engine.cache.prefix_cache import WORTH_SAVING, Holder, PrefixCache
from cllm.engine.cache.saved_prefixes import Saved, SavedPrefixes


def tokens(*values: int) -> array[int]:
    return array("i", values)


SYSTEM = tokens(*range(1000, 1400))


def filled(cache: PrefixCache, *contents: array[int]) -> PrefixCache:
    for slot, content in zip(cache.slots, contents, strict=False):
        cache.fill(slot, content)
    return cache


def saved(content: array[int], size: int = 10, whole: bool = False) -> Saved:
    return Saved(content, np.zeros(size, np.uint8), whole)


def test_the_slot_with_the_longest_prefix_is_taken() -> None:
    cache = filled(PrefixCache(3, 1, False), tokens(1, 2), tokens(1, 2, 3, 4), tokens(1, 9))
    slot, start = cache.choose(tokens(1, 2, 3, 4, 5))
    assert (slot.id, start.reuse, start.source) == (1, 4, None)


def test_the_last_token_is_never_reused() -> None:
    cache = filled(PrefixCache(1, 1, False), tokens(1, 2, 3))
    assert cache.choose(tokens(1, 2, 3))[1].reuse == 2


def test_a_long_conversation_is_not_given_up_for_a_short_common_beginning() -> None:
    cache = filled(PrefixCache(2, 1, False), tokens(7, 7, 7), tokens(1, 2, *range(50, 90)))
    slot, start = cache.choose(tokens(1, 2, 3, 4))
    assert (slot.id, start.reuse) == (0, 2)
    assert start.source is cache.slots[1]


def test_a_copy_that_saves_too_little_is_not_made() -> None:
    cache = filled(PrefixCache(2, 5, False), tokens(7, 7, 7), tokens(1, 2, *range(50, 90)))
    slot, start = cache.choose(tokens(1, 2, 3, 4))
    assert (slot.id, start.reuse, start.source) == (0, 0, None)


def test_the_least_recently_used_slot_is_given_up() -> None:
    cache = filled(PrefixCache(3, 1, False), tokens(1, 1), tokens(2, 2), tokens(3, 3))
    cache.occupy(cache.slots[0], tokens(1, 1), 2)
    cache.release(cache.slots[0])
    assert cache.choose(tokens(9, 9))[0].id == 1
    assert cache.oldest_idle() is cache.slots[1]


def test_an_empty_slot_is_preferred_to_giving_one_up() -> None:
    cache = filled(PrefixCache(3, 1, False), tokens(1, 1), tokens(2, 2))
    assert cache.choose(tokens(9, 9))[0].id == 2


def test_running_slots_are_kept_side_by_side_where_that_matters() -> None:
    cache = PrefixCache(6, 1, True)
    cache.occupy(cache.slots[3], tokens(1, 1), 2)
    assert cache.choose(tokens(9, 9))[0].id in (2, 4)


def test_a_busy_slot_is_never_taken() -> None:
    cache = filled(PrefixCache(2, 100, False), tokens(1, 2, 3, 4), tokens(5, 5))
    cache.slots[0].busy = True
    assert cache.choose(tokens(1, 2, 3, 4, 5))[0].id == 1


def test_what_a_slot_does_not_hold_any_more_is_not_reused() -> None:
    cache = filled(PrefixCache(1, 1, False), tokens(1, 2, 3, 4))
    cache.slots[0].length = 0
    assert cache.choose(tokens(1, 2, 3, 4))[1].reuse == 0


def test_a_prefix_in_memory_is_used_where_it_is_longer() -> None:
    cache = filled(PrefixCache(1, 1, False, 100), SYSTEM[:50])
    conversation = saved(SYSTEM[:200])
    cache.save(conversation)
    slot, start = cache.choose(SYSTEM)
    assert (slot.id, start.reuse, start.source) == (0, 200, conversation)


def test_where_the_memory_keeps_only_the_end_the_whole_is_used_or_nothing() -> None:
    def usable(holder: Holder, n: int) -> bool:
        return n == holder.length

    cache = PrefixCache(1, 1, False, 100, usable)
    cache.save(saved(SYSTEM[:200], whole=True))
    assert cache.choose(SYSTEM)[1].reuse == 200
    assert cache.choose(SYSTEM[:150])[1].reuse == 0


def test_a_prompt_that_is_being_read_is_waited_for() -> None:
    cache = PrefixCache(3, 1, False)
    cache.occupy(cache.slots[0], SYSTEM + tokens(1), 100)
    slot, start = cache.choose(SYSTEM + tokens(2))
    assert slot is not cache.slots[0]
    assert (start.leader, start.promised) == (cache.slots[0], len(SYSTEM))
    cache.slots[0].length = len(SYSTEM)
    start = cache.choose(SYSTEM + tokens(2))[1]
    assert (start.leader, start.source) == (None, cache.slots[0])


def test_nobody_waits_for_one_who_waits() -> None:
    cache = PrefixCache(3, 1, False)
    first, second, _ = cache.slots
    cache.occupy(first, SYSTEM + tokens(1), 0)
    cache.occupy(second, SYSTEM + tokens(2, 2), 0)
    second.leader = first
    assert cache.choose(SYSTEM + tokens(2, 3))[1].leader is first


def test_little_in_common_is_not_waited_for() -> None:
    cache = PrefixCache(2, 1, False)
    cache.occupy(cache.slots[0], SYSTEM, 0)
    assert cache.choose(SYSTEM[:8] + tokens(2))[1].leader is None


def test_what_nobody_else_holds_is_worth_saving() -> None:
    cache = filled(PrefixCache(3, 1, False, 100), SYSTEM)
    assert cache.worth_saving(cache.slots[0])
    assert not cache.worth_saving(cache.slots[0], kept=len(SYSTEM) - 10)


def test_what_others_hold_or_is_short_or_has_no_memory_is_not_worth_saving() -> None:
    question = SYSTEM + tokens(*range(50))
    cache = filled(PrefixCache(3, 1, False, 100), question, SYSTEM, tokens(*range(50)))
    assert not any(map(cache.worth_saving, cache.slots))
    without = filled(PrefixCache(1, 1, False, 0), SYSTEM)
    assert not without.worth_saving(without.slots[0])
    assert WORTH_SAVING > 50


def test_saved_prefixes_go_least_recently_used_first_and_stay_within_the_budget() -> None:
    cache = PrefixCache(1, 1, False, 30)
    entries = [saved(tokens(*range(i, i + 100))) for i in range(3)]
    for entry in entries:
        assert cache.make_room(10)
        cache.save(entry)
    cache.saved.touch(entries[0])
    assert cache.make_room(20)
    assert len(cache.saved) == 1
    assert (cache.saved.bytes, cache.saved.evictions) == (10, 2)
    assert not cache.make_room(31)
    assert cache.choose(tokens(*range(1, 102)))[1].reuse == 0
    assert cache.choose(tokens(*range(101)))[1].source is entries[0]


def test_a_conversation_that_has_grown_replaces_what_it_was() -> None:
    cache = PrefixCache(1, 1, False, 100)
    for length in (100, 200, 300):
        cache.save(saved(SYSTEM[:length]))
    assert len(cache.saved) == 1
    assert cache.saved.bytes == 10


def test_the_memory_of_a_restored_prefix_serves_the_next_if_that_is_as_long_or_has_grown() -> None:
    prefixes = SavedPrefixes(10_000)

    def restored(size: int) -> Saved:
        assert prefixes.make_room(size) == []
        entry = Saved(SYSTEM, prefixes.take_memory(size), False)
        prefixes.add(entry)
        prefixes.remove(entry)
        prefixes.keep_memory(entry)
        assert prefixes.bytes == size
        return entry

    first = restored(1000)
    grown = restored(1500)
    longest = restored(1501)
    shorter = restored(1000)
    assert np.shares_memory(first.data, grown.data)
    assert not np.shares_memory(grown.data, longest.data)
    assert not np.shares_memory(longest.data, shorter.data)


def test_spare_memory_counts_but_costs_no_saved_prefix_its_place() -> None:
    prefixes = SavedPrefixes(30)
    entries = [Saved(SYSTEM, prefixes.take_memory(10), False) for _ in range(3)]
    for entry in entries:
        prefixes.add(entry)
    prefixes.keep_memory(entries[0])
    assert prefixes.bytes == 30, "one that is still there keeps its memory"
    prefixes.remove(entries[0])
    prefixes.keep_memory(entries[0])
    assert prefixes.bytes == 30
    assert prefixes.make_room(10) == []
    prefixes.add(Saved(SYSTEM, prefixes.take_memory(10), False))
    assert (len(prefixes), prefixes.bytes, prefixes.evictions) == (3, 30, 0)


def test_the_memory_of_an_evicted_prefix_serves_the_one_that_it_makes_room_for() -> None:
    prefixes = SavedPrefixes(30)
    entries = [Saved(SYSTEM, prefixes.take_memory(10), False) for _ in range(3)]
    for entry in entries:
        prefixes.add(entry)
    assert prefixes.make_room(15) == entries[:2]
    grown = prefixes.take_memory(15)
    assert any(np.shares_memory(grown, entry.data) for entry in entries[:2])
    prefixes.add(Saved(SYSTEM, grown, False))
    assert (len(prefixes), prefixes.bytes, prefixes.evictions) == (2, 25, 2)


def test_of_idle_slots_one_that_need_not_be_saved_is_given_up() -> None:
    def with_room(size: int) -> PrefixCache:
        return filled(PrefixCache(3, 1, False, size), SYSTEM, tokens(*range(9)), SYSTEM[::-1])

    prompt = tokens(*range(900, 950))
    assert with_room(0).choose(prompt)[0].id == 0
    assert with_room(100).choose(prompt)[0].id == 1
