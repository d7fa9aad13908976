"""Which layout is fastest: pure policy, given a function that measures one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from cllm.engine.config import EngineConfig
from cllm.engine.layout.layout import Layout

_log = logging.getLogger("cllm.engine")

SINGLE, TOGETHER, PROMPT = "single", "together", "prompt"
"""What is measured: a token of one sequence, a token of each of several, a prompt."""

Measure = Callable[[Layout, str], float]
"""The seconds that a part takes in a layout. Raises CannotMeasure."""

NOISE = 0.03
"""The share of its time by which a part may differ when nothing has changed."""

_UBATCH_SIZES = (128, 256, 512)


class CannotMeasure(Exception):  # noqa: N818 - no fault: that layout is not to be had here
    """llama.cpp cannot compute in this layout."""


@dataclass(frozen=True, slots=True)
class Knob:
    """An option that is open, the values to try, and the parts that it has a bearing on."""

    name: str
    values: tuple[Any, ...]
    parts: tuple[str, ...]


def parts_of(config: EngineConfig) -> tuple[str, ...]:
    """The parts that there are."""
    return (SINGLE, TOGETHER, PROMPT) if config.parallel > 1 else (SINGLE, PROMPT)


def knobs(
    config: EngineConfig, default: Layout, *, cores: int, hardware_threads: int, prompt: int
) -> list[Knob]:
    """What the configuration leaves open, in the order in which it is best decided.

    cores: physical ones. prompt: tokens of the prompt that is measured.
    """
    parts = parts_of(config)
    counts = tuple(sorted({max(1, cores // 2), cores, hardware_threads}))
    found = []
    if config.threads is None:
        found.append(Knob("threads", counts, (SINGLE,)))
    if config.threads_batch is None:
        # llama.cpp takes these threads for every step of more than one token.
        found.append(Knob("threads_batch", counts, parts[1:]))
    if config.kv_unified is None and config.parallel > 1:
        found.append(Knob("kv_unified", (True,), parts))
    if config.flash_attn == "auto" and config.cache_type_v in ("f32", "f16", "bf16"):
        # "auto" is "on" wherever llama.cpp has it for the device that computes the layer.
        found.append(Knob("flash_attn", ("off",), parts))
    if config.ubatch_size is None:
        # Less than a sequence's token each would cut steps in two; more than the prompt shows
        # nothing.
        fitting = [n for n in _UBATCH_SIZES if config.parallel <= n < prompt]
        found.append(Knob("ubatch_size", tuple(fitting), (PROMPT,)))
    return [
        replace(knob, values=tuple(v for v in knob.values if v != getattr(default, knob.name)))
        for knob in found
    ]


class Search:
    """One option after the other, each beginning from the best so far; times are least ones."""

    def __init__(self, default: Layout, measure: Measure) -> None:
        self.default = default
        self.best = default
        self._measure = measure
        self._seconds: dict[tuple[Layout, str], float] = {}

    def run(
        self,
        knobs: Sequence[Knob],
        out_of_time: Callable[[], bool],
        progress: Callable[[float], None],
    ) -> None:
        """Set `best`; what is left when the time is over keeps its default.

        Raises CannotMeasure if the default cannot be measured.
        """
        done, total = 0, sum(len(knob.values) for knob in knobs)
        for knob in knobs:
            for value in knob.values:
                if out_of_time():
                    _log.info(
                        "tuning: time limit reached; %d of %d trials skipped", total - done, total
                    )
                    return
                for part in knob.parts:
                    self.seconds(self.best, part)
                rival = replace(self.best, **{knob.name: value})
                try:
                    faster = self._is_faster(rival, knob.parts)
                except CannotMeasure as error:
                    _log.info("tuning: %s=%s is not possible: %s", knob.name, value, error)
                else:
                    ratio = self._ratio(rival, knob.parts)
                    verdict = "taken" if faster else "left"
                    _log.info(
                        "tuning: %s=%s takes %.2f of the time: %s",
                        knob.name, value, ratio, verdict,
                    )  # fmt: skip
                    self.best = rival if faster else self.best
                done += 1
                progress(done / total)

    def seconds(self, layout: Layout, part: str) -> float:
        """The least time measured; measured now if it was not before."""
        if (layout, part) not in self._seconds:
            self._seconds[layout, part] = self._measure(layout, part)
        return self._seconds[layout, part]

    def speedup(self, parts: Sequence[str]) -> dict[str, float]:
        """Part -> how many times as fast as by default the best layout is."""
        if self.best == self.default:
            return {}
        return {p: self.seconds(self.default, p) / self.seconds(self.best, p) for p in parts}

    def _is_faster(self, rival: Layout, parts: Sequence[str]) -> bool:
        if not self._wins(rival, parts):
            return False
        # Again, in turns: a machine that does other things beside makes anything slow once.
        for part in parts:
            for layout in (self.best, rival):
                again = self._measure(layout, part)
                self._seconds[layout, part] = min(self._seconds[layout, part], again)
        return self._wins(rival, parts)

    def _wins(self, rival: Layout, parts: Sequence[str]) -> bool:
        """Faster on the whole by more than noise, and slower in nothing."""
        slower = [p for p in parts if self._ratio(rival, [p]) > 1 + NOISE]
        return not slower and self._ratio(rival, parts) < 1 - NOISE

    def _ratio(self, rival: Layout, parts: Sequence[str]) -> float:
        """The rival's time over the best one's, in the geometric mean over the parts."""
        ratios = [self.seconds(rival, p) / self.seconds(self.best, p) for p in parts]
        return float(prod(ratios) ** (1 / len(ratios)))
