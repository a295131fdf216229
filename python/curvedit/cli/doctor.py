"""``curvedit doctor``: the state of the installation; fails where a kernel's numbers are wrong."""

import argparse
import json
from dataclasses import asdict

from curvedit.cli.verb import Options, Verb, say
from curvedit.doctor import examine


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _execute(options: Options) -> None:
    found = examine()
    say(json.dumps(asdict(found), indent=1) if options.json else str(found))
    if not found.is_sound:
        wrong = [
            f"{check.op} ({check.backend}, {check.device})"
            for check in found.checks
            if not check.is_sound
        ]
        raise RuntimeError(f"doctor: wrong numbers from {', '.join(wrong)}")


DOCTOR = Verb(
    "doctor", "show what is installed, and check every kernel's numbers", _add_flags, _execute
)
