"""Tables and the picture of tokens a second against the number of sequences."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..common import BenchError, Report, cell
from .comparison import REFERENCE
from .figure import new_figure

KINDS = ("prompt", "decode")
STYLES = ("-", "--", ":", "-.")  # of the numbers of busy processes


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement of one server.

    length: tokens of each prompt, or of each answer. rate: tokens a second of all sequences.
    cut: seconds after which the measurement was ended; 0: it was complete.
    outside: of one step of the engine, milliseconds outside llama_decode; share: their part of it.
    """

    run: str
    round: int
    model: str
    busy: int
    kind: str
    sequences: int
    server: str
    length: int
    rate: float
    cut: float = 0.0
    outside: float | None = None
    share: float | None = None


def to_json(points: Iterable[Point]) -> list[dict[str, Any]]:
    """What `from_json` reads under the key "points"."""
    return [asdict(point) for point in points]


def from_json(path: Path) -> list[Point]:
    """The points of an earlier run. Raises BenchError if the file has none."""
    try:
        return [Point(**point) for point in json.loads(path.read_text())["points"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise BenchError(f"--from: {path} is no result of this benchmark: {error}") from None


def ratio(points: Sequence[Point], ours: str, theirs: str = REFERENCE) -> float | None:
    """The median of the rounds' ratios of two servers at one place of a curve."""
    mine, base = (
        {(point.run, point.round): point.rate for point in points if point.server == server}
        for server in (ours, theirs)
    )
    pairs = [mine[key] / base[key] for key in mine if base.get(key)]
    return statistics.median(pairs) if pairs else None


def tables(report: Report, points: Sequence[Point]) -> None:
    """A table for each model, kind and number of busy processes, then where steps spend time."""
    for model in _values(points, "model"):
        for kind in KINDS:
            for busy in sorted(_values(points, "busy")):
                chosen = _only(points, model=model, kind=kind, busy=busy)
                if chosen:
                    what = "prompt tokens/s" if kind == "prompt" else "generated tokens/s"
                    report.table(f"{model}: {what}{_next_to(busy)}", _rows(chosen))
        chosen = [p for p in _only(points, model=model, busy=0) if p.outside is not None]
        if chosen:
            report.table(f"{model}: time outside llama_decode in a step", _outside(chosen))


def _rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    rows = []
    for sequences in sorted(_values(points, "sequences")):
        here = _only(points, sequences=sequences)
        lengths = sorted({str(point.length) for point in here}, key=int)
        of_each = "-".join([lengths[0], *lengths[1:][-1:]])
        row: dict[str, Any] = {"sequences": sequences, "tokens of each": of_each}
        for server in _values(points, "server"):
            row[server] = _cell(here, server)
        rows.append(row)
    return rows


def _cell(here: Sequence[Point], server: str) -> str:
    found = _only(here, server=server)
    if not found:
        return ""
    text = cell(statistics.median(point.rate for point in found))
    against = ratio(here, server)
    if against is not None and server != REFERENCE:
        text += f" ({against:.2f}×)"
    cut = max(point.cut for point in found)
    return f"{text}, cut after {cut:g} s" if cut else text


def _outside(points: Sequence[Point]) -> list[dict[str, Any]]:
    rows = []
    for sequences in sorted(_values(points, "sequences")):
        row: dict[str, Any] = {"sequences": sequences}
        for server in _values(points, "server"):
            for kind in KINDS:
                found = _only(points, sequences=sequences, kind=kind, server=server)
                spent = [point.outside for point in found if point.outside is not None]
                parts = [point.share for point in found if point.share is not None]
                row[f"{server}, {kind}, ms"] = statistics.median(spent) if spent else ""
                row[f"{kind}, %"] = statistics.median(parts) * 100 if parts else ""
        rows.append(row)
    return rows


def draw(points: Sequence[Point], path: Path) -> None:
    """A row of panels for each model: prompt and decode; a line for each server.

    Raises BenchError if matplotlib is missing.
    """
    models, servers = _values(points, "model"), _values(points, "server")
    crowds = sorted(_values(points, "busy"))
    figure = new_figure((9, 0.8 + 2.6 * len(models)))
    panels: Any = figure.subplots(len(models), len(KINDS), squeeze=False)
    for row, model in zip(panels, models, strict=True):
        for axes, kind in zip(row, KINDS, strict=True):
            for number, server in enumerate(servers):
                for busy, style in zip(crowds, STYLES, strict=False):
                    line = _only(points, model=model, kind=kind, busy=busy, server=server)
                    _line(axes, line, f"C{number}", style, server + _next_to(busy))
            axes.set_xscale("log", base=2)
            ticks = sorted(_values(_only(points, model=model), "sequences"))
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.set_ylim(bottom=0)
            axes.set_title(f"{model}: {kind}", fontsize=9)
            axes.tick_params(labelsize=8)
            axes.grid(alpha=0.3)
            axes.set_xlabel("sequences", fontsize=8)
        row[0].set_ylabel("tokens a second", fontsize=8)
    found = {
        label: handle
        for axes in panels.flat
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        found.values(), found, loc="outside lower center", ncols=min(4, len(servers)), fontsize=8
    )
    figure.savefig(path)


def _line(axes: Any, points: Sequence[Point], color: str, style: str, label: str) -> None:
    at = sorted(_values(points, "sequences"))
    if not at:
        return
    here = [_only(points, sequences=sequences) for sequences in at]
    rates = [statistics.median(point.rate for point in found) for found in here]
    axes.plot(
        at, rates, style, color=color, label=label, marker="o", markersize=3, linewidth=1.2
    )  # fmt: skip
    cut = [place for place, found in enumerate(here) if any(point.cut for point in found)]
    axes.plot(
        [at[i] for i in cut], [rates[i] for i in cut], "x", color=color, markersize=6
    )  # fmt: skip


def _next_to(busy: int) -> str:
    return f", next to {busy} busy" if busy else ""


def _values(points: Iterable[Point], name: str) -> list[Any]:
    """The different values, in the order of their first points."""
    return list(dict.fromkeys(getattr(point, name) for point in points))


def _only(points: Iterable[Point], **wanted: object) -> list[Point]:
    return [
        point
        for point in points
        if all(getattr(point, name) == value for name, value in wanted.items())
    ]
