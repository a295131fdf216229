"""The demo: the whole workflow on a small model that has memorised text; minutes on a CPU."""

from curvedit.demo.run import run_demo

__all__ = ["run_demo"]
