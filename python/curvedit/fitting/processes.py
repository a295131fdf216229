"""One fit by several processes: each takes some rows of every batch, and their sums add up.

All read all of the data, so that samples are numbered, and labels drawn, as in a single process.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from curvedit.factors import Key
from curvedit.ops import tiles
from curvedit.passes import Run


def share_of(group: ProcessGroup | None) -> tuple[int, int]:
    """This process's number in a group, and how many there are; (0, 1) without one."""
    if group is None:
        return 0, 1
    return distributed.get_rank(group), distributed.get_world_size(group)


def require_alike(group: ProcessGroup | None, facts: Mapping[str, Any], *, what: str) -> None:
    """Refuse processes that do not do the same.

    Raises:
        ValueError: they do not; every process raises it.
    """
    if group is None:
        return
    for number, other in enumerate(_gathered(dict(facts), group)):
        for key, value in facts.items():
            if other.get(key) != value:
                raise ValueError(
                    f"group: expected the same {what} in every process, got another {key} in "
                    f"process {number}, {other.get(key)!r:.60} instead of {value!r:.60}"
                )


def add_up(group: ProcessGroup | None, run: Run, sums: dict[Key, Tensor]) -> dict[Key, Tensor]:
    """Return the sums of all processes, and give the run their counts.

    Raises:
        ValueError: the processes were given different data.
        RuntimeError: targets that share an input in one process do not in another.
    """
    if group is None:
        return sums
    data = {
        "samples": run.samples,
        "positions": run.positions,
        "loss terms": run.loss_terms,
        "rows": run.rows.to_json(),
    }
    require_alike(group, data, what="data")
    observer = run.observer
    sizes = {key: len(each) for key, each in sums.items()}
    parts = _gathered(
        {"tiles": sizes, "leaders": observer.leaders, "tokens": observer.tokens}, group
    )
    tiles_of: dict[Key, int] = {}
    for part in parts:
        tiles_of |= part["tiles"]
        for name, leader in part["leaders"].items():
            if observer.leaders.setdefault(name, leader) != leader:
                raise RuntimeError(
                    f"targets: {name!r} shares its input with {leader!r} in one process, with "
                    f"{observer.leaders[name]!r} in another; fit the two separately"
                )
    observer.tokens = {
        name: sum(part["tokens"][name] for part in parts) for name in observer.targets
    }
    device = next((each.device for each in sums.values()), torch.device("cpu"))
    whole = {}
    for key in sorted(tiles_of):  # the same order everywhere
        own = sums.pop(key, None)
        if own is None:  # its target was not called here
            own = torch.zeros(tiles_of[key], tiles.TILE, tiles.TILE, device=device)
        distributed.all_reduce(own, group=group)
        whole[key] = own
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return whole


def _gathered(mine: dict[str, Any], group: ProcessGroup) -> list[dict[str, Any]]:
    """What every process has, by its number."""
    found: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(found, mine, group=group)
    return found
