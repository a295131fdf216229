"""The command line."""

from curvedit.cli.program import build_parser, main

__all__ = ["build_parser", "main"]
