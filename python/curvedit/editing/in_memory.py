"""Which linear maps of a module may be edited in place."""

from collections.abc import Mapping

from torch import Tensor, nn

from curvedit.editing.fitted import FittedWeight, require_fitted
from curvedit.models import ExpertMap, instead_of, maps_of, weight_of


def editable(model: nn.Module, targets: Mapping[str, FittedWeight]) -> dict[str, nn.Module]:
    """Return the targets' modules, after checking that each may be edited.

    Raises:
        ValueError: a target is missing, not in memory, not the fitted weight, or shares memory.
    """
    maps = maps_of(model)
    for name in targets:
        module = maps.get(name)
        if module is None:
            raise ValueError(
                f"model: expected a linear map {name!r}, as in the selection, "
                f"got {instead_of(model, name)}"
            )
        if weight_of(module).is_meta:
            raise ValueError(
                f"model: expected the weight of {name!r} in memory, got one on the meta device "
                "(offloaded or not loaded); load the model without a device map"
            )
    found = {name: maps[name] for name in targets}
    own = {id(module) for module in found.values()}
    edited = {f"{n}.weight" for n, each in model.named_modules() if id(each) in own}
    edited |= {
        f"{name.rsplit('.', 2)[0]}.{each.key}"
        for name, each in found.items()
        if isinstance(each, ExpertMap)
    }
    _require_own_memory(model, edited)
    for name, target in targets.items():
        require_fitted(name, weight_of(found[name]), target)
    return found


def _require_own_memory(model: nn.Module, edited: set[str]) -> None:
    """Refuse weights that lie in the memory of another parameter or buffer, whole or in part."""
    spans = sorted(
        (tensor.device.type, tensor.device.index or 0, *_span(tensor), name)
        for name, tensor in (
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        )
        if tensor.numel() and not tensor.is_meta
    )
    ends: dict[tuple[str, int], list[tuple[int, str]]] = {}
    for kind, index, start, stop, name in spans:
        open_ones = ends.setdefault((kind, index), [])
        open_ones[:] = [(end, other) for end, other in open_ones if end > start]
        for _, other in open_ones:
            for first, second in ((name, other), (other, name)):
                if first in edited:
                    raise ValueError(
                        f"model: {first!r} is tied to {second!r} or shares its memory, so editing "
                        "one would change both; untie them, or leave the target out"
                    )
        open_ones.append((stop, name))


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return the first address that a tensor occupies and the one after its last."""
    reach = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    start = tensor.data_ptr()
    return start, start + (reach + 1) * tensor.element_size()
