"""Throughput of the kernels on this machine: workloads, rivals, timing and rooflines."""

from curvedit.bench import rivals
from curvedit.bench.roofline import draw_roofline
from curvedit.bench.sampled_error import (
    Reflections,
    packed_elements,
    second_moment_error,
    square_elements,
    syrk_error,
)
from curvedit.bench.timing import Ceilings, Row, interleaved, measure, repeat, table
from curvedit.bench.workloads import MODELS, OPS, cases

__all__ = [
    "MODELS",
    "OPS",
    "Ceilings",
    "Reflections",
    "Row",
    "cases",
    "draw_roofline",
    "interleaved",
    "measure",
    "packed_elements",
    "repeat",
    "rivals",
    "second_moment_error",
    "square_elements",
    "syrk_error",
    "table",
]
