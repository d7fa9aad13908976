"""Saving a slot's prefix to a file, restoring it, and erasing it, while requests run.

The cache is accessed on the engine thread, between two steps and while no request is in the slot;
files are read and written on a thread of their own.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from cllm.engine.adapters import Adapters
from cllm.engine.cache import session_file
from cllm.engine.cache.placement import Placer
from cllm.engine.cache.prefix_cache import Slot
from cllm.engine.cache.session_file import Identity, checked_name
from cllm.engine.config import EngineConfig
from cllm.engine.errors import EngineClosed, InvalidRequest, NotEnabled
from cllm.engine.llama import Bytes
from cllm.engine.machine.fingerprint import fingerprint
from cllm.engine.sharing import Scope

_T = TypeVar("_T")


class Command(Protocol):
    """Runs a function on a slot once no request is in it; see Commands.put."""

    def __call__(
        self,
        slot: int,
        run: Callable[..., Any],
        tenant: str = "",
        read: Callable[[], Future[Any]] | None = None,
        write: Callable[[Any], Future[Any]] | None = None,
    ) -> Future[Any]: ...


@dataclass(frozen=True, slots=True)
class Session:
    """What was saved or restored; n_bytes: the file's size; seconds: the whole duration."""

    slot: int
    filename: str
    n_tokens: int
    n_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What a slot holds, and of its scope what a file keeps."""

    tokens: array[int]
    state: Bytes
    salt: str
    adapters: list[tuple[str, float]]


class Sessions:
    """An engine's slots and the directory `slot_save_path`. Any thread."""

    def __init__(
        self,
        command: Command,
        placer: Placer,
        config: EngineConfig,
        model: Path,
        ctx_size: int,
        adapters: Adapters,
    ) -> None:
        self._command = command
        self._placer = placer
        self._config = config
        self._identity = _identity(config, model)  # now: later, another file may be in its place
        self._ctx_size = ctx_size
        self._adapters = adapters
        self._files = ThreadPoolExecutor(1, thread_name_prefix="cllm-session-files")

    def save(
        self, slot: int, filename: str, owner: str = "", tenant: str | None = None
    ) -> Future[Session]:
        """Write a slot's prefix to a file; a file of that name is replaced.

        owner: of the slot's tokens. Each has a folder of its own, so that none reaches the files
        of another. tenant: whose commands are counted together; None: the owner's. Raises
        NotEnabled and InvalidRequest, and QueueFull if too many commands wait; the future raises
        it if the slot is empty or another's. Cancelling the future removes a command that waits.
        """
        began, path = time.perf_counter(), self._path(filename, owner)

        def take(source: Slot) -> _Snapshot:
            digests = self._adapters.digests(source.scope.adapters)
            taken = self._placer.snapshot(source, owner)
            return _Snapshot(*taken, source.scope.salt, digests)

        def write(it: _Snapshot) -> Session:
            kept = it.tokens, it.state, it.salt, it.adapters
            size = session_file.write(path, self._identity, *kept)
            return Session(slot, filename, len(it.tokens), size, time.perf_counter() - began)

        return self._command(
            self._checked(slot),
            take,
            owner if tenant is None else tenant,
            write=lambda snapshot: self._file_thread(write, snapshot),
        )

    def restore(
        self, slot: int, filename: str, owner: str = "", tenant: str | None = None
    ) -> Future[Session]:
        """Put a file's prefix into a slot; prompts of its scope that begin with it reuse it.

        The file is read when the slot is idle. Raises as save does; the future raises
        InvalidRequest if the file is missing, damaged, or saved with another model or another
        cache layout.
        """
        began, path = time.perf_counter(), self._path(filename, owner)

        def read() -> tuple[array[int], Bytes, int, Scope]:
            content = session_file.read(path, self._identity)
            if len(content.tokens) >= self._ctx_size:
                expected = f"a file of fewer tokens than ctx_size={self._ctx_size}"
                raise InvalidRequest("filename", filename, expected)
            adapters = self._adapters.by_digests(content.adapters)
            if adapters is None:
                expected = "a file saved with LoRA adapters that are loaded"
                raise InvalidRequest("filename", filename, expected)
            scope = Scope(owner, content.salt, adapters)
            return content.tokens, content.state, content.size, scope

        def load(target: Slot, content: tuple[array[int], Bytes, int, Scope]) -> Session:
            tokens, state, size, scope = content
            if not self._placer.load(target, tokens, state, scope):
                expected = "a file saved with the same cache settings (flash_attn, kv_cells)"
                raise InvalidRequest("filename", filename, expected)
            return Session(slot, filename, len(tokens), size, time.perf_counter() - began)

        return self._command(
            self._checked(slot),
            load,
            owner if tenant is None else tenant,
            read=lambda: self._file_thread(read),
        )

    def erase(self, slot: int, owner: str = "", tenant: str | None = None) -> Future[int]:
        """Forget an owner's prefix in a slot; the future returns its number of tokens.

        Raises InvalidRequest and QueueFull.
        """
        return self._command(
            self._checked(slot),
            lambda target: self._placer.erase(target, owner),
            owner if tenant is None else tenant,
        )

    def close(self) -> None:
        """Finish the file in progress; the rest ends with EngineClosed."""
        self._files.shutdown(cancel_futures=True)

    def _path(self, filename: str, owner: str) -> Path:
        directory = self._config.slot_save_path
        if directory is None:
            raise NotEnabled("saving and restoring slots is disabled; start with --slot-save-path")
        folder = Path(directory)
        if owner:
            # No file of a client begins with "@". The digest keeps owners apart where the file
            # system ignores case.
            digest = sha256(owner.encode()).hexdigest()[:16]
            folder /= f"@{quote(owner, safe='')[:64]}-{digest}"
        return folder / checked_name(filename)

    def _checked(self, slot: int) -> int:
        if not 0 <= slot < self._config.sequences:
            raise InvalidRequest("id_slot", slot, f"a slot from 0 to {self._config.sequences - 1}")
        return slot

    def _file_thread(self, work: Callable[..., _T], *arguments: object) -> Future[_T]:
        try:
            return self._files.submit(work, *arguments)
        except RuntimeError:  # it was shut down
            closed: Future[_T] = Future()
            closed.set_exception(EngineClosed())
            return closed


def _identity(config: EngineConfig, model: Path) -> Identity:
    """Of the files of this engine; without a directory for them, the model does not matter."""
    layout = "unified" if config.kv_unified else f"split in {config.sequences}"
    known = "" if config.slot_save_path is None else fingerprint(model)
    return Identity(known, layout, config.cache_type_k, config.cache_type_v, config.alterations)
