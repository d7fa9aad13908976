"""Turns a table of options into command line, environment and YAML file; declares none itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar

from cllm.option_kinds import Kind, did_you_mean, shown

ENV_PREFIX = "CLLM_"


class SettingsError(ValueError):
    """A setting cannot be used; the message names the source, the value and what was expected."""


@dataclass(frozen=True, slots=True)
class Option:
    """One setting: its field name, its group in `--help`, and how its values are parsed."""

    name: str
    group: str
    help: str
    kind: Kind
    default: Any

    @property
    def flag(self) -> str:
        """The name on the command line, `--max-body`."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The name of the environment variable, `CLLM_MAX_BODY`."""
        return ENV_PREFIX + self.name.upper()

    @property
    def shown_default(self) -> str:
        """The default as a user would write it; empty if there is none."""
        return self.kind.show(self.default)


def option(default: Any, group: str, kind: Kind, help_text: str) -> Any:
    """A dataclass field that is also an option."""
    metadata = {"group": group, "kind": kind, "help": help_text}
    return field(default=default, metadata=metadata, repr=not kind.is_secret)


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


def resolve(
    cls: type[_S],
    parser: argparse.ArgumentParser,
    argv: Sequence[str],
    environ: Mapping[str, str],
    *,
    file_option: str = "config",
    below: Sequence[str] = (),
) -> _S:
    """Settings from command line over environment over YAML file over defaults.

    below: a further command line, between environment and file.
    Raises SettingsError for the first unknown name or unusable value, in whichever source.
    """
    options = options_of(cls)
    given = from_command_line(options, parser, argv)
    surrounding = from_environment(options, environ)
    file_name = given.get(file_option, surrounding.get(file_option))
    in_file = from_file([o for o in options if o.name != file_option], file_name)
    lower = from_command_line(options, parser, below)
    return cls(**{**in_file, **lower, **surrounding, **given})


def add_arguments(
    parser: argparse.ArgumentParser, options: Sequence[Option], about: Mapping[str, str]
) -> None:
    """Add every option to its group; values stay raw strings for `from_command_line`.

    `about` has a sentence for the groups that need one.
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
                action="append" if item.kind.is_list else "store",
            )  # fmt: skip


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that raises SettingsError instead of printing usage and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise the message that argparse would print."""
        raise SettingsError(message.removeprefix("argument "))


def from_command_line(
    options: Sequence[Option], parser: argparse.ArgumentParser, argv: Sequence[str]
) -> dict[str, Any]:
    """The options that `argv` gives."""
    given, unknown = parser.parse_known_args(list(argv))
    if unknown:
        word = next((word for word in unknown if word != "--"), "--")
        if word.startswith("-"):
            word = word.split("=")[0]
            known = [s for a in parser._actions for s in a.option_strings]
            raise SettingsError(f'unknown option "{word}"{did_you_mean(word, known)}')
        raise SettingsError(f'unexpected argument "{word}"; to serve this model: --model {word}')
    by_name = {item.name: item for item in options}
    return {
        name: _read(by_name[name], raw, by_name[name].flag)
        for name, raw in vars(given).items()
        if name in by_name
    }


def from_environment(options: Sequence[Option], environ: Mapping[str, str]) -> dict[str, Any]:
    """The options that CLLM_* variables give; an empty variable counts as not set."""
    pairs = [
        (name[len(ENV_PREFIX) :].lower(), name, value)
        for name, value in sorted(environ.items())
        if name.startswith(ENV_PREFIX) and value != ""
    ]
    return _read_all(options, pairs, lambda o: o.variable)


def from_file(options: Sequence[Option], file_name: str | None) -> dict[str, Any]:
    """The options in a YAML mapping; `-` and `_` are the same in its keys."""
    if file_name is None:
        return {}
    import yaml

    class Loader(yaml.SafeLoader):
        """Gives the text of a scalar that is no value of its kind, such as the date 2020-99-99."""

        def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except (ValueError, KeyError, AttributeError, IndexError):
                if not isinstance(node, yaml.ScalarNode):
                    raise
                return node.value

    try:
        with open(file_name, encoding="utf-8") as stream:
            text = stream.read()
        content = yaml.load(text, Loader)
        node = yaml.compose(text, Loader)
    except RecursionError:
        raise SettingsError(f"--config: {file_name} is nested too deeply") from None
    except OSError as error:
        raise SettingsError(f"--config: cannot read {file_name}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        line = f" line {place.line + 1}" if place else ""
        what = getattr(error, "problem", None) or "not UTF-8 text"
        raise SettingsError(f"--config: {file_name}{line} is not valid YAML: {what}") from None
    if content is None or node is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f'--config: {file_name} must hold "name: value" lines')
    keys = [key.value for key, _ in node.value]
    for key in content:
        if keys.count(shown(key)) > 1:  # the last one is kept
            raise SettingsError(f"{file_name}: {shown(key)} is given twice")
    pairs = [
        (shown(key).replace("-", "_").lower(), f"{file_name}: {shown(key)}", value)
        for key, value in content.items()
    ]
    return _read_all(options, pairs, lambda o: o.flag[2:])


def _read_all(
    options: Sequence[Option],
    pairs: Sequence[tuple[str, str, object]],
    spelling: Callable[[Option], str],
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
            raise SettingsError(f"{source}: there is no such setting{near}")
        if item.name in values:
            raise SettingsError(f"{source}: {spelling(item)} is given twice")
        value = _read(item, raw, source)
        values[item.name] = not value if negated and value is not None else value
    return values


def _read(item: Option, raw: object, source: str) -> Any:
    try:
        return item.kind.parse(raw)
    except ValueError as error:
        got = "" if item.kind.is_secret else f'got "{shown(raw)}", '
        raise SettingsError(f"{source}: {got}{error}") from None
