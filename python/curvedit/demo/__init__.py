"""A small model that recites, edited and measured: the whole workflow in minutes on a CPU."""

from curvedit.demo.run import run_demo

__all__ = ["run_demo"]
