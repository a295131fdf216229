"""Throughput of the kernels on this machine: workloads, rivals, timing and rooflines."""

from curvedit.bench.roofline import draw_roofline
from curvedit.bench.timing import Ceilings, Row, interleaved, measure, repeat, table
from curvedit.bench.workloads import MODELS, OPS, cases

__all__ = [
    "MODELS",
    "OPS",
    "Ceilings",
    "Row",
    "cases",
    "draw_roofline",
    "interleaved",
    "measure",
    "repeat",
    "table",
]
