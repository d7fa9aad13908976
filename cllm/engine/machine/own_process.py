"""The process of an engine: after a fork its threads are gone and its locks may stay held."""

from __future__ import annotations

import os

from cllm.engine.errors import EngineClosed


class OwnProcess:
    """The process in which this object was created."""

    __slots__ = ("_id",)

    def __init__(self) -> None:
        self._id = os.getpid()

    @property
    def is_current(self) -> bool:
        """Whether this is that process, and not a fork of it."""
        return os.getpid() == self._id

    def check(self) -> None:
        """Raise EngineClosed in a fork."""
        if not self.is_current:
            raise EngineClosed(
                "this engine belongs to the process that loaded it; load it after the fork, or use "
                "the spawn start method"
            )
