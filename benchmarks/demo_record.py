"""Writes the committed record of the demo from its report.

``make demo && python benchmarks/demo_record.py demo/report.json``

The record holds what the README's table needs, the recipe, and each target's numbers. It leaves out
the polylines that the report's figures draw, which are nine tenths of the report.
"""

import json
import sys
from pathlib import Path

from tables import DEMO

POLYLINES = ("limits", "values_out", "values_in")


def without_polylines(report):
    """The record of a report, with a format name of its own: it no longer renders as a report."""
    targets = [
        {key: value for key, value in target.items() if key not in POLYLINES}
        for target in report["targets"]
    ]
    return {**report, "format": "curvedit-demo-record", "targets": targets}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/demo_record.py REPORT.json")
    record = without_polylines(json.loads(Path(sys.argv[1]).read_text()))
    text = json.dumps(record, indent=1, ensure_ascii=False)
    DEMO.write_text(text + "\n")
