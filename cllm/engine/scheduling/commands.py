"""Commands that run on idle slots between two steps: save, restore, erase.

Those for one slot run in the order in which they came. One at a time uses a file: there is one
snapshot, or one file's content, in memory, and one in a step that takes the engine thread's time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any

from cllm.engine.cache.prefix_cache import Slot
from cllm.engine.errors import EngineClosed, QueueFull
from cllm.engine.sharing import gives_way

MOST = 64
"""Commands that have not ended; then the tenant with the most of them gives way."""

MOST_FOR_SLOT = 4
"""The same, of one tenant for one slot."""

_RETRY_S = 5  # until a client may try again
_KEPT_S = 2.0  # that the content of a file waits for a busy slot while other files are wanted


@dataclass(slots=True, eq=False)
class _Command:
    """What to do on a slot when it is idle; see Commands.put.

    content: what `read` gave, once `ready`. taken: some thread is about to end its future.
    """

    slot: int
    run: Callable[..., Any]
    tenant: str
    read: Callable[[], Future[Any]] | None
    write: Callable[[Any], Future[Any]] | None
    future: Future[Any] = field(default_factory=Future)
    content: tuple[Any, ...] = ()
    ready: bool = False
    taken: bool = False

    @property
    def uses_file(self) -> bool:
        return self.read is not None or self.write is not None


class Commands:
    """Commands on their way to the engine thread."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """wake: wakes the engine thread; called when it may have a command to run."""
        self._wake = wake
        self._lock = threading.Lock()
        self._by_slot: dict[int, deque[_Command]] = {}  # that wait; who used a file last is last
        self._by_tenant: dict[str, dict[_Command, None]] = {}  # that have not ended
        self._with_file: _Command | None = None  # from its snapshot or its reading to its end
        self._ready_at = 0.0  # monotonic(); when its content was there
        self._closed = False

    def put(
        self,
        slot: int,
        run: Callable[..., Any],
        tenant: str = "",
        read: Callable[[], Future[Any]] | None = None,
        write: Callable[[Any], Future[Any]] | None = None,
    ) -> Future[Any]:
        """Run something on a slot as soon as no request is in it. Any thread.

        The future gets what `run` returns or raises, or EngineClosed; cancelling it removes the
        command. tenant: whose commands are counted together. read: begins before, and gives `run`
        its second argument. write: begins after, with what `run` returned, and gives the result.
        Raises QueueFull; a command that gives way to another tenant's ends with it.
        """
        command = _Command(slot, run, tenant, read, write)
        displaced = None
        with self._lock:
            closed = self._closed
            if not closed:
                displaced = self._make_room(command)
                self._by_tenant.setdefault(tenant, {})[command] = None
                self._by_slot.setdefault(slot, deque()).append(command)
        if closed:
            command.future.set_exception(EngineClosed())
            return command.future
        command.future.add_done_callback(lambda _: self._forget(command))
        if displaced is not None:
            _fail(displaced, QueueFull(MOST, _RETRY_S, "commands for slots"))
        self._wake()
        return command.future

    def _make_room(self, newcomer: _Command) -> _Command | None:
        """The command that gives way, not waiting any more. Raises QueueFull."""
        own = self._by_tenant.get(newcomer.tenant, {})
        if sum(other.slot == newcomer.slot for other in own) >= MOST_FOR_SLOT:
            raise QueueFull(MOST_FOR_SLOT, _RETRY_S, f"commands for slot {newcomer.slot}")
        if sum(map(len, self._by_tenant.values())) < MOST:
            return None
        yielding = gives_way(self._by_tenant, newcomer.tenant)
        if yielding != newcomer.tenant:
            for other in reversed(self._by_tenant[yielding]):
                if not other.taken and other is not self._with_file:
                    other.taken = True
                    self._remove(other)
                    return other
        raise QueueFull(MOST, _RETRY_S, "commands for slots")

    def _forget(self, command: _Command) -> None:
        """A future is done: by its command's end, or cancelled."""
        with self._lock:
            self._remove(command)
            freed = self._with_file is command and command.ready
            if freed:  # otherwise what is being read stays the only content in memory
                self._with_file, command.content = None, ()
        if freed:
            self._wake()

    def _remove(self, command: _Command) -> None:
        own = self._by_tenant.get(command.tenant, {})
        own.pop(command, None)
        if not own:
            self._by_tenant.pop(command.tenant, None)
        waiting = self._by_slot.get(command.slot, ())
        if command in waiting:
            self._by_slot[command.slot].remove(command)
            if not waiting:
                del self._by_slot[command.slot]

    # The engine thread.

    def note_idle(self) -> None:
        """A request has left its slot: if commands wait, there will be another step."""
        if self._by_slot or self._with_file is not None:
            self._wake()

    def obey(self, slots: Sequence[Slot]) -> None:
        """Run commands whose slots are idle; keep the others for later."""
        if not self._by_slot and self._with_file is None:
            return
        with self._lock:
            due = self._due(slots)
        for command in due:
            if command.read is not None and not command.ready:
                command.read().add_done_callback(partial(self._note_read, command))
            elif self._take(command):
                self._run(command, slots[command.slot])

    def _due(self, slots: Sequence[Slot]) -> list[_Command]:
        """What to do now; the one that uses a file is `_with_file`, the others wait no more."""
        due = list[_Command]()
        command = self._with_file
        if command is not None and command.ready:
            if not slots[command.slot].busy:
                due.append(command)
            elif monotonic() - self._ready_at >= _KEPT_S and self._wants_file(slots):
                command.content, command.ready = (), False
                self._with_file = None
                self._by_slot.setdefault(command.slot, deque()).appendleft(command)
        for slot, waiting in list(self._by_slot.items()):
            if slots[slot].busy or (self._with_file is not None and self._with_file.slot == slot):
                continue
            while waiting and not waiting[0].uses_file:
                due.append(waiting.popleft())
            if waiting and self._with_file is None:
                self._with_file = waiting.popleft()
                due.append(self._with_file)
                self._by_slot[slot] = self._by_slot.pop(slot)
            if not waiting:
                del self._by_slot[slot]
        return due

    def _wants_file(self, slots: Sequence[Slot]) -> bool:
        """Whether a command for an idle slot waits until another has used its file."""
        heads = ((slot, waiting[0]) for slot, waiting in self._by_slot.items())
        return any(head.uses_file and not slots[slot].busy for slot, head in heads)

    def _run(self, command: _Command, slot: Slot) -> None:
        if not command.future.set_running_or_notify_cancel():
            self._end_file(command)
            return
        try:
            result = command.run(slot, *command.content)
        except Exception as error:
            self._end(command, error)
            return
        if command.write is None:
            self._end(command, None, result)
        else:
            writing = command.write(result)
            writing.add_done_callback(lambda done: self._end(command, _error(done), _result(done)))

    def close(self, message: str) -> None:
        """End all commands with EngineClosed, those of the future too; not one that writes."""
        with self._lock:
            self._closed = True
            left = [it for own in self._by_tenant.values() for it in own if not it.taken]
            for command in left:
                command.taken = True
            self._by_slot.clear()
        for command in left:
            _fail(command, EngineClosed(message))

    # Any thread.

    def _note_read(self, command: _Command, done: Future[Any]) -> None:
        error = _error(done)
        if error is not None:
            if self._take(command) and command.future.set_running_or_notify_cancel():
                self._end(command, error)
            else:
                self._end_file(command)
            return
        with self._lock:
            left = command.taken or command.future.done()
            if not left:
                command.content, command.ready = (done.result(),), True
                self._ready_at = monotonic()
        if left:
            self._end_file(command)
        else:
            self._wake()

    def _take(self, command: _Command) -> bool:
        """Whether the caller is the one that ends a command."""
        with self._lock:
            taken, command.taken = command.taken, True
        return not taken

    def _end(self, command: _Command, error: BaseException | None, result: Any = None) -> None:
        self._end_file(command)
        if error is not None:
            command.future.set_exception(error)
        else:
            command.future.set_result(result)

    def _end_file(self, command: _Command) -> None:
        """Let another command use a file, if this one did."""
        with self._lock:
            used = self._with_file is command
            if used:
                self._with_file = None
            command.content, command.ready = (), False
        if used:
            self._wake()


def _error(done: Future[Any]) -> BaseException | None:
    return EngineClosed() if done.cancelled() else done.exception()


def _result(done: Future[Any]) -> Any:
    return done.result() if _error(done) is None else None


def _fail(command: _Command, error: Exception) -> None:
    """End a command that the caller has taken."""
    if command.future.set_running_or_notify_cancel():
        command.future.set_exception(error)
