"""The file of keys: what it may hold, and errors that name the key, the value and the remedy."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

import pytest

from cllm.api.tenants import Tenants, Terms
from cllm.key_file import KeyFileError, key_command, read_key_file
from cllm.main import main

A, B = (sha256(name.encode()).hexdigest() for name in ("a", "b"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def test_a_key_has_what_it_sets_else_the_default(file: Path) -> None:
    file.write_text(
        f'[default]\nrequests_per_minute = 60\nconcurrent = 2\n[keys.alice]\nsha256 = "{A.upper()}"'
        "\nconcurrent = 4\nqueued = 8\nweight = 2.5\npriority = -5\nadmin = true\n"
        f'tokens_per_minute = 1000\n[keys."b.c-d_e"]\nsha256 = "{B}"\n'
    )
    ring = read_key_file(str(file))
    alice, other = ring.keys
    assert (alice.name, alice.digest) == ("alice", sha256(b"a").digest())
    assert alice.terms == Terms(60, 1000, 4, 8, 2.5, -5, True)
    assert (other.name, other.terms) == ("b.c-d_e", Terms(60, concurrent=2))
    assert ring.default == other.terms
    assert A not in repr(ring) and repr(alice.digest) not in repr(ring)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no key"),
        ("[keys.a", "not valid TOML"),
        ("a = " + 5000 * "[", "not valid TOML"),
        (f"a = {5000 * '9'}x", "not valid TOML"),
        (f"a = {5000 * '9'}", "a: there is no such field"),
        ("keys = 3", r"keys: expected a table, \[keys\]"),
        ("[keys]\na = 3", r"keys.a: expected a table, \[keys.a\]"),
        ("[key.a]", 'key: there is no such field; did you mean "keys"'),
        ("[keys.a]", "keys.a.sha256: expected the SHA-256"),
        ('[keys.a]\nsha256 = "sk-oops"', "keys.a.sha256: expected the SHA-256"),
        (f'[keys.a]\nsha256 = "{A[:-1]}g"', "keys.a.sha256: expected the SHA-256"),
        (f'[keys.a]\nsha256 = "{A}"\n[keys.b]\nsha256 = "{A.upper()}"', "is that of keys.a too"),
        (f'[keys."../x"]\nsha256 = "{A}"', "the name is not valid"),
        (f'[keys."key 1"]\nsha256 = "{A}"', "the name is not valid"),
        (f'[keys.""]\nsha256 = "{A}"', "the name is not valid"),
        ("[default]\nadmin = true", "default.admin: there is no such field"),
        ("[default]\nsha256 = 1", "default.sha256: there is no such field"),
        (f'[keys.a]\nsha256 = "{A}"\nrequest_per_minute = 1', 'mean "requests_per_minute"'),
        (f'[keys.a]\nsha256 = "{A}"\n{500 * "x"} = 1', "keys.a.x+…: there is no such field"),
        (f'[keys.a]\nsha256 = "{A}"\npriority{5000 * ".a"} = 1', "keys.a.priority: .* expected "),
        (f'[keys.a]\nsha256 = "{A}"\nqueued = 1', "queued: has no effect without concurrent"),
        *(
            (f'[keys.a]\nsha256 = "{A}"\n{field} = {value}', f"keys.a.{field}: .* expected ")
            for field, value in (
                ("requests_per_minute", "0"),
                ("requests_per_minute", "-1"),
                ("requests_per_minute", "1.5"),
                ("requests_per_minute", "true"),
                ("tokens_per_minute", '"100"'),
                ("tokens_per_minute", "10000000000000"),
                ("concurrent", "0"),
                ("weight", "0"),
                ("weight", "-1"),
                ("weight", "nan"),
                ("weight", "inf"),
                ("weight", "true"),
                ("weight", "1e9"),
                ("priority", "0.5"),
                ("priority", "1e400"),
                ("priority", "4294967296"),
                ("admin", "1"),
                ("admin", '"yes"'),
                # Numbers that Python does not compare with others, read or spell.
                ("weight", "1" + 400 * "0"),
                ("weight", "-" + 5000 * "9"),
                ("requests_per_minute", 5000 * "9"),
                ("tokens_per_minute", "1" + 5000 * "_0"),
                ("concurrent", "0x" + 5000 * "f"),
                ("queued", "0b" + 20_000 * "1"),
                ("priority", f"[1, 0x{5000 * 'f'}]"),
                ("admin", 5000 * "9"),
            )
        ),
    ],
    ids=lambda part: part[-40:],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(KeyFileError, match=words) as caught:
        read_key_file(str(file))
    assert str(caught.value).startswith((str(file), f"cannot read {file}"))
    assert len(str(caught.value)) < len(str(file)) + 300
    assert "sk-oops" not in str(caught.value), "what should be a digest may be a key"


def test_a_file_that_cannot_be_read_is_refused(file: Path) -> None:
    with pytest.raises(KeyFileError, match=r"cannot read .*No such file"):
        read_key_file(str(file))
    file.write_bytes(b"\xff")
    with pytest.raises(KeyFileError, match="not UTF-8"):
        read_key_file(str(file))


def test_a_new_key_opens_with_the_lines_that_are_printed(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["key", "new", "a.b"]) == 0
    printed = capsys.readouterr().out
    (key,) = re.findall(r"sk-cllm-[\w-]{43}", printed)
    file.write_text(printed[printed.index("[") :])
    assert key not in file.read_text()
    tenants = Tenants(ring=read_key_file(str(file)))
    found = tenants.find(sha256(key.encode()).digest())
    assert found is not None and found.name == "a.b"
    assert key_command(["new", "a.b"]) != printed


@pytest.mark.parametrize("arguments", [[], ["new"], ["old", "x"], ["new", "a b"], ["new", ""]])
def test_a_wrong_command_says_how(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == "" and ("usage: cllm key new NAME" in told.err or "expected" in told.err)
