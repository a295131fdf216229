"""The interface that every verb of the command line implements, and the flags they share."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Options = argparse.Namespace


@dataclass(frozen=True)
class Result:
    """What a verb has done."""

    text: str  # for people
    facts: Mapping[str, Any] = field(default_factory=dict)  # the same for programs, as JSON
    failure: str = ""  # why the verb fails although it has a result


Job = Callable[[], Result]


@dataclass(frozen=True)
class Verb:
    """One verb: its flags, and what it does with them.

    ``prepare`` checks everything that can be known before the work starts, and returns the work.
    For a stage of ``run`` it takes ``made`` too: the options whose paths earlier stages will make.
    """

    name: str
    help: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    prepare: Callable[..., Job]

    def fill(self, parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """Add this verb's flags, and those of every verb, to a parser; return the parser."""
        parser.add_argument("--config", metavar="FILE", help="YAML file with defaults for any flag")
        parser.add_argument(
            "--traceback", action="store_true", help="on an error, show where it was raised"
        )
        parser.add_argument("--json", action="store_true", help="print the result as JSON")
        self.add_flags(parser)
        return parser


def add_progress_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--no-progress``."""
    parser.add_argument(
        "--no-progress", dest="progress", action="store_false", help="hide progress bars"
    )


def require_at_least(options: Options, **least: int) -> None:
    """Raise ``ValueError`` unless each of these options is None or at least its bound."""
    for name, bound in least.items():
        value = getattr(options, name)
        if value is not None and value < bound:
            raise ValueError(f"{name}: expected at least {bound}, got {value}")


def say(result: Result, *, as_json: bool) -> None:
    """Print a result on standard output: its text, or its facts as one JSON object."""
    text = json.dumps(_plain(result.facts), indent=1) if as_json else result.text
    if text:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def _plain(value: Any) -> Any:
    """The value in JSON's own types; NaN and infinities become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
