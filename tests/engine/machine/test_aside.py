"""Work on a thread of its own: its outcome is returned, and the caller waits for its end."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from cllm.engine.machine.aside import compute_aside
from tests.engine.engine_helpers import WAIT


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_the_result_comes_back_from_a_thread_that_has_ended() -> None:
    thread = compute_aside("named", threading.current_thread)
    assert thread.name == "named"
    assert not thread.is_alive()


def test_an_error_comes_back_too() -> None:
    with pytest.raises(ZeroDivisionError):
        compute_aside("named", lambda: 1 // 0)


@pytest.mark.usefixtures("ctrl_c")
def test_however_often_ctrl_c_is_pressed_it_comes_out_when_the_work_has_ended() -> None:
    told, ended = threading.Event(), []

    def work() -> None:
        interrupt()
        assert told.wait(WAIT)
        for _ in range(3):
            interrupt()
            os.sched_yield()
        ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        compute_aside("named", work, told.set)
    assert ended == [True]
