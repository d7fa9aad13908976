"""Log lines: the access log's batches look like any other record."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import time
from collections.abc import Iterator
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


class Files:
    """A handler of a file in a folder that the test may take away."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder, self.away = tmp_path / "logs", tmp_path / "away"
        self.folder.mkdir()
        self.file = self.folder / "log"
        self.handler = _BatchFile(self.file, encoding="utf-8")
        self.handler.setFormatter(HumanFormatter())
        self.written = 0

    def write(self, way: str) -> str:
        """One line as a record or as a batch; gives a part of it that no other line has."""
        self.written += 1
        mark = f"/line-{self.written}"
        line = (0.0, ("192.0.2.1", 7), "GET", mark, 200, 0, 0.0, "-")
        if way == "batch":
            self.handler.write_access([line], 0.0)
        else:
            self.handler.handle(record_of(line, 0.0))
        return f"path={mark} "


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    files = Files(tmp_path)
    yield files
    files.handler.close()


WAYS = pytest.mark.parametrize("way", ["record", "batch"])


@WAYS
@pytest.mark.parametrize("instead", ["nothing", "a file"])
def test_a_file_that_cannot_be_begun_anew_is_tried_again(
    files: Files, way: str, instead: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = files.write(way)
    files.folder.rename(files.away)
    if instead == "a file":
        files.folder.touch()
    meanwhile = [files.write(way) for _ in range(3)]
    told = capsys.readouterr().err
    assert told.count(str(files.file)) == 1, "once, not for each line"
    assert told.count("\n") == 1
    if instead == "a file":
        files.folder.unlink()
    files.folder.mkdir()
    last = files.write(way)
    old, new = (files.away / "log").read_text(), files.file.read_text()
    assert [mark in old for mark in (first, *meanwhile, last)] == [True] * 4 + [False]
    assert last in new and new.count("\n") == 1
    files.folder.rename(files.away / "again")
    files.write(way)
    assert str(files.file) in capsys.readouterr().err, "a new failure is told again"


@WAYS
def test_a_failure_of_another_kind_is_told_too(
    files: Files, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files.folder.rename(files.away)
    files.write(way)
    files.folder.touch()
    files.write(way)
    first, second = capsys.readouterr().err.splitlines()
    assert os.strerror(errno.ENOENT) in first
    assert os.strerror(errno.ENOTDIR) in second


@WAYS
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is full")
def test_a_full_disk_does_not_keep_the_file_from_being_begun_anew(files: Files, way: str) -> None:
    files.file.unlink()
    files.file.symlink_to("/dev/full")
    files.write(way)  # what cannot be written stays in the stream, which then cannot be closed
    files.file.unlink()
    assert files.write(way) in files.file.read_text()


@WAYS
def test_a_handler_that_was_closed_opens_its_file_again(files: Files, way: str) -> None:
    files.handler.close()
    assert files.write(way) in files.file.read_text()


@WAYS
def test_a_failure_that_cannot_be_told_raises_nothing(
    files: Files, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write(way)
    files.folder.rename(files.away)
    closed = io.StringIO()
    closed.close()
    for stream in (closed, None):
        monkeypatch.setattr("sys.stderr", stream)
        assert files.write(way) in (files.away / "log").read_text()
        files.handler.close()
        files.write(way)  # it cannot be opened
        files.away.rename(files.folder)
        assert files.write(way) in files.file.read_text()
        files.folder.rename(files.away)


def test_a_failure_to_write_that_cannot_be_told_raises_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr("sys.stderr", stream)
    handler = _BatchStream(stream)
    handler.setFormatter(HumanFormatter())
    handler.write_access(LINES, 0.0)
    handler.handle(record_of(LINES[0], 0.0))
