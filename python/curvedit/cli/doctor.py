"""``curvedit doctor``: the state of the installation; fails where a kernel's numbers are wrong."""

from dataclasses import asdict

from curvedit.cli.verb import Job, Options, Result, Verb, add_progress_flag
from curvedit.doctor import examine


def _prepare(options: Options) -> Job:
    return lambda: _examine(options)


def _examine(options: Options) -> Result:
    found = examine(progress=options.progress)
    wrong = [
        f"{check.op} ({check.backend}, {check.device})"
        for check in found.checks
        if not check.is_sound
    ]
    failure = f"doctor: wrong numbers from {', '.join(wrong)}" if wrong else ""
    return Result(str(found), asdict(found), failure)


DOCTOR = Verb(
    "doctor",
    "show what is installed, and check every kernel's numbers",
    add_progress_flag,
    _prepare,
)
