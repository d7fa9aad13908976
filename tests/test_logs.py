"""Log lines: the access log's batches look like any other record."""

from __future__ import annotations

import io
import json
import logging
import time
from pathlib import Path

import pytest

from cllm.http import access_log
from cllm.http.access_log import AccessLine, BatchHandler
from cllm.logs import HumanFormatter, JsonFormatter, _BatchFile, _BatchStream

LINES: list[AccessLine] = [
    (time.monotonic() + n / 7, ("192.0.2.1", n), "GET", path, 200, n, n / 3, f"id-{n}")
    for n, path in enumerate(["/", "/a b", "/ü", "/health", '/"'])
]


def record_of(line: AccessLine, epoch: float) -> logging.LogRecord:
    record = logging.makeLogRecord(
        {"name": "cllm.access", "levelno": 20, "levelname": "INFO", "msg": access_log._LINE}
    )
    record.args = access_log.fields(line)
    record.created = line[0] + epoch
    record.msecs = record.created % 1 * 1000
    return record


@pytest.mark.parametrize("formatter", [HumanFormatter(), JsonFormatter()])
def test_a_batch_looks_like_its_records(formatter: HumanFormatter | JsonFormatter) -> None:
    epoch = time.time() - time.monotonic()
    written = formatter.access_lines(LINES, epoch).splitlines()
    for line, text in zip(LINES, written, strict=True):
        expected = formatter.format(record_of(line, epoch))
        if isinstance(formatter, JsonFormatter):
            assert json.loads(text) == json.loads(expected)
        else:
            assert text == expected


def test_both_handlers_take_batches(tmp_path: Path) -> None:
    stream = io.StringIO()
    for handler in (_BatchStream(stream), _BatchFile(tmp_path / "log")):
        handler.setFormatter(HumanFormatter())
        assert isinstance(handler, BatchHandler)
        handler.write_access(LINES, 0.0)
        handler.close()
    assert stream.getvalue() == (tmp_path / "log").read_text() != ""


def test_a_file_that_was_moved_is_begun_anew(tmp_path: Path) -> None:
    file = tmp_path / "log"
    handler = _BatchFile(file)
    handler.setFormatter(HumanFormatter())
    handler.write_access(LINES[:1], 0.0)
    file.rename(tmp_path / "log.1")
    handler.write_access(LINES[1:], 0.0)
    handler.close()
    assert len(file.read_text().splitlines()) == len(LINES) - 1


def test_a_stream_that_fails_raises_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    stream.close()
    handler = _BatchStream(stream)
    handler.setFormatter(HumanFormatter())
    handler.write_access(LINES, 0.0)
    assert "ValueError" in capsys.readouterr().err
