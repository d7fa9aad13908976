"""Computing on a thread that ends with it.

GNU OpenMP keeps a pool for every thread that has ever computed. With a second pool next to the
engine thread's it treats the cores as oversubscribed and no longer spins between operations
(83 tokens/s instead of 98: 0.6B model, 8 sequences, two cores). So the loading thread computes
nothing itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

_T = TypeVar("_T")


def compute_aside(
    name: str, work: Callable[[], _T], give_up: Callable[[], object] = lambda: None
) -> _T:
    """Run work() on a thread called `name`; return or raise its result.

    An exception raised here meanwhile, such as KeyboardInterrupt, calls `give_up` and propagates
    only when `work` has ended: its resources may be freed then.
    """
    future: Future[_T] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
        result = future.result()
        thread.join()
        return result
    except BaseException:
        give_up()
        _end(future)
        raise


def _end(future: Future[_T]) -> None:
    """Wait until it is not running. Not by join(), which considers a thread ended once the call
    has been interrupted (Python 3.11, bpo-45274)."""
    while not (future.cancel() or future.done()):
        try:
            wait([future])
        except KeyboardInterrupt:
            continue  # already requested
