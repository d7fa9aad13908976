"""Log lines of threads that must go on: a handler of the embedding program may fail, or exit."""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import suppress


def report(log: logging.Logger, level: int, text: str, *args: object) -> None:
    """Log the line; raises nothing. What a logging handler raises goes to standard error.

    logging catches what its own handlers raise while they write, not what filters raise or
    handlers of other kinds, which may also end the process (SystemExit) where an error is logged.
    """
    try:
        log.log(level, text, *args, stacklevel=2)
    except (Exception, SystemExit):
        _print_failure()


def report_failure(log: logging.Logger, text: str, *args: object) -> None:
    """The same at level error, with the exception that is being handled."""
    try:
        log.error(text, *args, exc_info=True, stacklevel=2)
    except (Exception, SystemExit):
        _print_failure()


def _print_failure() -> None:
    # As logging does, which has an option to be silent; the traceback names both exceptions.
    if logging.raiseExceptions and sys.stderr is not None:
        with suppress(Exception):  # it may be closed
            traceback.print_exc()
