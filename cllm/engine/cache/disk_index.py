"""Which prefixes the files of the disk cache hold, and which files are removed first.

Any thread: the lock is never held while a file is read or written.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
import time
from array import array
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from cllm.engine.cache import prefix_file
from cllm.engine.cache.prefix_cache import adds_little
from cllm.engine.cache.prefix_file import DamagedError, Head
from cllm.engine.cache.radix import RadixForest
from cllm.engine.sharing import Scope

_log = logging.getLogger("cllm.engine")

SUFFIX = ".prefix"
KIND = "llama_state_seq"  # what llama_state_seq_get_data returns
DEFAULT_LIMIT = 8 << 30  # bytes of all files, or a quarter of the free space if that is less
_LEFT_OVER_S = 3600.0  # after which a temporary file is one that a crash left


@lru_cache(256)
def digest_of(scope: Scope) -> str:
    """32 hex digits for a scope: the files name neither owners nor salts."""
    return sha256(json.dumps(list(scope)).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A file that can be restored here."""

    path: Path
    head: Head
    tokens: array[int]

    @property
    def length(self) -> int:
        """Tokens held."""
        return len(self.tokens)


class DiskIndex:
    """The files below a directory: a folder for each model, layout and build, this one's indexed.

    is_open: whether the files are known. identity: of what can restore this engine's files. bytes:
    of the files of all folders, at the last look. limit: of these bytes.
    """

    def __init__(self, directory: Path, limit: int | None, longest: int) -> None:
        """limit: None: see DEFAULT_LIMIT. longest: tokens that can be restored are fewer."""
        self.is_open = False
        self.directory = directory
        self.folder = directory
        self.identity = ""
        self.bytes = 0
        self.limit = limit or 0
        self._longest = longest
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}  # by the file's name
        self._useless: set[str] = set()  # names of files that are in the folder and not indexed
        self._trees: RadixForest[Entry] = RadixForest()

    def open(self, identity: str) -> None:
        """Make the folder, look for files, and keep to the limit. Raises OSError."""
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self.identity = identity
        self.folder = self.directory / identity[:32]
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.refresh()
        if not self.limit:
            free = shutil.disk_usage(self.directory).free
            self.limit = min(DEFAULT_LIMIT, (free + self.bytes) // 4)
        self.make_room(0)
        self.is_open = True

    def __len__(self) -> int:
        return len(self._entries)

    def path_of(self, tokens: array[int], scope: str) -> Path:
        """The file of a prefix."""
        name = sha256(scope.encode() + tokens.tobytes()).hexdigest()[:32]
        return self.folder / f"{name}{SUFFIX}"

    def best(self, tokens: array[int], scope: str) -> tuple[Entry, int] | None:
        """The file with the most leading tokens of a sequence, and how many; None: none has any."""
        best: tuple[Entry, int] | None = None
        for entry, n in self._shared(tokens, scope).items():
            if entry.head.whole and n < entry.length:
                continue
            if best is None or (n, -entry.length) > (best[1], -best[0].length):
                best = entry, n
        return best

    def contained(self, entry: Entry) -> list[Entry]:
        """The files whose prefixes another one contains, except for a few tokens at the end."""
        return [
            other
            for other, n in self._shared(entry.tokens, entry.head.scope).items()
            if other is not entry and adds_little(other.length, n) and not other.head.whole
        ]

    def _shared(self, tokens: array[int], scope: str) -> dict[Entry, int]:
        with self._lock:
            return self._trees.shared(tokens, Scope(scope))

    def add(self, entry: Entry) -> None:
        """Note a file; one of the same name is replaced."""
        with self._lock:
            self._forget(entry.path.name)
            self._entries[entry.path.name] = entry
            self._trees.insert(entry, entry.tokens, Scope(entry.head.scope))

    def remove(self, path: Path) -> None:
        """Delete a file, indexed or not. Raises OSError unless it is gone already."""
        with self._lock:
            if path.parent == self.folder:  # another folder's file may have the same name
                self._forget(path.name)
        with suppress(FileNotFoundError):
            path.unlink()

    def _forget(self, name: str) -> None:
        entry = self._entries.pop(name, None)
        if entry is not None:
            self._trees.remove(entry)

    def discard(self, path: Path, why: object) -> None:
        """Delete a file that cannot be used, with a line in the log."""
        _log.warning("cache on disk: %s is removed: %s", path, why)
        with suppress(OSError):
            self.remove(path)

    def refresh(self) -> list[tuple[float, int, Path]]:
        """Look at the directory: this and other processes add and remove files.

        Returns the time of last use, the size and the path of each file. Raises OSError.
        """
        files: list[tuple[float, int, Path]] = []
        for folder in _folders(self.directory):
            files += _files(folder)
        self.bytes = sum(size for _, size, _ in files)
        names = {path.name for _, _, path in files if path.parent == self.folder}
        with self._lock:
            for gone in self._entries.keys() - names:
                self._forget(gone)
            self._useless &= names
            known = self._entries.keys() | self._useless
        for name in names - known:
            self._read(self.folder / name)
        return files

    def _read(self, path: Path) -> None:
        try:
            head, tokens = prefix_file.read_head(path)
            if head.identity != self.identity:
                raise DamagedError("it is of another model or build")
        except FileNotFoundError:
            return
        except DamagedError as why:
            self.discard(path, why)
        except (OSError, MemoryError) as error:
            _log.warning("cache on disk: %s cannot be read: %s", path, error)
            self._useless.add(path.name)
        else:
            if len(tokens) < self._longest and head.kind == KIND:
                self.add(Entry(path, head, tokens))
            else:
                self._useless.add(path.name)

    def make_room(self, size: int) -> int:
        """Remove the least recently used files until `size` bytes fit; return how many.

        Raises OSError, also if they do not fit after all.
        """
        removed = 0
        files = self.refresh()
        for _, used, path in sorted(files, key=lambda file: file[0]):
            if self.bytes + size <= self.limit:
                return removed
            with suppress(PermissionError):
                self.remove(path)
                self.bytes -= used
                removed += 1
        if self.bytes + size > self.limit:
            raise OSError(errno.EDQUOT, "files of another user fill --cache-disk-size")
        return removed


def _folders(directory: Path) -> list[Path]:
    with os.scandir(directory) as found:
        return [Path(each.path) for each in found if each.is_dir(follow_symlinks=False)]


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    files: list[tuple[float, int, Path]] = []
    with suppress(FileNotFoundError, PermissionError), os.scandir(folder) as found:
        for each in found:
            if SUFFIX not in each.name:
                continue  # not of the cache
            with suppress(FileNotFoundError):
                status = each.stat(follow_symlinks=False)
                if each.name.endswith(SUFFIX):
                    files.append((status.st_mtime, status.st_size, Path(each.path)))
                elif time.time() - status.st_mtime > _LEFT_OVER_S:
                    os.unlink(each.path)
    return files
