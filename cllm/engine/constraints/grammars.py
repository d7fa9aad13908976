"""Constraints compiled for a model's vocabulary: each in a child process first, then cached.

A constraint may crash the compiler, hang it or fill the memory. So this process compiles no
constraint of a request before a child has compiled it. Two threads have a child each: the patient
one gives a constraint PATIENT_S of processor time; the quick one works only while that one is busy,
gives up after QUICK_S and leaves the constraint to the patient one. Constraints that hang one after
the other therefore do not delay others for long.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from llguidance import LLMatcher, LLTokenizer

from cllm.engine.constraints.compile_child import vocabulary_frame
from cllm.engine.constraints.compile_process import COMMAND, ChildKilled, CompileProcess, TooSlow
from cllm.engine.constraints.compile_queue import CompileQueue
from cllm.engine.constraints.compiling import compile_constraint, refused
from cllm.engine.constraints.constraint import Constraint
from cllm.engine.constraints.guide import Guide
from cllm.engine.errors import (
    CompilerUnavailable,
    ConstraintPending,
    EngineClosed,
    EngineError,
    InvalidRequest,
    QueueFull,
    described,
    shortened,
)
from cllm.engine.machine.uninterrupted import Uninterrupted

if TYPE_CHECKING:
    from cllm.engine.llama import Vocab

MAX_KEPT = 64
"""Compiled constraints that are kept; one takes about a megabyte, seldom more."""

MAX_KEPT_BYTES = 256 * 2**20
"""Memory that they may take together, as measured in the child."""

MAX_WAITING = 64
"""Constraints that may wait to be compiled."""

PATIENT_S = 5.0
QUICK_S = 1.0
"""Processor seconds until a constraint is refused, or left to the patient thread."""

_MAX_VERDICTS = 4096
_TRY_AGAIN_S = 30.0  # until a constraint that failed without a verdict is compiled anew

_log = logging.getLogger("cllm.engine")


class Grammars:
    """For any thread, until close(), which must come before the vocabulary is freed."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._kept: OrderedDict[Constraint, tuple[LLMatcher, int]] = OrderedDict()
        # The child's verdicts by _key(): the size in bytes, or the refusal.
        self._verdicts: OrderedDict[bytes, int | InvalidRequest] = OrderedDict()
        # What was no verdict, for those who ask again after they have waited for it.
        self._failed: OrderedDict[bytes, tuple[BaseException, float]] = OrderedDict()
        self._jobs: dict[Constraint, Future[LLMatcher]] = {}
        # Compiled ones for as long as who waited for them holds the future: of more constraints at
        # once than are kept, each would drop another before its request looks again.
        self._awaited: WeakValueDictionary[Constraint, Future[LLMatcher]] = WeakValueDictionary()
        self._fresh = CompileQueue(MAX_WAITING)
        self._slow: deque[Constraint] = deque()
        self._compiling: set[Constraint] = set()
        self._lock = threading.RLock()  # entered by itself, as in Inbox
        self._changed = threading.Condition(self._lock)
        self._patient_busy = False
        self._mean_s = 0.0  # of a compilation
        self._closed = False
        self._warned = False
        self._prepared = _Prepared(vocab)
        self._lanes: list[_Lane] = []
        self.compiled = 0
        self.refused = 0

    @property
    def deaths(self) -> int:
        """Children that a constraint ended."""
        return sum(lane.process.deaths for lane in self._lanes)

    def guide(self, constraint: Constraint, tenant: str = "") -> Guide:
        """Return a guide at the start of the text; waits while the constraint is compiled.

        tenant: who asks; tenants take turns. Raises InvalidRequest, QueueFull,
        CompilerUnavailable, EngineClosed.
        """
        with Uninterrupted():
            found = self._find(constraint, tenant)
        matcher = _outcome(found) if isinstance(found, Future) else found
        return Guide(matcher.deep_copy(), self._vocab.n_tokens)

    def check(self, constraint: Constraint, keep: bool = True, tenant: str = "") -> None:
        """Return if it is compiled and kept. Raises as guide, or ConstraintPending at once.

        tenant: as in guide. keep: whether it has to be; else it is enough that it was compiled
        once.
        """
        with self._lock:
            if not keep and isinstance(self._verdicts.get(_key(constraint)), int):
                return
            failed, until = self._failed.get(_key(constraint), (None, 0.0))
            if failed is not None and time.monotonic() < until:
                raise _again(failed)
        with Uninterrupted():
            found = self._find(constraint, tenant)
            pending = isinstance(found, Future) and not found.done()
        if isinstance(found, Future):
            if pending:
                raise ConstraintPending(found, partial(self._leave, constraint, tenant))
            _outcome(found)

    def close(self) -> None:
        """End the threads and their children; waiting calls raise EngineClosed."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()
        for lane in self._lanes:
            lane.process.kill()
        for lane in self._lanes:
            lane.thread.join()
        for constraint in list(self._jobs):
            self._settle(constraint, EngineClosed())

    def _leave(self, constraint: Constraint, tenant: str) -> None:
        """A request waits no longer for a constraint; if none does, it need not be compiled.

        One that is being compiled is compiled to its end.
        """
        job = None
        with self._lock:
            if self._fresh.leave(constraint, tenant) and constraint not in self._compiling:
                job = self._jobs.pop(constraint, None)
                if constraint in self._slow:
                    self._slow.remove(constraint)
                    self._fresh.done(constraint)
        if job is not None:
            job.cancel()

    def _find(self, constraint: Constraint, tenant: str) -> LLMatcher | Future[LLMatcher]:
        displaced = None
        with self._lock:
            kept = self._kept.get(constraint)
            if kept is not None:
                self._kept.move_to_end(constraint)
                return kept[0]
            verdict = self._verdicts.get(_key(constraint))
            if isinstance(verdict, InvalidRequest):
                self.refused += 1
                raise InvalidRequest(verdict.field, verdict.value, verdict.expected)
            job = self._jobs.get(constraint) or self._awaited.get(constraint)
            if job is not None:
                if constraint in self._jobs:
                    self._fresh.join(constraint, tenant)
                return job
            if self._closed:
                raise EngineClosed
            try:
                displaced = self._fresh.room_for(tenant)
            except IndexError:
                raise QueueFull(len(self._fresh), self._retry_after()) from None
            if len(self._lanes) < 1 + (self._patient_busy or len(self._fresh) > 0):
                self._add_lane()
            job = self._jobs[constraint] = Future()
            self._fresh.join(constraint, tenant)
            self._changed.notify_all()
        if displaced is not None:
            self._settle(displaced, QueueFull(MAX_WAITING, self._retry_after()))
        return job

    def _retry_after(self) -> int:
        """Mean seconds of a compilation, after which there is room for another."""
        return max(1, math.ceil(self._mean_s))

    def _add_lane(self) -> None:
        try:
            self._lanes.append(_Lane(self, self._prepared, quick=bool(self._lanes)))
        except RuntimeError as error:  # a limit on threads; one lane does the work of both
            if not self._lanes:
                raise CompilerUnavailable(f"no constraint can be compiled: {error}") from None

    # The lanes' threads.

    def next(self, quick: bool) -> Constraint | None:
        """The next constraint for a lane, which waits for it; None: the lane must end."""
        with self._lock:
            if not quick:
                self._patient_busy = False
            while not self._closed:
                if not quick and (self._slow or len(self._fresh)):
                    self._patient_busy = True
                    taken = self._begin(self._slow.popleft() if self._slow else self._fresh.take())
                    if len(self._fresh):
                        self._changed.notify_all()  # the quick lane may have looked before
                    return taken
                if quick and len(self._fresh) and self._patient_busy:
                    return self._begin(self._fresh.take())
                self._changed.wait()
        return None

    def _begin(self, constraint: Constraint) -> Constraint:
        self._compiling.add(constraint)
        return constraint

    def work(self, constraint: Constraint, process: CompileProcess, quick: bool) -> None:
        """Compile it in the child, then here, and notify the waiting requests."""
        began = time.monotonic()
        try:
            matcher = self._compile(constraint, process, QUICK_S if quick else PATIENT_S)
        except TooSlow as error:
            if quick and self._postponed(constraint):
                return
            reason = f"compiling it takes more than {PATIENT_S:g} s; simplify it"
            refusal = refused(constraint, reason)
            if error.certain and not quick:
                self._note(constraint, refusal)
            self._settle(constraint, refusal)
        except ChildKilled as error:
            self._settle(constraint, error)
        except InvalidRequest as error:
            self._note(constraint, error)
            self._settle(constraint, error)
        except CompilerUnavailable as error:
            if not self._warned:
                self._warned = True
                _log.error("%s", error)
            self._settle(constraint, error)
        except BaseException as error:  # waiting requests must not wait forever
            if not isinstance(error, EngineClosed):
                _log.exception("compiling a constraint failed")
            self._settle(constraint, error)
        else:
            self._settle(constraint, matcher)
        finally:
            self._mean_s += 0.2 * (time.monotonic() - began - self._mean_s)

    def _compile(self, constraint: Constraint, process: CompileProcess, cpu_s: float) -> LLMatcher:
        with self._lock:
            size = self._verdicts.get(_key(constraint))
        if not isinstance(size, int):
            process.start()
            self._prepared.tokenizer()  # while the child prepares its own
            size = process.try_out(constraint, cpu_s)
            self._note(constraint, size)
        matcher = compile_constraint(constraint, self._prepared.tokenizer())
        with self._lock:
            self.compiled += 1
            self._kept[constraint] = matcher, size
            while len(self._kept) > 1 and (
                len(self._kept) > MAX_KEPT
                or sum(kept[1] for kept in self._kept.values()) > MAX_KEPT_BYTES
            ):
                self._kept.popitem(last=False)
        return matcher

    def _postponed(self, constraint: Constraint) -> bool:
        with self._lock:
            if len(self._slow) >= MAX_WAITING:
                return False
            self._compiling.discard(constraint)
            self._slow.append(constraint)
            self._changed.notify_all()
        return True

    def _note(self, constraint: Constraint, verdict: int | InvalidRequest) -> None:
        if isinstance(verdict, InvalidRequest):  # without the source, which may be long
            verdict = InvalidRequest(verdict.field, shortened(verdict.value), verdict.expected)
        with self._lock:
            self._verdicts[_key(constraint)] = verdict
            if len(self._verdicts) > _MAX_VERDICTS:
                self._verdicts.popitem(last=False)

    def _settle(self, constraint: Constraint, outcome: LLMatcher | BaseException) -> None:
        with self._lock:
            job = self._jobs.pop(constraint, None)
            self._fresh.done(constraint)
            self._compiling.discard(constraint)
            self.refused += isinstance(outcome, InvalidRequest)
            self._failed.pop(_key(constraint), None)
            if isinstance(outcome, BaseException) and not isinstance(
                outcome, (EngineClosed, QueueFull)
            ):
                until = time.monotonic() + _TRY_AGAIN_S
                self._failed[_key(constraint)] = _again(outcome), until
                if len(self._failed) > _MAX_VERDICTS:
                    self._failed.popitem(last=False)
            if job is not None and not isinstance(outcome, BaseException):
                self._awaited[constraint] = job
        if job is None:
            return
        if isinstance(outcome, BaseException):
            job.set_exception(outcome)
        else:
            job.set_result(outcome)


class _Prepared:
    """The vocabulary in the compilers' form, made when first needed. For any thread."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._lock = threading.Lock()
        self._pieces: list[bytes] = []
        self._frame = b""
        self._tokenizer: LLTokenizer | None = None

    def frame(self) -> bytes:
        """The vocabulary for a child."""
        with self._lock:
            if not self._frame:
                self._pieces = self._vocab.pieces_for_llguidance()
                eos = self._vocab.eog_tokens().tolist()
                self._frame = vocabulary_frame(self._pieces, eos)
            return self._frame

    def tokenizer(self) -> LLTokenizer:
        """The vocabulary for this process."""
        self.frame()
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._vocab.for_llguidance(self._pieces)
                self._pieces = []
            return self._tokenizer


