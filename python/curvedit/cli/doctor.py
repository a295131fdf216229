"""``curvedit doctor``: the state of the installation; fails where a kernel's numbers are wrong."""

import argparse
from dataclasses import asdict

from curvedit.cli.verb import Job, Options, Result, Verb
from curvedit.doctor import examine


def _add_flags(_: argparse.ArgumentParser) -> None:
    """None of its own."""


def _prepare(_: Options) -> Job:
    return _examine


def _examine() -> Result:
    found = examine()
    wrong = [
        f"{check.op} ({check.backend}, {check.device})"
        for check in found.checks
        if not check.is_sound
    ]
    failure = f"doctor: wrong numbers from {', '.join(wrong)}" if wrong else ""
    return Result(str(found), asdict(found), failure)


DOCTOR = Verb(
    "doctor", "show what is installed, and check every kernel's numbers", _add_flags, _prepare
)
