"""The setup of logging: text lines or JSON, to standard error or a file."""

from __future__ import annotations

import json
import logging
import logging.handlers
import sys
import time
import traceback
from collections.abc import Mapping

from cllm.option_sources import SettingsError

# Attributes of every record; any other attribute was passed as `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up(level: str = "info", *, file: str | None = None, as_json: bool = False) -> None:
    """Send every logger to standard error, or to `file`; cLLM's own from `level` upwards.

    A later call replaces the earlier setup. Raises SettingsError if `file` cannot be opened.
    """
    handler: logging.Handler
    if file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        try:
            # Watched: log rotation may move the file; the next line then starts a new one.
            handler = logging.handlers.WatchedFileHandler(file, encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"--log-file: cannot write {file}: {error.strerror}") from None
    handler.setFormatter(JsonFormatter() if as_json else HumanFormatter())
    # Libraries log warnings only, or everything at the debug level.
    wanted = logging.getLevelName(level.upper())
    others = wanted if wanted == logging.DEBUG else max(wanted, logging.WARNING)
    logging.basicConfig(level=others, handlers=[handler], force=True)
    logging.getLogger("cllm").setLevel(wanted)
    # Data that the formats do not show is not collected (as the logging manual advises): every
    # request writes a line of the access log.
    logging.logThreads = False
    logging.logProcesses = False
    logging.logMultiprocessing = False
    logging._srcfile = None


class HumanFormatter(logging.Formatter):
    """`2026-01-20 12:00:00.123 INFO    cllm.http  text`, local time."""

    default_msec_format = "%s.%03d"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s  %(message)s")


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
