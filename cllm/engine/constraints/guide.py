"""One request's position in its constraint: which tokens may follow, which must, the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cllm.engine.errors import InvalidRequest, TooIntricate

if TYPE_CHECKING:
    from llguidance import LLMatcher

_log = logging.getLogger("cllm.engine")

MAX_FORCED = 32
"""Tokens taken at once because nothing else may follow; the rest come with the next step."""

_FEW = 8  # up to this part of the vocabulary is forbidden by number, more by flags: what is faster

TOKEN_S = 0.005
"""Processor seconds for each token on average: its mask and its acceptance."""

BURST_S = 0.25
"""Processor seconds beyond that; a request that needs more would delay all others."""


class Guide:
    """A matcher and the mask for the next token. One thread at a time may use it."""

    __slots__ = (
        "_address", "_bits", "_ended", "_few", "_flags", "_forbidden", "_known", "_later",
        "_left_s", "_matcher", "_n_vocab",
    )  # fmt: skip

    def __init__(self, matcher: LLMatcher, n_vocab: int) -> None:
        self._matcher = matcher
        self._n_vocab = n_vocab
        self._bits: NDArray[np.uint32] = np.zeros(-(-n_vocab // 32), dtype=np.uint32)
        self._address = self._bits.ctypes.data
        # Of the mask computed last, which free text has again and again: its bits, the forbidden
        # tokens as flags, and their numbers if they are few.
        self._known = b""
        self._flags: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
        self._few: NDArray[np.intp] | None = None
        self._later: int | None = None  # a token to accept before the next mask is computed
        self._forbidden: NDArray[np.bool_] | None = None
        self._ended = False  # whether nothing may follow, as of `_forbidden`
        self._left_s = BURST_S

    def forbidden(self) -> NDArray[np.bool_]:
        """Return which tokens may not follow, [n_vocab]; computed once for each token accepted.

        Raises TooIntricate.
        """
        if self._forbidden is None:
            bits = self._bits
            if self._left_s >= 0:  # else the thread of masks has found out
                began, accepted = time.thread_time(), self._catch_up()
                self._matcher.unsafe_compute_mask_ptr(self._address, bits.nbytes)
                self._charge(began, accepted)
            self._check()
            self._ended = bool(self._matcher.is_stopped())
            if (found := bits.tobytes()) != self._known:
                self._known = found
                self._expand()
            self._forbidden = self._flags
        return self._forbidden

    def _expand(self) -> None:
        """Set `_flags` and `_few` from the bits of the allowed tokens."""
        forbidden = np.invert(self._bits).view(np.uint8)
        flags = np.unpackbits(forbidden, count=self._n_vocab, bitorder="little").view(np.bool_)
        self._flags = flags
        few = np.count_nonzero(flags) * _FEW <= self._n_vocab
        self._few = flags.nonzero()[0] if few else None

    @property
    def ready(self) -> bool:
        """Whether the mask is computed and a token may follow; then exclude() raises nothing."""
        return self._forbidden is not None and not self._ended

    @property
    def forbids_few(self) -> bool:
        """Whether few tokens are forbidden, if ready; allows() is then faster than exclude()."""
        return self._few is not None

    def allows(self, positions: Iterable[int], first: int) -> bool:
        """Whether none of some tokens is forbidden, if ready. positions: theirs, of a row's logits.

        first: that of the row's first logit.
        """
        bits = self._known
        for position in positions:
            token = position - first
            if not bits[token >> 3] >> (token & 7) & 1:
                return False
        return True

    def exclude(self, row: NDArray[np.float32]) -> None:
        """Set the logits of forbidden tokens to -infinity. Raises TooIntricate."""
        forbidden, few = self.forbidden(), self._few
        if few is None:
            np.copyto(row, -np.inf, where=forbidden)
        elif len(few):
            row[few] = -np.inf

    def check(self, token: int) -> None:
        """Raise InvalidRequest for a forbidden token, which was chosen because none was left."""
        if self.forbidden()[token]:
            left = "at least one token that both the constraint and logit_bias allow"
            raise InvalidRequest("logit_bias", "forbidding these tokens", left)

    def accept(self, token: int, room: int = 0, prose: bool = False) -> list[int]:
        """Advance by a token that was not forbidden and does not end the text.

        Also accepts, and returns, the tokens that must follow it, but at most `room`. prose: its
        text is that of sentences, after which nothing must follow where most tokens were allowed.
        Then it is accepted with the next mask, while llama_decode runs; what must follow after all
        comes one step later. Raises TooIntricate.
        """
        free = self._forbidden is not None and self._few is not None
        self._forbidden = None
        if prose and free:
            self._later = token
            return []
        began, matcher = time.thread_time(), self._matcher
        self._catch_up()
        matcher.consume_token(token)
        forced: list[int] = []
        if room > 0 and not matcher.is_stopped():
            forced = matcher.compute_ff_tokens()[: min(room, MAX_FORCED)]
            if forced:
                matcher.consume_tokens(forced)
        self._charge(began, 1 + len(forced))
        return forced

    def complete(self) -> bool:
        """Whether the text is complete and nothing may follow. Raises TooIntricate."""
        if self._forbidden is not None:
            return self._ended
        if self._later is not None:
            self.forbidden()  # accepts it
        self._check()
        return self.ended

    @property
    def ended(self) -> bool:
        """Whether the text is complete and nothing may follow, as far as tokens are accepted."""
        return self._later is None and bool(self._matcher.is_stopped())

    def _catch_up(self) -> int:
        """Accept the token that was left for later; how many those are."""
        token, self._later = self._later, None
        if token is None:
            return 0
        self._matcher.consume_token(token)
        return 1

    def _charge(self, began: float, tokens: int) -> None:
        """Account for the time since `began` and for tokens accepted."""
        spent = time.thread_time() - began
        self._left_s = min(self._left_s - spent + tokens * TOKEN_S, BURST_S)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().split("\n", 1)[0]
            raise TooIntricate(reason)
        if self._left_s < 0:
            raise TooIntricate(f"it takes more than {TOKEN_S * 1000:g} ms a token")


class MaskThread:
    """Computes masks while llama_decode runs. Owned and used by the engine thread alone."""

    def __init__(self) -> None:
        self._todo: SimpleQueue[list[Guide] | None] = SimpleQueue()
        self._done: SimpleQueue[None] = SimpleQueue()
        self._thread: Thread | None = None
        self._busy = False
        self._warned = False

    def start(self, guides: list[Guide]) -> None:
        """Begin; no other thread may use these guides until wait() has returned."""
        self.wait()  # a failed step may have skipped it
        if not guides:
            return
        if self._thread is None:
            thread = Thread(target=self._run, name="cllm-masks", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # a limit on threads; masks are then computed on demand
                if not self._warned:
                    self._warned = True
                    _log.warning(
                        "constraint masks are computed between steps, which is slower: %s", error
                    )
                return
            self._thread = thread
        self._busy = True
        self._todo.put(guides)

    def wait(self) -> None:
        """Return when the work begun is done."""
        if self._busy:
            self._done.get()
            self._busy = False

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._todo.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (guides := self._todo.get()) is not None:
            for guide in guides:
                # Any error is raised again where the request can be ended; here it would end the
                # thread for which the engine waits.
                with suppress(BaseException):
                    guide.forbidden()
            self._done.put(None)
