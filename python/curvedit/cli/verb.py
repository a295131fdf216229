"""The interface that every verb of the command line implements, and the flags they share."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

Options = argparse.Namespace


@dataclass(frozen=True)
class Verb:
    """One verb: its flags and what it does with them."""

    name: str
    help: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    execute: Callable[[Options], None]

    def fill(self, parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """Add this verb's flags, and those of every verb, to a parser; return the parser."""
        parser.add_argument("--config", metavar="FILE", help="YAML file with defaults for any flag")
        parser.add_argument(
            "--traceback", action="store_true", help="on an error, show where it was raised"
        )
        self.add_flags(parser)
        return parser


def add_progress_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--no-progress``."""
    parser.add_argument(
        "--no-progress", dest="progress", action="store_false", help="hide progress bars"
    )


def say(text: str) -> None:
    """Print a result."""
    sys.stdout.write(text + "\n")
