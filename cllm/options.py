"""One table of options becomes command line, environment and YAML file; knows no option itself."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar

ENV_PREFIX = "CLLM_"
_ON = {"on", "true", "yes", "1"}
_OFF = {"off", "false", "no", "0"}
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class SettingsError(ValueError):
    """A setting cannot be used; the message names source, value and what was expected."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How one sort of value is read and shown.

    `parse` takes a string (command line, environment) or a YAML scalar or list, and raises
    ValueError whose text says what was expected.
    """

    metavar: str
    parse: Callable[[object], Any]
    show: Callable[[Any], str] = str
    choices: tuple[str, ...] = ()
    is_flag: bool = False


@dataclass(frozen=True, slots=True)
class Option:
    """One setting: its field name, where `--help` lists it, and how its values are read."""

    name: str
    group: str
    help: str
    kind: Kind
    default: Any

    @property
    def flag(self) -> str:
        """The command line's spelling, `--max-body`."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment's spelling, `CLLM_MAX_BODY`."""
        return ENV_PREFIX + self.name.upper()

    @property
    def shown_default(self) -> str:
        """The default as a user would write it; empty where there is none."""
        return self.kind.show(self.default)


def option(default: Any, group: str, kind: Kind, help_text: str) -> Any:
    """A dataclass field that is also an option."""
    return field(default=default, metadata={"group": group, "kind": kind, "help": help_text})


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


_S = TypeVar("_S", bound=_Dataclass)


def options_of(cls: type[_Dataclass]) -> list[Option]:
    """The options of a settings dataclass, in the order of its fields."""
    found = []
    for item in fields(cls):
        assert item.default is not MISSING, f"option {item.name} has no default"
        meta = item.metadata
        found.append(Option(item.name, meta["group"], meta["help"], meta["kind"], item.default))
    return found


# Kinds of values


def text(metavar: str = "TEXT") -> Kind:
    """Any non-empty text."""

    def parse(raw: object) -> str:
        if not isinstance(raw, (str, int, float)) or isinstance(raw, bool) or not str(raw).strip():
            raise ValueError("expected text")
        return str(raw)

    return Kind(metavar, parse, lambda value: "" if value is None else str(value))


def path(metavar: str = "FILE") -> Kind:
    """A file name; `~` is the home directory."""
    plain = text(metavar)
    return Kind(metavar, lambda raw: os.path.expanduser(plain.parse(raw)), plain.show)


def integer(low: int, high: int | None = None, *, auto: bool = False) -> Kind:
    """A whole number from `low` to `high`; `auto` admits the word for None."""

    def convert(raw: object) -> int:
        if isinstance(raw, str):
            return int(raw)
        if isinstance(raw, int) and not isinstance(raw, bool):
            return raw
        raise ValueError

    return _number("N", convert, low, high, "a whole number", str, auto)


def seconds(low: float, high: float | None = None) -> Kind:
    """A duration in seconds."""

    def convert(raw: object) -> float:
        if isinstance(raw, bool) or not isinstance(raw, (str, int, float)):
            raise ValueError
        return float(raw)

    return _number("SECONDS", convert, low, high, "seconds, a number", lambda v: f"{v:g}", False)


def size(low: int, high: int | None = None, *, auto: bool = False) -> Kind:
    """A number of bytes: `65536`, `64K`, `16M`, `2G` (powers of 1024)."""

    def convert(raw: object) -> int:
        if isinstance(raw, int) and not isinstance(raw, bool):
            return raw
        if not isinstance(raw, str):
            raise ValueError
        word = raw.strip().lower()
        for tail in ("ib", "b"):
            word = word.removesuffix(tail)
        number = word.rstrip("kmgt")
        unit = _UNITS[word[len(number) :]]
        return int(float(number) * unit)

    return _number(
        "BYTES", convert, low, high, "a size like 65536, 64K, 16M or 2G", show_size, auto
    )


def show_size(value: int) -> str:
    """Bytes in the largest unit that divides them: 16777216 is `16M`."""
    for letter in ("t", "g", "m", "k"):
        unit = _UNITS[letter]
        if value and value % unit == 0:
            return f"{value // unit}{letter.upper()}"
    return str(value)


def _number(
    metavar: str,
    convert: Callable[[object], Any],
    low: float,
    high: float | None,
    what: str,
    show: Callable[[Any], str],
    auto: bool,
) -> Kind:
    bounds = f"of at least {show(low)}" if high is None else f"from {show(low)} to {show(high)}"
    expected = f"expected {what} {bounds}" + (", or auto" if auto else "")

    def parse(raw: object) -> Any:
        if auto and (raw is None or raw == "auto"):
            return None
        try:
            value = convert(raw)
        except (ValueError, KeyError, OverflowError):
            raise ValueError(expected) from None
        if not low <= value <= (high if high is not None else float("inf")):
            raise ValueError(expected)
        return value

    return Kind(metavar, parse, lambda value: "auto" if value is None else show(value))


def choice(*names: str) -> Kind:
    """One of several words. YAML reads bare on/off as true/false, so those are taken as words."""

    def parse(raw: object) -> str:
        word = ("on" if raw else "off") if isinstance(raw, bool) else raw
        if isinstance(word, str) and word.lower() in names:
            return word.lower()
        raise ValueError(f"expected one of {', '.join(names)}{did_you_mean(word, names)}")

    return Kind("|".join(names) if len(names) <= 4 else "NAME", parse, choices=names)


def switch() -> Kind:
    """On or off; `--name` and `--no-name` on the command line."""

    def parse(raw: object) -> bool:
        if isinstance(raw, bool):
            return raw
        word = str(raw).strip().lower()
        if word not in _ON | _OFF:
            raise ValueError("expected on or off")
        return word in _ON

    return Kind("", parse, lambda value: "on" if value else "off", is_flag=True)


def names() -> Kind:
    """A list of words: separated by commas, or a YAML list."""

    def parse(raw: object) -> tuple[str, ...]:
        items = raw if isinstance(raw, list) else str(raw).split(",")
        if not all(isinstance(item, str) for item in items):
            raise ValueError("expected a list of words")
        return tuple(item.strip() for item in items if item.strip())

    return Kind("A,B,…", parse, ",".join)


# Sources, weakest last in `resolve`


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """`; did you mean "port"?`, or nothing when no known word is near."""
    import difflib

    near = difflib.get_close_matches(str(word).lower(), list(known), n=1, cutoff=0.5)
    return f'; did you mean "{near[0]}"?' if near else ""


def resolve(
    cls: type[_S],
    parser: argparse.ArgumentParser,
    argv: Sequence[str],
    environ: Mapping[str, str],
    *,
    file_option: str = "config",
) -> _S:
    """Settings from command line over environment over YAML file over defaults.

    Raises SettingsError for the first unknown name or unusable value, in whichever source.
    """
    options = options_of(cls)
    given = from_command_line(options, parser, argv)
    surrounding = from_environment(options, environ)
    file_name = given.get(file_option, surrounding.get(file_option))
    in_file = from_file([o for o in options if o.name != file_option], file_name)
    return cls(**{**in_file, **surrounding, **given})


def add_arguments(
    parser: argparse.ArgumentParser, options: Sequence[Option], about: Mapping[str, str]
) -> None:
    """Every option in its group; values stay raw strings, `from_command_line` reads them.

    `about` holds a sentence for the groups that need one.
    """
    groups: dict[str, Any] = {}
    for item in options:
        group = groups.get(item.group)
        if group is None:
            group = groups[item.group] = parser.add_argument_group(
                item.group, about.get(item.group)
            )
        default = f"={item.shown_default}" if item.shown_default else ""
        help_text = f"{item.help} [{item.variable}{default}]".replace("%", "%%")
        if item.kind.is_flag:
            group.add_argument(
                item.flag, help=help_text, dest=item.name,
                default=argparse.SUPPRESS, action=argparse.BooleanOptionalAction,
            )  # fmt: skip
        else:
            group.add_argument(
                item.flag, help=help_text, dest=item.name,
                default=argparse.SUPPRESS, metavar=item.kind.metavar,
            )  # fmt: skip


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaints are SettingsError instead of usage and exit."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would have printed."""
        raise SettingsError(message.removeprefix("argument "))


