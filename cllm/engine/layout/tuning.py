"""`tune`: the fastest layout for this model, library and machine, measured once and cached."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from time import monotonic
from typing import Any

from cllm.engine import llama
from cllm.engine.config import EngineConfig
from cllm.engine.layout.layout import Layout
from cllm.engine.layout.search import CannotMeasure, Search, knobs, parts_of
from cllm.engine.layout.sizing import ContextSize
from cllm.engine.layout.trial import LayoutTrial, longest_prompt
from cllm.engine.machine.aside import compute_aside
from cllm.engine.machine.fingerprint import fingerprint
from cllm.engine.machine.processors import hardware_threads, physical_cores
from cllm.engine.machine.user_cache import replacing, user_cache

_log = logging.getLogger("cllm.engine")

TIME_LIMIT = 15.0
"""Seconds after which no further trial begins; a trial takes up to five or so."""

# Part of the key: increment when the measurements change.
_REVISION = 1
# They change how threads wait, and therefore the best number of threads.
_THREADING = ("OMP_", "GOMP_", "KMP_", "GGML_")
# Options that do not affect which layout is fastest.
_INDIFFERENT = ("max_queue", "max_itl_ms", "cache_ram", "cache_disk", "cache_disk_size",
                "slot_save_path", "draft_max", "model_draft", "spec_synth_rates", "mmap",
                "mlock", "direct_io", "memory_budget", "extra_bufts", "pooling", "tune", "lora",
                "lora_init_without_apply")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tuning:
    """The result of tuning.

    chosen: the options that differ from the default. speedup: part -> speed divided by the
    default's (empty if nothing is faster). seconds: duration of the measurement. cached: whether
    it is from an earlier start.
    """

    chosen: dict[str, Any]
    speedup: dict[str, float]
    seconds: float
    cached: bool


@dataclass(frozen=True, slots=True)
class Subject:
    """The subject of tuning: a loaded model and its use.

    default: the layout without tuning. extra: with repacked kernels.
    """

    path: Path
    model: llama.Model
    size: ContextSize
    config: EngineConfig
    default: Layout
    extra: bool

    def key(self) -> str:
        """32 hex digits that change with model, library, machine, and relevant settings."""
        machine = {
            "library and CPU": llama.library().key(),
            "cores": [physical_cores(), hardware_threads()],
            "environment": {k: v for k, v in os.environ.items() if k.startswith(_THREADING)},
        }
        config = {k: v for k, v in asdict(self.config).items() if k not in _INDIFFERENT}
        prompt = longest_prompt(self.size, self.config)
        attention = self.default.flash_attn
        whole = [_REVISION, fingerprint(self.path), machine, config, prompt, self.extra, attention]
        text = json.dumps(whole, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def tune(
    subject: Subject, progress: Callable[[float], None], stop: threading.Event
) -> tuple[Layout, Tuning | None]:
    """The layout to use and the tuning behind it; None if nothing can be measured.

    progress: called with 0.0 to 1.0 during the measurement, on another thread. stop: ends it early,
    and nothing is remembered.
    """
    default = subject.default
    path = user_cache() / f"tuning-{subject.key()}.json"
    known = _remembered(path, subject.config, default)
    if known is not None:
        _tell(known[1], f"taken from {path}")
        return known
    _log.info("tuning: measuring which layout is fastest; no trial begins after %g s", TIME_LIMIT)
    begun = monotonic()
    try:
        layout, speedup = compute_aside(
            "cllm-tuning", lambda: _measured(subject, default, stop, progress)
        )
    except CannotMeasure as error:
        _log.warning("tuning: nothing can be measured (%s); the defaults are used", error)
        return default, None
    if stop.is_set():
        return default, None
    seconds = round(monotonic() - begun, 1)
    tuning = Tuning(_difference(layout, default), speedup, seconds, cached=False)
    _tell(tuning, f"measured in {seconds} s")
    _remember(path, layout, tuning, subject.path.name)
    return layout, tuning


def _measured(
    subject: Subject,
    default: Layout,
    stop: threading.Event,
    progress: Callable[[float], None],
) -> tuple[Layout, dict[str, float]]:
    progress(0.0)
    trial = LayoutTrial(subject.model, subject.size, subject.config, default, stop)
    limit = monotonic() + TIME_LIMIT
    try:
        turnable = knobs(
            subject.config,
            default,
            cores=physical_cores(),
            hardware_threads=hardware_threads(),
            prompt=trial.prompt,
        )
        search = Search(default, trial.seconds)
        search.run(turnable, lambda: stop.is_set() or monotonic() > limit, progress)
        speedup = search.speedup(parts_of(subject.config))
    finally:
        trial.close()
    progress(1.0)
    return search.best, {part: round(ratio, 3) for part, ratio in speedup.items()}


def _difference(layout: Layout, default: Layout) -> dict[str, Any]:
    plain = asdict(default)
    found = {name: value for name, value in asdict(layout).items() if value != plain[name]}
    if "threads" in found:  # threads_batch follows it by default
        found["threads_batch"] = layout.threads_batch
    return found


def _tell(tuning: Tuning, how: str) -> None:
    chosen = ", ".join(f"{name}={value}" for name, value in tuning.chosen.items())
    times = ", ".join(f"{part} {ratio:.2f}" for part, ratio in tuning.speedup.items())
    outcome = f"{chosen}; times as fast as by default: {times}" if chosen else "the defaults"
    _log.info("tuning: %s; %s", outcome, how)


def _remembered(path: Path, config: EngineConfig, default: Layout) -> tuple[Layout, Tuning] | None:
    try:
        saved = json.loads(path.read_text())
        layout = Layout(**saved["layout"])
        for item in fields(Layout):
            if type(getattr(layout, item.name)) is not type(getattr(default, item.name)):
                raise TypeError(item.name)
        replace(config, **asdict(layout))  # raises the same error as a user's option
        speedup = {str(part): float(ratio) for part, ratio in saved["speedup"].items()}
        seconds = float(saved["seconds"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        _log.warning("tuning: %s cannot be used; measuring again", path)
        return None
    return layout, Tuning(_difference(layout, default), speedup, seconds, cached=True)


def _remember(path: Path, layout: Layout, tuning: Tuning, model: str) -> None:
    saved = {
        "model": model,  # for readers of the file
        "layout": asdict(layout),
        "speedup": tuning.speedup,
        "seconds": tuning.seconds,
    }
    try:
        with replacing(path) as part:
            part.write_text(json.dumps(saved, indent=1))
    except OSError as error:
        _log.warning("tuning: %s cannot be written (%s)", path, error.strerror)
