"""The command line: the package's verbs, with YAML files as defaults of their flags."""

from curvedit.cli.program import build_parser, main

__all__ = ["build_parser", "main"]
