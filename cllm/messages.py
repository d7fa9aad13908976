"""What the main thread waits for: signals, and what its other threads have done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cllm.engine import Engine


@dataclass(frozen=True, slots=True)
class StopSignal:
    """SIGINT or SIGTERM arrived for the first time."""

    number: int


@dataclass(frozen=True, slots=True)
class ReloadSignal:
    """SIGHUP arrived."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The loader has the engine."""

    engine: Engine


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The loader gave up."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Stopped:
    """Server and engine are closed, or closing them failed."""

    error: BaseException | None = None


Message = StopSignal | ReloadSignal | Loaded | LoadFailed | Stopped
