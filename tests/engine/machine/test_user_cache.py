"""Where files are kept between runs: chosen safely, replaced whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cllm.engine.machine.user_cache import replacing, user_cache


def test_without_a_home_to_write_to_it_is_in_the_temporary_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "a file"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = user_cache()
    assert path.is_dir()
    assert tmp_path in path.parents
    assert user_cache() == path


def test_a_temporary_directory_that_others_prepared_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"cllm-{os.getuid()}").mkdir()
    (tmp_path / f"cllm-{os.getuid()}").chmod(0o777)
    assert user_cache() != tmp_path / f"cllm-{os.getuid()}"


def test_a_relative_cache_directory_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache() == tmp_path / ".cache" / "cllm"


def test_a_file_that_fails_half_way_is_never_seen(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), replacing(path) as part:
        part.write_text("half of the n")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
