"""Linear maps whose weight a library keeps quantised: what they are, and the shape they stand for.

Inputs and gradients pass through them, so that factors can be fitted; their weights are not plain
numbers, so that an edit is made of the unquantised checkpoint.
"""

from torch import nn

from curvedit.models.experts import ExpertMap

_CLASSES = {"bitsandbytes": ("Linear4bit", "Linear8bitLt")}  # by package
_TENSORS = ("torchao",)  # packages whose tensors stand for the numbers they came from


def is_quantised(module: nn.Module) -> bool:
    """Whether ``module`` is a linear map of bitsandbytes, or one that torchao has quantised."""
    weight = module._parameters.get("weight")
    if not isinstance(module, nn.Linear) or weight is None:
        return False
    package = _package(type(module))
    if package in _CLASSES:
        return any(each.__name__ in _CLASSES[package] for each in type(module).__mro__)
    return _package(type(weight.data)) in _TENSORS


def shape_of(module: nn.Module) -> tuple[int, int]:
    """The shape ``(d_out, d_in)`` of a linear map, however its weight is stored."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, ExpertMap):
        rows, columns = module.weight.shape
        return rows, columns
    columns, rows = module.get_parameter("weight").shape  # Conv1D holds the transpose
    return rows, columns


def repacking(model: nn.Module) -> list[nn.Module]:
    """Maps of bitsandbytes that, unless in training mode, store their weight anew for inference.

    They do so where they first run without gradients on a CPU that has bfloat16 products. It
    rounds the scales of the weight, and no gradient passes it any more.
    """
    return [each for each in model.modules() if hasattr(each, "support_avx512bf16_for_cpu")]


def is_repacked(module: nn.Module) -> bool:
    """Whether that has happened."""
    state = getattr(getattr(module, "weight", None), "quant_state", None)
    return bool(getattr(state, "packing_format_for_cpu", False))


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]
