"""The command `cllm`: from the first signal to the exit status.

A signal can come at any moment, so what takes long to import comes after `watch_signals`.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING

from cllm.messages import Message, StopSignal

if TYPE_CHECKING:
    from types import FrameType

_STANDARD_ERROR = 2
_PARTING = 0.2  # seconds for threads to end after their last message


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal requests a stop; returns the exit status."""
    hold_standard_streams()
    # A SimpleQueue, not an Event: its put() may be called in a signal handler.
    mailbox: SimpleQueue[Message] = SimpleQueue()
    watch_signals(mailbox)
    return run(sys.argv[1:] if argv is None else list(argv), mailbox)


def run(arguments: list[str], mailbox: SimpleQueue[Message]) -> int:
    """Do what the command line asks for; returns the exit status."""
    from cllm import logs
    from cllm.option_table import SettingsError, load_settings
    from cllm.program import Program, refuse

    if arguments[:1] == ["key"]:
        return key(arguments[1:])
    try:
        settings = load_settings(arguments, os.environ)
        logs.set_up(settings.log_level, file=settings.log_file, as_json=settings.log_json)
        status = Program(settings, mailbox).run()
    except SettingsError as error:
        status = refuse(str(error))
    return leave(status)


def hold_standard_streams() -> None:
    """Open those of 0, 1, 2 that are closed on /dev/null, and let none fail on a character.

    A socket with such a number would otherwise receive printed output.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - open to the end
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # as standard error is by default
        sys.stdout.reconfigure(errors="backslashreplace")


def watch_signals(mailbox: SimpleQueue[Message]) -> None:
    """The first SIGINT or SIGTERM becomes a message; a second one ends the process at once.

    SIGHUP waits until the program knows what it means.
    """
    received: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            os._exit(128 + number)
        mailbox.put(StopSignal(number))

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP,))


def key(arguments: Sequence[str]) -> int:
    """`cllm key new NAME`."""
    from cllm.key_file import KeyFileError, key_command
    from cllm.program import OK, refuse

    try:
        print(key_command(arguments))
    except KeyFileError as error:
        return refuse(str(error))
    return OK


def leave(status: int) -> int:
    """Return the exit status; exit here if a thread would keep the interpreter from ending."""
    others = [t for t in threading.enumerate() if t is not threading.main_thread()]
    limit = monotonic() + _PARTING
    for thread in others:
        thread.join(max(limit - monotonic(), 0.0))
    if any(thread.is_alive() for thread in others):
        # Such as a loader inside llama.cpp, or a handler that blocks: only this ends them.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
