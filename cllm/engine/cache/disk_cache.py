"""Prefixes on disk, which outlive the process: one index, a thread that writes, one that reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import monotonic

from cllm.engine.cache.disk_index import DiskIndex, digest_of
from cllm.engine.cache.disk_reader import DiskReader
from cllm.engine.cache.disk_writer import DiskWriter
from cllm.engine.cache.idle_copies import IdleCopies
from cllm.engine.cache.saved_prefixes import Saved

_OPENING_S = 2.0  # for which the engine's start waits until the files are known
_CLOSING_S = 5.0  # for writing when the engine is closed
_JOIN_S = 1.0  # for a thread that hangs in a system call


class DiskCache:
    """The files of one directory. Started before the engine thread, closed after its end."""

    def __init__(
        self,
        directory: Path,
        limit: int | None,
        identity: Callable[[], str],
        longest: int,
        memory: int,
        copies: IdleCopies,
    ) -> None:
        """limit: see DiskIndex. identity: of what can restore the files, 64 hex digits. longest:
        tokens that can be restored are fewer. memory: bytes of the largest prefix that is read; a
        quarter of it may wait to be written.
        """
        self._index = DiskIndex(directory, limit, longest)
        self.writer = DiskWriter(self._index, identity, copies, memory // 4)
        self.reader = DiskReader(self._index, memory)

    def start(self, wake: Callable[[], None]) -> None:
        """Start the threads, and wait a moment until they know the files. wake: the engine."""
        self.writer.start(wake)
        self.reader.start(wake)
        self.writer.opened.wait(_OPENING_S)

    def gauges(self) -> dict[str, int]:
        """Fields of EngineStats."""
        index, writer = self._index, self.writer
        return {
            "disk_read_prefixes": self.reader.count,
            "disk_written_prefixes": writer.written,
            "disk_dropped_prefixes": writer.dropped,
            "disk_evicted_prefixes": writer.evicted,
            "cache_disk_bytes": index.bytes,
            "cache_disk_entries": len(index),
            "cache_disk_limit": index.limit,
        }

    def reject(self, saved: Saved) -> None:
        """llama.cpp did not take a prefix that was read: remove its file. Engine thread."""
        path = self._index.path_of(saved.tokens, digest_of(saved.scope))
        self._index.discard(path, "llama.cpp does not take it")

    def close(self, keep: bool) -> None:
        """Write what is worth keeping, for a few seconds at most, and end the threads.

        keep: also what slots hold.
        """
        deadline = monotonic() + _CLOSING_S
        self.reader.stop()
        self.writer.finish(deadline, keep)
        for thread in (self.writer, self.reader):
            thread.join(max(0.0, deadline - monotonic()) + _JOIN_S)
