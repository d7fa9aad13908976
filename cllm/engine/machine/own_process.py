"""Which process an engine belongs to: threads do not survive a fork, and locks stay held in it."""

from __future__ import annotations

import os

from cllm.engine.errors import EngineClosed


class OwnProcess:
    """The process that it was made in."""

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
