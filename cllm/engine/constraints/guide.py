"""One request's position in its constraint: which tokens may follow, which must, the end."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cllm.engine.errors import TooIntricate

if TYPE_CHECKING:
    from llguidance import LLMatcher

_log = logging.getLogger("cllm.engine")

MAX_FORCED = 32
"""Tokens taken at once because nothing else may follow; the rest come with the next step."""


TOKEN_S = 0.005
"""Processor seconds for each token on average: its mask and its acceptance."""

BURST_S = 0.25
"""Processor seconds beyond that; a request that needs more would delay all others."""


class Guide:
    """A matcher and the mask for the next token. One thread at a time may use it."""

    __slots__ = ("_bits", "_forbidden", "_left_s", "_matcher", "_n_vocab")

    def __init__(self, matcher: LLMatcher, n_vocab: int) -> None:
        self._matcher = matcher
        self._n_vocab = n_vocab
        self._bits: NDArray[np.uint32] = np.zeros(-(-n_vocab // 32), dtype=np.uint32)
        self._forbidden: NDArray[np.bool_] | None = None
        self._left_s = BURST_S

    def forbidden(self) -> NDArray[np.bool_]:
        """Return which tokens may not follow, [n_vocab]; computed once for each token accepted.

        Raises TooIntricate.
        """
        if self._forbidden is None:
            bits = self._bits
            if self._left_s >= 0:  # else the thread of masks has found out
                began = time.thread_time()
                self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
                self._left_s -= time.thread_time() - began
            self._check()
            np.invert(bits, out=bits)
            flags = np.unpackbits(bits.view(np.uint8), count=self._n_vocab, bitorder="little")
            self._forbidden = flags.view(np.bool_)
        return self._forbidden

    def accept(self, token: int) -> None:
        """Advance by a token that was not forbidden and does not end the text.

        Raises TooIntricate.
        """
        self._forbidden = None
        began = time.thread_time()
        self._matcher.consume_token(token)
        self._charge(began, 1)

    def forced(self, room: int) -> list[int]:
        """Accept and return the tokens that must follow, if any, but at most `room`.

        Raises TooIntricate.
        """
        if self._matcher.is_stopped():
            return []
        began = time.thread_time()
        tokens = self._matcher.compute_ff_tokens()[: min(room, MAX_FORCED)]
        if tokens:
            self._forbidden = None
            self._matcher.consume_tokens(tokens)
        self._charge(began, len(tokens))
        return tokens

    @property
    def ended(self) -> bool:
        """Whether the text is complete and nothing may follow."""
        return bool(self._matcher.is_stopped())

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
