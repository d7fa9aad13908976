"""Whether a thread runs or waits for a processor, or is blocked; known on Linux only."""

from __future__ import annotations

import threading


class ThreadStates:
    """Of the threads of this process, by `threading.get_ident()`. For one thread."""

    __slots__ = ("_native",)

    def __init__(self) -> None:
        self._native: dict[int, int | None] = {}  # the system's numbers of the threads seen

    def is_runnable(self, ident: int) -> bool:
        """False if it is blocked, such as in a system call or for a lock, or if it is not known.

        It takes 10 µs: a file of /proc.
        """
        if ident not in self._native:
            self._native.update((each.ident or 0, each.native_id) for each in threading.enumerate())
        try:
            with open(f"/proc/self/task/{self._native.get(ident)}/stat", "rb", 0) as file:
                # proc_pid_stat(5): the state follows the name, which is in parentheses
                return file.read(512).rpartition(b") ")[2].startswith(b"R")
        except OSError:
            return False
