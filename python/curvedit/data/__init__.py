"""Data: where tokens and images come from, and what one batch of them means."""

from curvedit.data.batch import TASKS, Batch, read_batch
from curvedit.data.documents import checked_ids, checked_text, json_rows
from curvedit.data.images import image_batches
from curvedit.data.inputs import Ids, require_rereadable, token_ids
from curvedit.data.origins import named_documents
from curvedit.data.padding import left_padded, positions_of, right_padded
from curvedit.data.passages import Passages
from curvedit.data.row_sketch import RowSketch
from curvedit.data.sources import token_batches
from curvedit.data.tokenizing import (
    BOS,
    bare_ids,
    decoded,
    encoded,
    fingerprint_of,
    name_of,
    opening_of,
)
from curvedit.data.windows import TokenBatches

__all__ = [
    "BOS",
    "TASKS",
    "Batch",
    "Ids",
    "Passages",
    "RowSketch",
    "TokenBatches",
    "bare_ids",
    "checked_ids",
    "checked_text",
    "decoded",
    "encoded",
    "fingerprint_of",
    "image_batches",
    "json_rows",
    "left_padded",
    "name_of",
    "named_documents",
    "opening_of",
    "positions_of",
    "read_batch",
    "require_rereadable",
    "right_padded",
    "token_batches",
    "token_ids",
]
