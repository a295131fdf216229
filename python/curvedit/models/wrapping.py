"""Wrappers around a model that forward every call: compilation, data parallelism and PEFT's."""

from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside wrappers of compilation, data parallelism and PEFT, if any."""
    inner = _inner(model)
    return model if inner is None else unwrapped(inner[1])


def wrapping_prefix(model: nn.Module) -> str:
    """Return what the wrappers put before the names of the modules inside, such as "module."."""
    inner = _inner(model)
    return "" if inner is None else f"{inner[0]}.{wrapping_prefix(inner[1])}"


def _inner(model: nn.Module) -> tuple[str, nn.Module] | None:
    if type(model).__module__.startswith("peft."):
        tuner = model._modules.get("base_model")
        below = None if tuner is None else tuner._modules.get("model")
        return None if below is None else ("base_model.model", below)
    parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    name = "module" if parallel else "_orig_mod"
    inner = getattr(model, "_modules", {}).get(name)
    return None if inner is None else (name, inner)
