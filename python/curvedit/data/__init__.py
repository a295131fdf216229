"""Data: where tokens and images come from, and what one batch of them means."""

from curvedit.data.batch import TASKS, Batch, read_batch
from curvedit.data.sources import TokenBatches, image_batches, token_batches

__all__ = ["TASKS", "Batch", "TokenBatches", "image_batches", "read_batch", "token_batches"]