def from_command_line(
    options: Sequence[Option], parser: argparse.ArgumentParser, argv: Sequence[str]
) -> dict[str, Any]:
    """The options that `argv` gives."""
    given, unknown = parser.parse_known_args(list(argv))
    if unknown:
        word = unknown[0].split("=")[0]
        if word.startswith("-"):
            known = [s for a in parser._actions for s in a.option_strings]
            raise SettingsError(f'unknown option "{word}"{did_you_mean(word, known)}')
        raise SettingsError(f'unexpected argument "{word}"; to serve that model: --model {word}')
    by_name = {item.name: item for item in options}
    return {
        name: _read(by_name[name], raw, by_name[name].flag)
        for name, raw in vars(given).items()
        if name in by_name
    }


def from_environment(options: Sequence[Option], environ: Mapping[str, str]) -> dict[str, Any]:
    """The options that CLLM_* variables give; an empty variable counts as not set."""
    pairs = [
        (name[len(ENV_PREFIX) :].lower(), f"environment variable {name}", value)
        for name, value in sorted(environ.items())
        if name.startswith(ENV_PREFIX) and value != ""
    ]
    return _read_all(options, pairs, lambda o: o.variable, "unknown ")


def from_file(options: Sequence[Option], file_name: str | None) -> dict[str, Any]:
    """The options in a YAML mapping; `-` and `_` are the same in its keys."""
    if file_name is None:
        return {}
    import yaml

    try:
        with open(file_name, encoding="utf-8") as stream:
            content = yaml.safe_load(stream)
    except OSError as error:
        raise SettingsError(f"--config: cannot read {file_name}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        line = f" line {place.line + 1}" if place else ""
        what = getattr(error, "problem", None) or "not UTF-8 text"
        raise SettingsError(f"--config: {file_name}{line} is not valid YAML: {what}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f'--config: {file_name} must hold "name: value" lines')
    pairs = [
        (str(key).replace("-", "_").lower(), f"{file_name}: {key}", value)
        for key, value in content.items()
    ]
    return _read_all(options, pairs, lambda o: o.flag[2:], "unknown key ")


def _read_all(
    options: Sequence[Option],
    pairs: Sequence[tuple[str, str, object]],
    spelling: Callable[[Option], str],
    unknown: str,
) -> dict[str, Any]:
    """Read (name, source, value) triples; `no_x` turns the switch `x` off, as `--no-x` does."""
    by_name = {item.name: item for item in options}
    values: dict[str, Any] = {}
    for name, source, raw in pairs:
        positive = name.removeprefix("no_")
        negated = name not in by_name and positive in by_name and by_name[positive].kind.is_flag
        item = by_name.get(positive if negated else name)
        if item is None:
            known = {o.name: spelling(o) for o in options}
            near = did_you_mean(name, known)
            for plain, spelled in known.items():
                near = near.replace(f'"{plain}"', f'"{spelled}"')
            raise SettingsError(f"{unknown}{source}{near}")
        if item.name in values:
            raise SettingsError(f"{source}: {spelling(item)} is given twice")
        value = _read(item, raw, source)
        values[item.name] = not value if negated else value
    return values


def _read(item: Option, raw: object, source: str) -> Any:
    try:
        return item.kind.parse(raw)
    except ValueError as error:
        raise SettingsError(f'{source}: got "{raw}", {error}') from None
