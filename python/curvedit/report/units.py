"""The units behind a baseline's metrics, in a file beside ``report.json``."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from curvedit.files import write_whole
from curvedit.report.metrics import Metric, Metrics, Units

UNITS_FILE = "units.safetensors"
_PARTS = ("numerator", "denominator", "exponential")


def save_units(metrics: Metrics, path: Path) -> None:
    """Write the units of all metrics that have them."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for key, metric in metrics.items():
        if metric.units is not None:
            arrays[f"numerator/{key}"] = metric.units.numerator
            arrays[f"denominator/{key}"] = metric.units.denominator
            arrays[f"exponential/{key}"] = np.array([metric.units.exponential])
    write_whole(path, save(arrays))


def with_units(metrics: Metrics, path: Path) -> Metrics:
    """The metrics with the units that :func:`save_units` wrote.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        stored = load(path.read_bytes())
        found = {}
        for key, metric in metrics.items():
            units = None
            if f"numerator/{key}" in stored:
                top, bottom, exponential = (stored[f"{part}/{key}"] for part in _PARTS)
                units = Units(top, bottom, bool(exponential[0]))
            found[key] = Metric(metric.value, metric.low, metric.high, units)
    except (SafetensorError, KeyError, IndexError) as error:
        raise ValueError(
            f"report: {path} is damaged ({error!r}); measure the baseline again"
        ) from error
    return Metrics(found)
