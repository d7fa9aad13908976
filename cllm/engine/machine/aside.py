"""Computing on a thread that ends with it.

GNU OpenMP keeps a pool for every thread that has ever computed. With a second pool next to the
engine thread's it treats the cores as oversubscribed and no longer spins between operations
(83 tokens/s instead of 98: 0.6B model, 8 sequences, two cores). So the loading thread computes
nothing itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from cllm.engine.machine.uninterrupted import Uninterrupted

_T = TypeVar("_T")


def compute_aside(
    name: str, work: Callable[[], _T], give_up: Callable[[], object] = lambda: None
) -> _T:
    """Run work() on a thread called `name`; return or raise its result.

    An exception raised here meanwhile, such as KeyboardInterrupt, calls `give_up` and propagates
    only when `work` has ended: its resources may be freed then.
    """
    results: list[_T] = []
    errors: list[BaseException] = []
    running = threading.Lock()  # no Future: Ctrl-C may leave its lock taken
    running.acquire()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            running.release()

    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        with Uninterrupted():
            thread.start()
        with running:
            pass
        thread.join()
    except BaseException:
        if thread.ident is not None:
            with Uninterrupted():
                give_up()
            _wait(running)
        raise
    if errors:
        raise errors.pop()
    return results.pop()


def _wait(running: threading.Lock) -> None:
    """Wait until it is free. Not by join(), which considers a thread ended once the call
    has been interrupted (Python 3.11, bpo-45274)."""
    while True:
        try:
            with running:
                return
        except KeyboardInterrupt:
            continue  # already requested
