"""Token sequences of unequal length as one tensor, padded so that the padding has no effect."""

from collections.abc import Sequence

import torch
from torch import Tensor

from curvedit.data.inputs import Ids


def left_padded(rows: Sequence[Ids], pad: int, device: torch.device) -> dict[str, Tensor]:
    """Token ids padded on the left, with mask and positions, each (B, T)."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions_of(mask)}


def right_padded(rows: Sequence[Ids], pad: int) -> dict[str, Tensor]:
    """Token ids padded on the right, with mask, each (B, T)."""
    width = max(map(len, rows))
    ids = [[*row, *[pad] * (width - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def positions_of(mask: Tensor) -> Tensor:
    """Positions (B, T) that count from each row's first token; 0 on the padding before it."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)
