"""Ratios between contenders, rows of the tables, and whether targets are met."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from ..common import Report, cell
from ..servers.contenders import Steps
from ..servers.engine_alone import BATCHED_BENCH, ENGINE

REFERENCE = "llama-server"

Results = dict[str, dict[str, list[float]]]
"""Contender -> measure -> one value a round."""


@dataclass(frozen=True, slots=True)
class Target:
    """A target: the median of the rounds' ratios is at least, or at most, this."""

    workload: str
    measure: str
    ratio: float
    ours: str = "cLLM"
    theirs: str = REFERENCE
    at_most: bool = False


TARGETS = (
    Target("seed", "tokens/s", 1.05),
    Target("seed", "tokens/s", 4.0, theirs="llama_cpp.server"),
    Target("shared-prefix", "tokens/s", 1.3),
    Target("multi-turn", "tokens/s", 1.1),
    Target("multi-turn", "ITL p99", 1.2, at_most=True),
    Target("restart", "tokens/s", 3.0),
    Target("long-prompt", "tokens/s", 1.0),
    Target("long-prompt", "ITL p99", 0.5, at_most=True),
    Target("single", "tokens/s", 1.0),
    Target("many", "tokens/s", 1.1),
    Target("many", "ITL p99", 1.2, at_most=True),
    Target("copy", "tokens/s", 1.8),
    Target("thinking", "tokens/s", 2.0),
    Target("json", "tokens/s", 1.2),
    *(Target(f"ceiling-{n}", "tokens/s", 0.97, ENGINE, BATCHED_BENCH) for n in (1, 8, 16)),
)


def ratio(results: Results, ours: str, theirs: str, measured: str) -> float | None:
    """The median of the rounds' ratios; None where there is none."""
    mine, base = (results.get(name, {}).get(measured, []) for name in (ours, theirs))
    pairs = [a / b for a, b in zip(mine, base, strict=False) if b]
    return statistics.median(pairs) if pairs else None


def rows(results: Results) -> list[dict[str, Any]]:
    """One row for each contender: medians, then the ratio to the reference."""
    table = []
    for name, measures in results.items():
        row: dict[str, Any] = {"server": name}
        for measured, values in measures.items():
            if measured == "failures":
                row[measured] = int(sum(values))
                continue
            middle = statistics.median(values)
            row[measured] = "" if middle != middle else cell(middle)
            against = ratio(results, name, REFERENCE, measured)
            if against is not None and against == against and name != REFERENCE:
                row[measured] += f" ({against:.2f}×)"
        table.append(row)
    return table


def steps_rows(steps: dict[str, Steps]) -> list[dict[str, Any]]:
    """Where an engine's steps spent their time."""
    table = []
    for name, taken in steps.items():
        if not taken.count:
            continue
        whole = taken.decode + taken.sampling + taken.other
        table.append(
            {
                "where": name,
                "steps": taken.count,
                "ms a step": whole / taken.count * 1e3,
                "llama_decode %": taken.decode / whole * 100,
                "sampling %": taken.sampling / whole * 100,
                "Python %": taken.other / whole * 100,
            }
        )
    return table


def check_targets(
    report: Report, workload: str, results: Results, spent: list[dict[str, Any]]
) -> None:
    """Report for each target of this workload whether it is met. spent: from steps_rows."""
    for target in TARGETS:
        reached = ratio(results, target.ours, target.theirs, target.measure)
        if target.workload != workload or reached is None:
            continue
        word = "at most" if target.at_most else "at least"
        met = reached <= target.ratio if target.at_most else reached >= target.ratio
        what = f"{workload}: {target.measure} of {target.ours} {word} {target.ratio:g} × "
        report.target(what + target.theirs, reached, met)
    for name, measures in results.items():
        if failures := sum(measures["failures"]):
            report.target(f"{workload}: no failures of {name}", failures, met=False)
    for row in spent if workload == "seed" else ():
        share = row["Python %"]
        what = f"seed: {row['where']}: Python takes at most 3 % of a step"
        report.target(what, share, share <= 3.0)
