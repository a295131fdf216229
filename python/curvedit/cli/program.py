"""The ``curvedit`` program: finds the verb, reads its options, runs it, says why it stopped."""

import argparse
import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

from curvedit.cli import parsing
from curvedit.cli.bench import BENCH
from curvedit.cli.convert import CONVERT
from curvedit.cli.demo import DEMO
from curvedit.cli.doctor import DOCTOR
from curvedit.cli.errors import explain
from curvedit.cli.evaluate import EVALUATE
from curvedit.cli.fit import FIT
from curvedit.cli.forget import FORGET
from curvedit.cli.inspect import INSPECT
from curvedit.cli.merge import MERGE
from curvedit.cli.mine import MINE
from curvedit.cli.plan import PLAN
from curvedit.cli.processes import number_and_count
from curvedit.cli.project import PROJECT
from curvedit.cli.rank import RANK
from curvedit.cli.run import RUN
from curvedit.cli.study import STUDY
from curvedit.cli.verb import Options, say
from curvedit.cli.yaml_files import ConfigError
from curvedit.meter import span

VERBS = {  # in the order of --help
    verb.name: verb
    for verb in (
        PLAN,
        FIT,
        RANK,
        PROJECT,
        FORGET,
        EVALUATE,
        RUN,
        MINE,
        CONVERT,
        STUDY,
        DEMO,
        MERGE,
        INSPECT,
        BENCH,
        DOCTOR,
    )
}


class Terminated(KeyboardInterrupt):
    """The process was asked to end; everything cleans up as after Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: The words after the program's name; None takes the process's own.

    Returns:
        0 if it is done; 1 if it was refused or failed, with the reason in one line on standard
        error; 130 after Ctrl-C, 143 after SIGTERM, and 141 if the reader of standard output left.

    Raises:
        SystemExit: with status 2, wrong usage or a configuration file that cannot be used; with
            status 0, after ``--help`` or ``--version``.
    """
    options = parse(sys.argv[1:] if argv is None else argv)
    with _stoppable(), warnings.catch_warnings():
        warnings.showwarning = _shows_warnings_of(options.verb)
        try:
            return _run(options)
        except BrokenPipeError:
            _silence_standard_output()
            return 141
        except Terminated:
            return _fail(options, "terminated; nothing was left half-written", 143, "stopped")
        except KeyboardInterrupt:
            return _fail(options, "by Ctrl-C; nothing was left half-written", 130, "stopped")
        except Exception as error:
            if options.traceback:
                raise
            _fail(options, explain(error), 1)
            if isinstance(error, ConfigError):
                raise SystemExit(2) from None
            return 1


def parse(words: Sequence[str]) -> Options:
    """The options of one verb, with the defaults of its ``--config`` file.

    Raises:
        SystemExit: wrong usage, a file that cannot be used, ``--help`` or ``--version``.
    """
    return parsing.read_options(VERBS, list(words))


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs and their flags; :func:`main` reads ``--config`` files into it."""
    return parsing.build(VERBS)[0]


def _run(options: Options) -> int:
    number, count = number_and_count()
    if count > 1 and options.verb != FIT.name:
        raise ValueError(
            f"torchrun: expected {FIT.name}, the verb that several processes can share, "
            f"got {options.verb}; call curvedit itself"
        )
    if number:  # the first process speaks for all
        options.progress = False
    with span(options.verb, shown=getattr(options, "progress", False)):
        result = VERBS[options.verb].prepare(options)()
    if not number:
        say(result, as_json=options.json)
    return _fail(options, result.failure, 1) if result.failure else 0


def _fail(options: Options, message: str, status: int, kind: str = "error") -> int:
    with contextlib.suppress(OSError):  # standard error may be gone too
        sys.stderr.write(f"curvedit {options.verb}: {kind}: {message}\n")
        sys.stderr.flush()
    return status


def _shows_warnings_of(verb: str) -> Any:
    def show(message: Warning | str, *_: Any) -> None:
        sys.stderr.write(f"curvedit {verb}: warning: {' '.join(str(message).split())}\n")

    return show


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Raise :class:`Terminated` on SIGTERM, where this is the process's main thread."""

    def stop(_: int, __: FrameType | None) -> NoReturn:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _silence_standard_output() -> None:
    """Keep the interpreter from complaining at its end that nobody reads its output."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
