"""The search for the fastest layout, with known times in place of a machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cllm.engine.config import EngineConfig
from cllm.engine.layout.layout import Layout
from cllm.engine.layout.search import (
    PROMPT,
    SINGLE,
    TOGETHER,
    CannotMeasure,
    Knob,
    Search,
    knobs,
    parts_of,
)

DEFAULT = Layout(
    threads=8, threads_batch=8, kv_unified=False, flash_attn="auto", ubatch_size=512
)  # fmt: skip
CONFIG = EngineConfig(parallel=8)

Times = Callable[[Layout, str], float]


def open_in(config: EngineConfig, **machine: Any) -> list[Knob]:
    facts = {"cores": 8, "hardware_threads": 16, "prompt": 512} | machine
    return knobs(config, DEFAULT, **facts)


def found(times: Times, config: EngineConfig = CONFIG, tries: int = 1000) -> Layout:
    left = iter(range(tries))
    search = Search(DEFAULT, times)
    search.run(open_in(config), lambda: next(left, None) is None, lambda _: None)
    return search.best


def machine(layout: Layout, part: str) -> float:
    """Seconds on one that has 4 fast cores, likes unified caches and small batches."""
    threads = layout.threads if part == SINGLE else layout.threads_batch
    return (
        (1 + 0.1 * abs(threads - 4))
        * (0.8 if layout.kv_unified else 1)
        * (1.2 if layout.flash_attn == "off" else 1)
        * (1 + layout.ubatch_size / 1000 if part == PROMPT else 1)
    )


def test_every_option_gets_its_fastest_value() -> None:
    assert found(machine) == Layout(4, 4, True, "auto", 128)


def test_what_is_given_stays() -> None:
    given = EngineConfig(threads=8, threads_batch=8, kv_unified=False, ubatch_size=512)
    assert found(machine, given) == DEFAULT


def test_a_gain_within_the_noise_is_no_reason_to_leave_the_default() -> None:
    assert found(lambda layout, part: 1.0 if layout == DEFAULT else 0.98) == DEFAULT
    assert found(lambda layout, part: 1.0 if layout == DEFAULT else 0.96) != DEFAULT


def test_what_slows_one_thing_down_is_left_however_much_it_gains_elsewhere() -> None:
    def times(layout: Layout, part: str) -> float:
        return {SINGLE: 1.1, TOGETHER: 0.5, PROMPT: 0.5}[part] if layout.kv_unified else 1.0

    assert found(times) == DEFAULT


def test_what_was_fast_only_once_is_left() -> None:
    seen: list[tuple[Layout, str]] = []

    def times(layout: Layout, part: str) -> float:
        """The default is disturbed the first time that it is measured."""
        seen.append((layout, part))
        disturbed = layout == DEFAULT and seen.count((layout, part)) == 1
        return 2.0 if disturbed else 1.0

    assert found(times) == DEFAULT


def test_a_layout_that_cannot_be_had_is_passed_over() -> None:
    def times(layout: Layout, part: str) -> float:
        if layout.kv_unified:
            raise CannotMeasure("no memory")
        return machine(layout, part)

    assert found(times) == Layout(4, 4, False, "auto", 128)


def test_a_default_that_cannot_be_had_is_an_error() -> None:
    def times(layout: Layout, part: str) -> float:
        raise CannotMeasure("no memory")

    with pytest.raises(CannotMeasure):
        found(times)


def test_when_the_time_is_over_the_rest_keeps_its_default() -> None:
    assert found(machine, tries=0) == DEFAULT
    assert found(machine, tries=1) == Layout(4, 8, False, "auto", 512)


def test_progress_rises_to_one() -> None:
    seen: list[float] = []
    Search(DEFAULT, machine).run(open_in(CONFIG), lambda: False, seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_the_gain_is_told_for_each_part() -> None:
    search = Search(DEFAULT, machine)
    search.run(open_in(CONFIG), lambda: False, lambda _: None)
    gain = search.speedup(parts_of(CONFIG))
    assert gain[SINGLE] == gain[TOGETHER] == pytest.approx(1.4 / 0.8)
    assert gain[PROMPT] == pytest.approx(1.4 / 0.8 * 1.512 / 1.128)
    assert Search(DEFAULT, machine).speedup(parts_of(CONFIG)) == {}


# What is tried


def tried(config: EngineConfig, **machine: Any) -> dict[str, tuple[Any, ...]]:
    return {knob.name: knob.values for knob in open_in(config, **machine)}


def test_values_are_other_than_the_default() -> None:
    assert tried(CONFIG) == {
        "threads": (4, 16),
        "threads_batch": (4, 16),
        "kv_unified": (True,),
        "flash_attn": ("off",),
        "ubatch_size": (128, 256),
    }
    assert tried(CONFIG, cores=1, hardware_threads=8)["threads"] == (1,)


@pytest.mark.parametrize(
    ("given", "left_alone"),
    [
        ({"threads": 3}, "threads"),
        ({"threads_batch": 3}, "threads_batch"),
        ({"kv_unified": False}, "kv_unified"),
        ({"flash_attn": "on"}, "flash_attn"),
        ({"ubatch_size": 64}, "ubatch_size"),
    ],
)
def test_an_option_that_is_given_is_not_tried(given: dict[str, Any], left_alone: str) -> None:
    assert set(tried(CONFIG)) - set(tried(EngineConfig(**given))) == {left_alone}


def test_what_the_measured_attention_is_not_is_tried() -> None:
    measured = replace(DEFAULT, flash_attn="off")
    found = knobs(CONFIG, measured, cores=8, hardware_threads=16, prompt=512)
    assert [knob.values for knob in found if knob.name == "flash_attn"] == [("on",)]


def test_quantized_values_are_not_tried_without_flash_attention() -> None:
    assert "flash_attn" not in tried(EngineConfig(cache_type_v="q8_0"))


def test_one_sequence_shares_its_cache_with_nobody() -> None:
    alone = EngineConfig(parallel=1)
    assert "kv_unified" not in tried(alone)
    assert parts_of(alone) == (SINGLE, PROMPT)


def test_no_batch_is_tried_that_cuts_a_step_or_holds_the_whole_prompt() -> None:
    assert tried(EngineConfig(parallel=200))["ubatch_size"] == (256,)
    assert tried(CONFIG, prompt=200)["ubatch_size"] == (128,)
    assert tried(CONFIG, prompt=100)["ubatch_size"] == ()
