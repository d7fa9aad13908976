"""Whether a thread runs or waits for a processor, or is blocked, and how long it has run.

Known on Linux only.
"""

from __future__ import annotations

import threading
from time import clock_gettime


class ThreadStates:
    """Of the threads of this process, by `threading.get_ident()`. For one thread."""

    __slots__ = ("_native",)

    def __init__(self) -> None:
        self._native: dict[int, int | None] = {}  # the system's numbers of the threads seen

    def is_runnable(self, ident: int) -> bool:
        """False if it is blocked, such as in a system call or for a lock, or if it is not known.

        It takes 10 µs: a file of /proc.
        """
        try:
            with open(f"/proc/self/task/{self._number(ident)}/stat", "rb", 0) as file:
                # proc_pid_stat(5): the state follows the name, which is in parentheses
                return file.read(512).rpartition(b") ")[2].startswith(b"R")
        except OSError:
            return False

    def processor_time(self, ident: int) -> float:
        """Seconds that it has run; 0 if that is not known."""
        number = self._number(ident)
        if number is None:
            return 0.0
        try:
            # Linux's clock of any thread of the process; unlike pthread_getcpuclockid(3) it may be
            # asked about a thread that has ended.
            return clock_gettime(~number << 3 | 6)
        except OSError:
            return 0.0

    def _number(self, ident: int) -> int | None:
        """The system's number of a thread."""
        if ident not in self._native:
            self._native.update((each.ident or 0, each.native_id) for each in threading.enumerate())
        return self._native.get(ident)
