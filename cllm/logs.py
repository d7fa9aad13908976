"""The setup of logging: text lines or JSON, to standard error or a file."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, TextIO

from cllm.option_sources import SettingsError

if TYPE_CHECKING:
    from cllm.http.access_log import AccessLine

# Attributes of every record; any other attribute was passed as `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up(level: str = "info", *, file: str | None = None, as_json: bool = False) -> None:
    """Send every logger to standard error, or to `file`; cLLM's own from `level` upwards.

    A later call replaces the earlier setup. Raises SettingsError if `file` cannot be opened.
    """
    handler: logging.Handler
    if file is None:
        handler = _BatchStream(sys.stderr)
    else:
        try:
            # Watched: log rotation may move the file; the next line then starts a new one.
            handler = _BatchFile(file, encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"--log-file: cannot write {file}: {error.strerror}") from None
    handler.setFormatter(JsonFormatter() if as_json else HumanFormatter())
    # Libraries log warnings only, or everything at the debug level.
    wanted = logging.getLevelName(level.upper())
    others = wanted if wanted == logging.DEBUG else max(wanted, logging.WARNING)
    logging.basicConfig(level=others, handlers=[handler], force=True)
    logging.getLogger("cllm").setLevel(wanted)
    # Data that the formats do not show is not collected (as the logging manual advises).
    logging.logThreads = False
    logging.logProcesses = False
    logging.logMultiprocessing = False
    logging._srcfile = None


if TYPE_CHECKING:
    _Stream = logging.StreamHandler[TextIO]
else:
    _Stream = logging.StreamHandler  # Python 3.10 has no type arguments for it


class _BatchStream(_Stream):
    """Writes the lines of the access log that have come together in one go."""

    def write_access(self, lines: Sequence[AccessLine], epoch: float) -> None:
        """See cllm.http.access_log.BatchHandler."""
        formatter = self.formatter
        assert isinstance(formatter, (HumanFormatter, JsonFormatter))
        self.acquire()
        try:
            text = formatter.access_lines(lines, epoch)
            self.stream.write(text)
            self.flush()
        except Exception:
            # As `emit` does: to standard error, if logging.raiseExceptions is set.
            self.handleError(logging.makeLogRecord({"name": "cllm.access", "msg": "(lines)"}))
        finally:
            self.release()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """As the base class; standard error may be closed, which it does not expect."""
        with suppress(Exception):
            super().handleError(record)


class _BatchFile(logging.handlers.WatchedFileHandler, _BatchStream):
    """The same for a file that log rotation may move.

    Where no new file can be opened, lines go on to the moved one, and each line tries again: an
    exception would end the thread that logs.
    """

    _told: str | None = None  # the reason that standard error got

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record; raises nothing."""
        self.reopenIfNeeded()
        if self.stream is not None:
            _BatchStream.emit(self, record)

    def write_access(self, lines: Sequence[AccessLine], epoch: float) -> None:
        """See cllm.http.access_log.BatchHandler."""
        self.acquire()
        try:
            self.reopenIfNeeded()
            if self.stream is not None:
                super().write_access(lines, epoch)
        finally:
            self.release()

    def reopenIfNeeded(self) -> None:  # noqa: N802
        """Open the file if it was moved, or closed at the end of the program; raises nothing."""
        old = self.stream
        try:
            if old is not None and self._is_in_place():
                return
            self.stream = self._open()
            self._statstream()
        except OSError as error:
            self._tell(error)
            return
        self._told = None
        if old is not None:
            with suppress(OSError, ValueError):  # such as a full disk; the descriptor is closed
                old.close()

    def _is_in_place(self) -> bool:
        try:
            found = os.stat(self.baseFilename)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == (self.dev, self.ino)

    def _tell(self, error: OSError) -> None:
        """On standard error, once for each reason."""
        reason = error.strerror or str(error)
        if reason == self._told or not logging.raiseExceptions:
            return
        self._told = reason
        with suppress(Exception):
            print(
                f"--log-file: cannot open {self.baseFilename} again: {reason}; "
                "the log goes on in the file that was moved",
                file=sys.stderr,
            )


class HumanFormatter(logging.Formatter):
    """`2026-01-20 12:00:00.123 INFO    cllm.http  text`, local time."""

    default_msec_format = "%s.%03d"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s  %(message)s")

    def access_lines(self, lines: Sequence[AccessLine], epoch: float) -> str:
        """As `format` makes them of records of the logger cllm.access."""
        from cllm.http.access_log import beginning

        text = []
        second = tick = 0
        date = stamp = ""
        for at, client, method, path, status, size, seconds, identifier in lines:
            now = int((at + epoch) * 1000)
            if now != tick:  # many lines end in the same millisecond
                tick = now
                if now // 1000 != second:
                    second = now // 1000
                    date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
                stamp = f"{date}.{now % 1000:03d} INFO    cllm.access  "
            start = beginning(client, method, path, status, size)
            text.append(f"{stamp}{start} ms={seconds * 1000:.2f} id={identifier}\n")
        return "".join(text)


class JsonFormatter(logging.Formatter):
    """One object per line: time (UTC, RFC 3339), level, logger, message, and the `extra` values.

    Named arguments, such as those of the access log, become fields of these names.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if isinstance(record.args, Mapping):
            line.update(record.args)
        for name, value in vars(record).items():
            if name not in _STANDARD:
                line[name] = value
        if record.exc_info and record.exc_info[0] is not None:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)

    def access_lines(self, lines: Sequence[AccessLine], epoch: float) -> str:
        """As `format` makes them of records of the logger cllm.access."""
        from cllm.http.access_log import LONG_PATH

        text = []
        tick = 0
        stamp = ""
        for at, client, method, path, status, size, seconds, identifier in lines:
            now = int((at + epoch) * 1000)
            if now != tick:
                tick = now
                whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 1000))
                stamp = f"{whole}.{now % 1000:03d}"
            parts = _access_parts if len(path) <= LONG_PATH else _access_parts.__wrapped__
            message, fields = parts(client, method, path, status, size)
            took = seconds * 1000
            text.append(
                f'{{"time": "{stamp}Z", "level": "info", "logger": "cllm.access", '
                f'"message": "{message} ms={took:.2f} id={identifier}", {fields}, '
                f'"ms": {round(took, 2)}, "id": "{identifier}"}}\n'
            )
        return "".join(text)


@lru_cache(1024)
def _access_parts(
    client: tuple[str, int], method: str, path: str, status: int, size: int
) -> tuple[str, str]:
    """What lines of equal requests share, as JSON: their message's beginning, their fields."""
    from cllm.http.access_log import beginning, fields

    line = (0.0, client, method, path, status, size, 0.0, "")
    shared = {name: value for name, value in fields(line).items() if name not in ("ms", "id")}
    message = json.dumps(beginning(client, method, path, status, size), ensure_ascii=False)
    return message[1:-1], json.dumps(shared, ensure_ascii=False)[1:-1]
