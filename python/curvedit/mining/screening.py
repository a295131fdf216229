"""Screening: every window of a corpus, teacher-forced; an interrupted one goes on."""

import numpy as np
import numpy.typing as npt

from curvedit.evaluation import Passages, forced
from curvedit.meter import progress
from curvedit.mining.search import Search
from curvedit.mining.state import State

_AT_ONCE = 64  # windows between two notes of how far the screening has come


def screen(
    search: Search, *, state: State | None, batch_size: int, shown: bool
) -> npt.NDArray[np.int64]:
    """How many of each window's suffix tokens are right, given the true ones before them.

    Args:
        search: Model and windows.
        state: Where what is done is kept; None keeps nothing.
        batch_size: Windows per batch.
        shown: Show the progress.

    Returns:
        One count per window, (windows,).
    """
    count = len(search.windows)
    right = np.zeros(count, dtype=np.int64)
    begin = 0 if state is None else state.fill(right)
    with progress(count, unit="window", what="screen", shown=shown) as bar:
        bar.update(begin)
        for start in range(begin, count, _AT_ONCE):
            here = slice(start, min(start + _AT_ONCE, count))
            parts = [search.cut(number) for number in range(here.start, here.stop)]
            passages = Passages([one for one, _ in parts], [two for _, two in parts])
            found = forced(search.model, passages, batch_size=batch_size, done=bar.update)
            right[here] = [int(each.sum()) for each in found.right]
            near = int((4 * right[: here.stop] >= 3 * search.suffix).sum())
            bar.note(f"{near:,} near")
            if state is not None:
                state.add(right[here])
    return right
