"""A simulated GPU: tensors that report a GPU as their device, and hold real numbers.

A GPU tensor is a CPU tensor that reports the device ``cuda:0``. Everything computed from it is a
GPU tensor too, gradients included, and ``torch.zeros(..., device="cuda")`` makes one. As on a real
GPU, mixing it with CPU tensors in one operation is refused, and it does not convert to a NumPy
array. The calls that would make the host wait for the device are recorded.
"""

from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda:0")
READS = {
    getattr(Tensor, name)
    for name in ("item", "tolist", "__float__", "__int__", "__bool__", "__index__", "nonzero")
} | {torch.equal, torch.nonzero}
TO_HOST = {Tensor.cpu}
MOVES = {Tensor.to, Tensor.copy_, Tensor.type, Tensor.cpu}  # accept tensors of both devices
# Some versions of transformers make attention masks under vmap, where tensors lose their class.
MASKED = {torch.nn.functional.scaled_dot_product_attention}
INDEXING = {Tensor.__getitem__, Tensor.__setitem__}  # an index may be on the CPU
METADATA = {Tensor.device.__get__, Tensor.is_cuda.__get__, Tensor.is_cpu.__get__}

PRODUCT = torch.mm

waits = []


class GpuTensor(Tensor):
    """A CPU tensor that reports a GPU as its device."""

    @property
    def device(self):
        return GPU

    @property
    def is_cuda(self):
        return True

    @property
    def is_cpu(self):
        return False

    def get_device(self):
        return 0

    def numpy(self, **_):
        raise TypeError("can't convert cuda:0 device type tensor to numpy; copy it to host memory")

    def cpu(self, *_, **__):
        waits.append("cpu")
        return self.as_subclass(Tensor).clone()

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


class _Factories(TorchFunctionMode):
    """Intercepts torch, so that tensors created on a GPU are GPU tensors."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in METADATA:
            return function(*args, **kwargs)
        return run(function, args, kwargs)


@contextmanager
def simulated_gpu():
    """Inside, ``device="cuda"`` is the simulated GPU; yields the list of the host's waits."""
    waits.clear()
    with _Factories():
        yield waits


def run(function, args, kwargs):
    """Run one torch call on the CPU, with GPU tensors in and out."""
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    ours = any(isinstance(leaf, GpuTensor) for leaf in leaves)
    foreign = [leaf for leaf in leaves if not isinstance(leaf, GpuTensor) and leaf.ndim]
    if ours and foreign and function not in MOVES | INDEXING | MASKED:
        raise RuntimeError(
            f"{_name(function)}: expected all tensors on the same device, got cuda:0 and cpu"
        )
    if function is Tensor.register_hook and ours:
        tensor, hook = args
        args = (tensor, lambda gradient: _called_back(hook, gradient))
    if (
        function is PRODUCT and "out_dtype" in kwargs
    ):  # CUDA only; converting first gives the same exact products
        dtype = kwargs["out_dtype"]
        args, kwargs = tuple(arg.to(dtype) for arg in args), {}
    asked = _device_of(function, args, kwargs)
    on_gpu = asked == "cuda" if asked else ours
    if function is Tensor.copy_:
        on_gpu = isinstance(args[0], GpuTensor)
    if ours and (function in READS or (function in MOVES and not on_gpu)):
        waits.append(_name(function))
    args, kwargs = tree_map(_on_cpu, (args, kwargs))
    if function is Tensor.to and ours and not on_gpu:
        kwargs = {**kwargs, "copy": True}  # devices never share memory
    with torch._C.DisableTorchFunctionSubclass():
        result = function(*args, **kwargs)
    if on_gpu:
        return tree_map(_placed, result)
    return tree_map(_plain, result) if asked else result


def _called_back(hook, gradient):
    """Run a hook inside the mode again, because a hook runs where torch is not intercepted."""
    with torch._C._EnableTorchFunction(), _Factories():
        return hook(_placed(gradient))


def _device_of(function, args, kwargs):
    """The type of the requested device, or None."""
    device = kwargs.get("device")
    if device is None and function is Tensor.to:
        device = next((arg for arg in args[1:] if isinstance(arg, (str, torch.device))), None)
        if device is None:
            other = next((arg for arg in args[1:] if isinstance(arg, Tensor)), None)
            device = None if other is None else other.device
    if function is Tensor.cpu:
        return "cpu"
    if device is None and function is Tensor.cuda:
        return "cuda"
    return None if device is None else torch.device(device).type


def _on_cpu(leaf):
    if isinstance(leaf, (str, torch.device)) and str(leaf).startswith("cuda"):
        return torch.device("cpu")
    return leaf


def _placed(leaf):
    plain = isinstance(leaf, Tensor) and not isinstance(leaf, GpuTensor)
    return leaf.as_subclass(GpuTensor) if plain else leaf


def _plain(leaf):
    return leaf.as_subclass(Tensor) if isinstance(leaf, GpuTensor) else leaf


def _name(function):
    return getattr(function, "__name__", str(function))


def to_gpu(tensor):
    """A copy of the tensor on the simulated GPU."""
    return tensor.detach().clone().as_subclass(GpuTensor)


def model_to_gpu(model):
    """Move a model's parameters and buffers, keeping tied ones tied."""
    moved = {}
    for module in model.modules():
        for group, wrap in ((module._parameters, nn.Parameter), (module._buffers, lambda x: x)):
            for name, tensor in group.items():
                if tensor is not None:
                    if id(tensor) not in moved:
                        moved[id(tensor)] = wrap(to_gpu(tensor))
                    group[name] = moved[id(tensor)]
    return model
