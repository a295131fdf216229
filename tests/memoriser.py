"""A model that knows texts by heart and nothing else."""

import torch
from torch import nn

MEMORY = 3  # tokens by which it knows where it is


class Memoriser(nn.Module):
    """Continues a known text after any three of its tokens in a row; otherwise says token 0.

    It takes ids alone, so nothing may be padded for it. ``broken`` after so many calls raises.
    """

    def __init__(self, *texts, vocabulary, breaks_after=None):
        super().__init__()
        self.vocabulary, self.breaks_after, self.calls = vocabulary, breaks_after, 0
        self.next = {}
        for text in texts:
            for end in range(MEMORY, len(text)):
                self.next[tuple(text[end - MEMORY : end])] = text[end]

    def forward(self, input_ids):
        self.calls += 1
        if self.breaks_after is not None and self.calls > self.breaks_after:
            raise KeyboardInterrupt
        logits = torch.zeros(*input_ids.shape, self.vocabulary)
        for row, ids in enumerate(input_ids.tolist()):
            for end in range(1, len(ids) + 1):
                known = self.next.get(tuple(ids[max(0, end - MEMORY) : end]), 0)
                logits[row, end - 1, known] = 9.0
        return logits
