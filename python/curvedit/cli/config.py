"""YAML files as defaults of a verb's flags.

``--batch-size 8`` is the key ``batch_size: 8``; ``--no-progress`` is ``progress: false``; a flag
with several values takes a list. A null leaves the flag alone. Flags on the command line win over
the file. A file is checked whole, against the flags' own types and choices, before anything runs.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from curvedit.cli.verb import Options
from curvedit.cli.yaml_files import ConfigError
from curvedit.files import write_whole

_NOT_RECORDED = ("config", "traceback", "json")
_NOT_IN_FILES = ("help", "config")


def set_defaults(
    parser: argparse.ArgumentParser, verb: str, content: Any, source: str
) -> dict[str, Any]:
    """Make a file's content the defaults of a verb's parser.

    A flag that the file gives is no longer required on the command line.

    Args:
        parser: The verb's parser; it is changed.
        verb: The verb's name, which the file may repeat.
        content: What the file holds.
        source: How messages name it.

    Returns:
        The flags that were given, by key, with their converted values.

    Raises:
        ConfigError: an unknown key, a wrong type, a value outside the choices, two flags that
            exclude each other, or a file of another verb.
    """
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: expected keys and values, got {type(content).__name__}")
    flags = {action.dest: action for action in parser._actions if action.dest not in _NOT_IN_FILES}
    settings: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name == "verb":
            if value != verb:
                raise ConfigError(f"{source}: verb: expected {verb!r}, got {_shown(value)}")
        elif name not in flags:
            raise ConfigError(f"{source}: expected keys among {sorted(flags)}, got {_shown(key)}")
        elif value is not None:
            settings[name] = _checked(flags[name], value, f"{source}: {name}")
            flags[name].required = False
    for group in parser._mutually_exclusive_groups:
        names = _names(group)
        given = [name for name in names if name in settings]
        if len(given) > 1:
            raise ConfigError(f"{source}: expected only one of {names}, got {given}")
        group.required = group.required and not given
    parser.set_defaults(**settings)
    return settings


def prefer_command_line(
    parser: argparse.ArgumentParser, options: Options, settings: Mapping[str, Any]
) -> None:
    """Drop a file's flag from ``options`` where the command line gave one that excludes it."""
    for group in parser._mutually_exclusive_groups:
        names = _names(group)
        given = [name for name in names if getattr(options, name) is not None]
        if len(given) > 1:
            for name in given:
                if name in settings:
                    setattr(options, name, None)


def options_from(
    parser: argparse.ArgumentParser,
    verb: str,
    sources: Mapping[str, Any],
) -> Options:
    """A verb's options from files alone.

    Args:
        parser: The verb's parser; it is changed.
        verb: The verb's name.
        sources: Keys and values by the name that messages give them; later ones win.

    Raises:
        ConfigError: as for :func:`set_defaults`, or a required flag is missing.
    """
    for source, content in sources.items():
        set_defaults(parser, verb, content, source)
    missing = [action.dest for action in parser._actions if action.required] + [
        " or ".join(_names(group)) for group in parser._mutually_exclusive_groups if group.required
    ]
    if missing:
        raise ConfigError(f"{next(iter(sources))}: expected {', '.join(missing)}, got none")
    return parser.parse_args([], Options(verb=verb))


def settings_of(options: Options) -> dict[str, Any]:
    """The options that make a verb's result, as a file gives them."""
    return {
        key: value
        for key, value in vars(options).items()
        if key not in _NOT_RECORDED and value is not None
    }


def record(options: Options, out: Path) -> None:
    """Write the ``config.yaml`` that replays a run beside its output."""
    text = yaml.safe_dump(settings_of(options), sort_keys=False, allow_unicode=True)
    write_whole(out / "config.yaml", text.encode())


def _names(group: argparse._MutuallyExclusiveGroup) -> list[str]:
    return [action.dest for action in group._group_actions]


def _checked(action: argparse.Action, value: Any, where: str) -> Any:
    """A flag's value as its parser would have made it from the command line."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ConfigError(f"{where}: expected true or false, got {_shown(value)}")
        return value
    if action.nargs != "+":
        return _converted(action, value, where)
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ConfigError(f"{where}: expected at least one value, got []")
    return [_converted(action, each, where) for each in values]


def expected_of(action: argparse.Action) -> str:
    """What a flag's value must be, in words."""
    if action.choices is not None:
        return f"one of {list(action.choices)}"
    return "an integer" if action.type is int else "a number" if action.type is float else "text"


def _converted(action: argparse.Action, value: Any, where: str) -> Any:
    convert = action.type if callable(action.type) else str
    refusal = f"{where}: expected {expected_of(action)}, got {_shown(value)}"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(refusal)
    try:
        converted = convert(str(value))
    except ValueError:
        raise ConfigError(refusal) from None
    if action.choices is not None and converted not in action.choices:
        raise ConfigError(refusal)
    return converted


def _shown(value: Any) -> str:
    """A value as a message shows it: the beginning, if it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
