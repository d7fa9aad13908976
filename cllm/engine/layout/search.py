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


class CannotMeasure(Exception):  # noqa: N818 - not a fault: this layout is unavailable here
    """llama.cpp cannot compute in this layout."""


@dataclass(frozen=True, slots=True)
class Knob:
    """An open option, the values to try, and the parts that it affects."""

    name: str
    values: tuple[Any, ...]
    parts: tuple[str, ...]


def parts_of(config: EngineConfig) -> tuple[str, ...]:
    """The parts to measure."""
    return (SINGLE, TOGETHER, PROMPT) if config.parallel > 1 else (SINGLE, PROMPT)


def knobs(
    config: EngineConfig, default: Layout, *, cores: int, hardware_threads: int, prompt: int
) -> list[Knob]:
    """The options that the configuration leaves open, in the best order to decide them.

    cores: physical cores. prompt: tokens of the measured prompt.
    """
    parts = parts_of(config)
    counts = tuple(sorted({max(1, cores // 2), cores, hardware_threads}))
    found = []
    if config.threads is None:
        found.append(Knob("threads", counts, (SINGLE,)))
    if config.threads_batch is None:
        # llama.cpp uses these threads for every step with more than one token.
        found.append(Knob("threads_batch", counts, parts[1:]))
    if config.kv_unified is None and config.parallel > 1:
        found.append(Knob("kv_unified", (True,), parts))
    if config.flash_attn == "auto" and config.cache_type_v in ("f32", "f16", "bf16"):
        # "auto" is "on" if llama.cpp supports it on the device that computes the layer.
        other = "on" if default.flash_attn == "off" else "off"
        found.append(Knob("flash_attn", (other,), parts))
    if config.ubatch_size is None:
        # Fewer than one token per sequence would split steps; more than the prompt has no
        # effect.
        fitting = [n for n in _UBATCH_SIZES if config.parallel <= n < prompt]
        found.append(Knob("ubatch_size", tuple(fitting), (PROMPT,)))
    return [
        replace(knob, values=tuple(v for v in knob.values if v != getattr(default, knob.name)))
        for knob in found
    ]


class Search:
    """Decides one option after the other, each from the best so far; times are minima."""

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
        """Set `best`; options left when the time is over keep their defaults.

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
        """The minimum measured time; measures now if there is none."""
        if (layout, part) not in self._seconds:
            self._seconds[layout, part] = self._measure(layout, part)
        return self._seconds[layout, part]

    def speedup(self, parts: Sequence[str]) -> dict[str, float]:
        """Part -> speed of the best layout divided by the default's."""
        if self.best == self.default:
            return {}
        return {p: self.seconds(self.default, p) / self.seconds(self.best, p) for p in parts}

    def _is_faster(self, rival: Layout, parts: Sequence[str]) -> bool:
        if not self._wins(rival, parts):
            return False
        # Again, in turns: other programs may have slowed down one measurement.
        for part in parts:
            for layout in (self.best, rival):
                again = self._measure(layout, part)
                self._seconds[layout, part] = min(self._seconds[layout, part], again)
        return self._wins(rival, parts)

    def _wins(self, rival: Layout, parts: Sequence[str]) -> bool:
        """Whether it is faster overall by more than noise, and slower in no part."""
        slower = [p for p in parts if self._ratio(rival, [p]) > 1 + NOISE]
        return not slower and self._ratio(rival, parts) < 1 - NOISE

    def _ratio(self, rival: Layout, parts: Sequence[str]) -> float:
        """The rival's time over the best one's, as geometric mean over the parts."""
        ratios = [self.seconds(rival, p) / self.seconds(self.best, p) for p in parts]
        return float(prod(ratios) ** (1 / len(ratios)))
