"""Token sequences of unequal length as one tensor, with the mask and positions that make padding invisible."""

import torch
from torch import Tensor


def left_padded(rows: list[tuple[int, ...]], pad: int, device: torch.device) -> dict[str, Tensor]:
    """Token ids padded on the left, with mask and positions."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions_of(mask)}


def positions_of(mask: Tensor) -> Tensor:
    """Positions (B, T) that count from each row's first token; 0 on padding before it."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)
