"""What fused experts are called with, seen by watching every product of an eager model."""

import torch
from torch.overrides import TorchFunctionMode

PRODUCTS = ("linear", "matmul", "__matmul__")
KEYS = ("gate_up_proj", "up_proj", "down_proj")


def fused_parameters(model):
    """Three-dimensional weights of experts, by name."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 3 and name.endswith(KEYS)
    }


class ExpertCalls(TorchFunctionMode):
    """Calls ``found(name, inputs, rows, output)`` for each product with an expert's matrix.

    ``rows`` are the positions that the inputs were last taken from, by index.
    """

    def __init__(self, model, found):
        super().__init__()
        self.found, self.rows = found, None
        self.names = {
            matrix.data_ptr(): f"{name.rpartition('.')[0]}.{number}.{name.rpartition('.')[2]}"
            for name, parameter in fused_parameters(model).items()
            for number, matrix in enumerate(parameter)
        }

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func is torch.Tensor.__getitem__ and isinstance(args[1], torch.Tensor):
            index = args[1]
            if index.ndim == 1 and index.dtype == torch.int64:
                self.rows = index
        elif getattr(func, "__name__", "") in PRODUCTS and args[1].ndim == 2:
            name = self.names.get(args[1].data_ptr())
            if name is not None:
                self.found(name, args[0], self.rows, output)
        return output
