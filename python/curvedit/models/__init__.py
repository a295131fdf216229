"""Everything the package knows about a model: calling and loading it, its linear maps and blocks.

The only folder that calls a model, so that fitting and evaluating treat it alike.
"""

from curvedit.models.blocks import Stack, block_maps, bypassed, find_stack, hidden_of
from curvedit.models.calling import (
    accepts,
    cached_rows,
    call,
    counts_from_zero,
    default_logits_bytes,
    device_of,
    dtype_of,
    frozen,
    identity_of,
    language_logits,
    logits_of,
    logits_room,
    measuring,
    pieces,
    require_fits,
    vocabulary_of,
    weights_fingerprint,
)
from curvedit.models.causality import CausalityError, require_causal
from curvedit.models.conversion import DTYPES, convert_gguf
from curvedit.models.coverage import CoverageRow, coverage_rows, fitted_share, passed_over
from curvedit.models.experts import (
    ExpertMap,
    Rows,
    calls_per_position,
    holder_of,
    owners_of,
    routed,
)
from curvedit.models.gguf_files import conversion_hint, is_gguf, require_readers
from curvedit.models.linear_maps import (
    find_targets,
    instead_of,
    is_linear_map,
    maps_of,
    match_names,
    weight_hash,
    weight_of,
)
from curvedit.models.loading import load_model, load_tokenizer, model_class, read_object
from curvedit.models.quantised import is_quantised, is_repacked, shape_of
from curvedit.models.skeleton import parameter_names
from curvedit.models.threads import exclusive
from curvedit.models.tracing import Trace, trace

__all__ = [
    "DTYPES",
    "CausalityError",
    "CoverageRow",
    "ExpertMap",
    "Rows",
    "Stack",
    "Trace",
    "accepts",
    "block_maps",
    "bypassed",
    "cached_rows",
    "call",
    "calls_per_position",
    "conversion_hint",
    "convert_gguf",
    "counts_from_zero",
    "coverage_rows",
    "default_logits_bytes",
    "device_of",
    "dtype_of",
    "exclusive",
    "find_stack",
    "find_targets",
    "fitted_share",
    "frozen",
    "hidden_of",
    "holder_of",
    "identity_of",
    "instead_of",
    "is_gguf",
    "is_linear_map",
    "is_quantised",
    "is_repacked",
    "language_logits",
    "load_model",
    "load_tokenizer",
    "logits_of",
    "logits_room",
    "maps_of",
    "match_names",
    "measuring",
    "model_class",
    "owners_of",
    "parameter_names",
    "passed_over",
    "pieces",
    "read_object",
    "require_causal",
    "require_fits",
    "require_readers",
    "routed",
    "shape_of",
    "trace",
    "vocabulary_of",
    "weight_hash",
    "weight_of",
    "weights_fingerprint",
]
