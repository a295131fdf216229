"""The command line's parsers: usage errors in one line, flags spelled out, files as defaults."""

import argparse
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from curvedit.cli.config import expected_of, prefer_command_line, set_defaults
from curvedit.cli.verb import Options, Verb
from curvedit.cli.yaml_files import ConfigError, read_yaml


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line each."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what argparse takes; a flag must be spelled out."""
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        line = " ".join(message.split())
        self.exit(2, f"{self.prog}: error: {line}; see {self.prog} --help\n")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError:
            message = f"expected {expected_of(action)}, got {arg_string!r}"
            raise argparse.ArgumentError(action, message) from None


def build(
    verbs: Mapping[str, Verb], *, required: bool = True
) -> tuple[Parser, dict[str, argparse.ArgumentParser]]:
    """The program's parser, and each verb's part of it; ``required`` False demands no flag."""
    parser = Parser(
        prog="curvedit", description="Edit trained networks by the curvature of their loss."
    )
    parser.add_argument("--version", action="version", version=f"curvedit {version('curvedit')}")
    parts = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    by_verb = {}
    for name, verb in verbs.items():
        description = verb.help.capitalize() + "."
        by_verb[name] = verb.fill(parts.add_parser(name, help=verb.help, description=description))
        if not required:
            for action in by_verb[name]._actions:
                action.required = False
            for group in by_verb[name]._mutually_exclusive_groups:
                group.required = False
    return parser, by_verb


def read_options(verbs: Mapping[str, Verb], words: Sequence[str]) -> Options:
    """The options of one verb, with the defaults of its ``--config`` file.

    Raises:
        SystemExit: wrong usage, a file that cannot be used, ``--help`` or ``--version``.
    """
    if not {"-h", "--help"}.isdisjoint(words):
        return build(verbs)[0].parse_args(words)
    first, _ = build(verbs, required=False)
    if words and words[0].split("=")[0] == "--config":
        first.error(
            "--config: expected after the verb, got it before; write curvedit VERB --config"
        )
    given = first.parse_args(words)  # finds --config just as the second reading will
    parser, by_verb = build(verbs)
    if given.config is None:
        return parser.parse_args(words)
    own = by_verb[given.verb]
    source = f"--config {given.config}"
    try:
        settings = set_defaults(own, given.verb, read_yaml(given.config, source), source)
    except ConfigError as error:
        own.error(str(error))
    options = parser.parse_args(words)
    prefer_command_line(own, options, settings)
    return options
