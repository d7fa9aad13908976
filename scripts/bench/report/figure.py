"""The picture of a comparison: each server's speed and latency relative to a reference."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from ..common import BenchError

PANELS = {
    "tokens/s": "tokens a second\nlonger is better",
    "TTFT p50": "median time to first token\nshorter is better",
    "ITL p99": "p99 time between tokens\nshorter is better",
}


def new_figure(figsize: tuple[float, float]) -> Any:
    """An empty figure of this size in inches. Raises BenchError if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise BenchError("--picture needs matplotlib: pip install matplotlib") from None
    return Figure(figsize=figsize, layout="constrained")


def draw(workloads: dict[str, dict[str, dict[str, list[float]]]], base: str, path: Path) -> None:
    """Bars of the median ratio to `base` for each workload that it took part in.

    Raises BenchError if matplotlib is missing or there is nothing to compare with.
    """
    drawn = {name: servers for name, servers in workloads.items() if base in servers}
    if not drawn:
        raise BenchError(f"--picture: {base} took part in no workload")
    names = sorted({server for servers in drawn.values() for server in servers} - {base})
    figure = new_figure((9, 1.5 + 0.16 * len(drawn) * (len(names) + 1)))
    panels: Any = figure.subplots(1, len(PANELS), sharey=True)
    height = 0.8 / max(1, len(names))
    for axes, (measured, title) in zip(panels, PANELS.items(), strict=True):
        for index, server in enumerate(names):
            at, ratios = [], []
            for row, servers in enumerate(drawn.values()):
                if server in servers:
                    at.append(row + height * (index - (len(names) - 1) / 2))
                    ratios.append(_ratio(servers[server][measured], servers[base][measured]))
            bars = axes.barh(at, ratios, height, label=server)
            axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_title(title, fontsize=9)
        axes.set_yticks(range(len(drawn)), list(drawn))
        axes.margins(x=0.15)
    panels[0].invert_yaxis()
    figure.suptitle(f"times {base}, median of the rounds' ratios", fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    figure.savefig(path)


def _ratio(mine: list[float], base: list[float]) -> float:
    return statistics.median(a / b if b else float("nan") for a, b in zip(mine, base, strict=True))
