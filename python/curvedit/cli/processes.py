"""The processes that ``torchrun`` started, of which the first speaks and writes for all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed
from torch.distributed import ProcessGroup


def number_and_count() -> tuple[int, int]:
    """This process's number, and how many ``torchrun`` started; (0, 1) without it."""
    if not distributed.is_torchelastic_launched():
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


@contextmanager
def joined() -> Iterator[ProcessGroup | None]:
    """All of them as a group, each with a GPU of its own if there are enough; None if it is alone.

    NCCL refuses two processes on one GPU; where they have to share one, Gloo adds up on the host.
    """
    if number_and_count()[1] == 1:
        yield None
        return
    backend, count = "gloo", torch.cuda.device_count()
    if count:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % count)
        if int(os.environ["LOCAL_WORLD_SIZE"]) <= count:
            backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend)
    try:
        yield distributed.group.WORLD
    finally:
        distributed.destroy_process_group()
