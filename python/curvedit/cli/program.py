"""The ``curvedit`` program: finds the verb, reads its options, runs it."""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from curvedit.cli.bench import BENCH
from curvedit.cli.config import (
    ConfigError,
    find_config,
    prefer_command_line,
    read_yaml,
    set_defaults,
)
from curvedit.cli.demo import DEMO
from curvedit.cli.directories import INSPECT, MERGE
from curvedit.cli.doctor import DOCTOR
from curvedit.cli.evaluate import EVALUATE
from curvedit.cli.fit import FIT
from curvedit.cli.project import PROJECT
from curvedit.cli.rank import RANK
from curvedit.cli.run import RUN
from curvedit.cli.verb import Options

VERBS = {  # in the order of --help
    verb.name: verb
    for verb in (FIT, RANK, PROJECT, EVALUATE, RUN, DEMO, MERGE, INSPECT, BENCH, DOCTOR)
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: The words after the program's name; None takes the process's own.

    Returns:
        0 if it is done, 1 if it was refused or failed; the reason is on standard error.

    Raises:
        SystemExit: with status 2, wrong usage or a configuration file that cannot be used; with
            status 0, after ``--help`` or ``--version``.
    """
    try:
        options = parse(list(sys.argv[1:] if argv is None else argv))
        execute = VERBS[options.verb].execute
        if options.traceback:
            execute(options)
            return 0
        try:
            execute(options)
        except (ValueError, TypeError, KeyError, RuntimeError, OSError, ImportError) as error:
            message = error.args[0] if isinstance(error, KeyError) and error.args else error
            sys.stderr.write(f"curvedit {options.verb}: error: {message}\n")
            return 1
    except ConfigError as error:
        build_parser().error(str(error))
    return 0


def parse(words: Sequence[str]) -> Options:
    """The options of one verb, with the defaults of its ``--config`` file.

    Raises:
        ConfigError: the file cannot be used.
        SystemExit: wrong usage, ``--help`` or ``--version``.
    """
    parser, by_verb = _parsers()
    path = find_config(words)
    verb = next((word for word in words if not word.startswith("-")), None)
    if path is None or verb not in by_verb:
        return parser.parse_args(words)
    source = f"--config {path}"
    try:
        content = read_yaml(path, source)
    except OSError as error:
        raise ConfigError(f"{source}: {error}") from error
    settings = set_defaults(by_verb[verb], verb, content, source)
    options = parser.parse_args(words)
    prefer_command_line(by_verb[verb], options, settings)
    return options


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs and their flags; :func:`main` reads ``--config`` files into it."""
    return _parsers()[0]


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The program's parser, and each verb's part of it."""
    parser = argparse.ArgumentParser(
        prog="curvedit", description="Edit trained networks by the curvature of their loss."
    )
    parser.add_argument("--version", action="version", version=f"curvedit {version('curvedit')}")
    parts = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    by_verb = {}
    for name, verb in VERBS.items():
        description = verb.help.capitalize() + "."
        by_verb[name] = verb.fill(parts.add_parser(name, help=verb.help, description=description))
    return parser, by_verb
