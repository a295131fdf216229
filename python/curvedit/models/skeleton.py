"""The parameters of a checkpoint's model by name, with ties, from its config alone."""

import contextlib
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from curvedit.models.loading import model_class


def parameter_names(directory: Path) -> Mapping[str, frozenset[str]] | None:
    """Return, for each parameter's name, all names of that parameter: several if it is tied.

    The model is made without memory for its weights. None if that is not possible: transformers is
    missing, or has no class that ``config.json`` names and that can be made from it.
    """
    model = None
    # Whatever a class of another package raises, or warns of.
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        architecture, config = model_class(directory)
        with torch.device("meta"):
            model = architecture(config)
        model.tie_weights()
    if model is None:
        return None
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: frozenset(group) for group in names.values() for name in group}
