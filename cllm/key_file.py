"""The file of --api-keys-file: keys with their limits, and the command that makes a key."""

from __future__ import annotations

import re
import secrets
import sys
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cllm.option_kinds import did_you_mean, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cllm.api.tenants import KeyRing, Terms

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_LONG = re.compile(r"([0-9_]{200})[0-9_]+")  # not a digest
_MOST = 10**12
_MOST_WEIGHT = 1000.0

HOW = "usage: cllm key new NAME"


class KeyFileError(ValueError):
    """The file cannot be used; the message names the key, the value and what was expected."""


def read_key_file(path: str) -> KeyRing:
    """Read and check a file. Raises KeyFileError."""
    try:
        content = _parsed(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise KeyFileError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise KeyFileError(f"{path} is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise KeyFileError(f"{path} is not valid TOML: {error}") from None
    try:
        return _ring(content)
    except KeyFileError as error:
        raise KeyFileError(f"{path}: {error}") from None


def _parsed(text: str) -> Mapping[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:
        # Python reads no number of thousands of digits. The beginning of one is out of every bound
        # too, so that it is refused by its name.
        return tomllib.loads(_LONG.sub(lambda found: found[1].rstrip("_"), text))


def _ring(content: Mapping[str, Any]) -> KeyRing:
    from cllm.api.tenants import Key, KeyRing

    _check_names("", content, ("default", "keys"))
    given = _table("default", content.get("default", {}))
    _check_names("default", given, [name for name in _FIELDS if name != "admin"])
    default = _terms("default", given, {})
    keys: list[Key] = []
    names: dict[bytes, str] = {}
    for name, value in _table("keys", content.get("keys", {})).items():
        where = f"keys.{name}"
        if not _NAME.fullmatch(name):
            raise KeyFileError(
                f'keys."{name[:80]}": the name is not valid; expected up to 64 letters, digits, '
                '".", "_" and "-", the first a letter or digit'
            )
        fields = dict(_table(where, value))
        _check_names(where, fields, ("sha256", *_FIELDS))
        digest = fields.pop("sha256", None)
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            # Never the value itself: it may be a key.
            raise KeyFileError(
                f"{where}.sha256: expected the SHA-256 of the key in 64 hexadecimal digits, as "
                '"cllm key new" prints it'
            )
        key = bytes.fromhex(digest)
        if key in names:
            raise KeyFileError(
                f"{where}.sha256: is that of keys.{names[key]} too; give each its own"
            )
        names[key] = name
        keys.append(Key(name, key, _terms(where, fields, given)))
    if not keys:
        raise KeyFileError('holds no key; add one with "cllm key new NAME"')
    return KeyRing(tuple(keys), default)


def _table(where: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise KeyFileError(f"{where}: expected a table, [{where}]")
    return value


def _check_names(where: str, given: Mapping[str, Any], known: Any) -> None:
    for name in given:
        if name not in known:
            place = f"{where}.{shown(name)}" if where else shown(name)
            raise KeyFileError(f"{place}: there is no such field{did_you_mean(name, known)}")


def _terms(where: str, given: Mapping[str, Any], default: Mapping[str, Any]) -> Terms:
    from cllm.api.tenants import Terms

    values = {**default, **given}
    for name, value in given.items():
        check, expected = _FIELDS[name]
        if not check(value):
            raise KeyFileError(
                f"{where}.{name}: {shown(value, repr)} is not valid; expected {expected}"
            )
    if "queued" in values and "concurrent" not in values:
        raise KeyFileError(f"{where}.queued: has no effect without concurrent; give both")
    return Terms(**values)


def _integer(low: int, high: int) -> Callable[[object], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _is_weight(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return 1 / _MOST_WEIGHT <= value <= _MOST_WEIGHT  # compares whole numbers of any size


_COUNT = _integer(1, _MOST), f"a whole number from 1 to {_MOST}"
# Field: whether a value is valid, and what is expected.
_FIELDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "requests_per_minute": _COUNT,
    "tokens_per_minute": _COUNT,
    "concurrent": _COUNT,
    "queued": (_integer(0, _MOST), f"a whole number from 0 to {_MOST}"),
    "weight": (_is_weight, f"a number from {1 / _MOST_WEIGHT:g} to {_MOST_WEIGHT:g}"),
    "priority": (_integer(-(2**31) + 1, 2**31 - 1), "a whole number; the lowest is most urgent"),
    "admin": (lambda value: isinstance(value, bool), "true or false"),
}


def key_command(arguments: Sequence[str]) -> str:
    """`cllm key new NAME`: what it prints. Raises KeyFileError."""
    if len(arguments) != 2 or arguments[0] != "new":
        raise KeyFileError(HOW)
    name = arguments[1]
    if not _NAME.fullmatch(name):
        raise KeyFileError(
            f'the name "{name[:80]}" is not valid; expected up to 64 letters, digits, ".", "_" and '
            '"-", the first a letter or digit'
        )
    key = "sk-cllm-" + secrets.token_urlsafe(32)
    # Quoted: a bare name with a "." would be two names.
    return (
        f"The key of {name}. It is not stored and not shown again:\n\n    {key}\n\n"
        "For the file of --api-keys-file; then send SIGHUP to a server that runs:\n\n"
        f'[keys."{name}"]\nsha256 = "{sha256(key.encode()).hexdigest()}"'
    )