class _Lane:
    """A thread and its child."""

    def __init__(self, grammars: Grammars, prepared: _Prepared, quick: bool) -> None:
        self.process = CompileProcess(prepared.frame, COMMAND)
        name = "cllm-constraints-quick" if quick else "cllm-constraints"
        self.thread = threading.Thread(
            target=self._run, args=(grammars, quick), name=name, daemon=True
        )
        self.thread.start()

    def _run(self, grammars: Grammars, quick: bool) -> None:
        try:
            while (constraint := grammars.next(quick)) is not None:
                grammars.work(constraint, self.process, quick)
        finally:
            self.process.close()


def _outcome(job: Future[LLMatcher]) -> LLMatcher:
    """Wait for it. Ctrl-C ends the wait, but leaves no lock of the future taken."""
    running = threading.Lock()
    running.acquire()
    with Uninterrupted():
        job.add_done_callback(lambda _: running.release())
    with running:
        pass
    with Uninterrupted():
        return job.result()


def _again(error: BaseException) -> EngineError:
    """A new one that says the same: one that was raised keeps alive what it came through."""
    if isinstance(error, InvalidRequest):  # without the source, which may be long
        return InvalidRequest(error.field, shortened(error.value), error.expected)
    if isinstance(error, CompilerUnavailable):
        return CompilerUnavailable(str(error))
    if isinstance(error, EngineError):
        return EngineError(str(error))
    return EngineError(f"compiling a constraint failed: {described(error)}")


def _key(constraint: Constraint) -> bytes:
    source = constraint.source.encode("utf-8", "surrogatepass")
    return hashlib.sha256(constraint.kind.encode() + b"\0" + source).digest()
