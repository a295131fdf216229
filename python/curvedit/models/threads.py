"""One thread at a time: a model that is being fitted or measured is not to be used by another.

A fit attaches hooks to a model and bypasses its blocks, and measuring it changes its mode, so two
threads on one model would mix their numbers without a word.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

_lock = threading.Lock()
_holders: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # module -> thread


@contextmanager
def exclusive(model: nn.Module) -> Iterator[None]:
    """Hold the model and all its modules; the same thread may hold them more than once.

    Raises:
        RuntimeError: another thread holds one of the modules.
    """
    me = threading.get_ident()
    with _lock:
        modules = set(model.modules())
        if any(_holders.get(module, me) != me for module in modules):
            raise RuntimeError(
                "model: expected one that no other thread is fitting, editing or measuring, got "
                f"one in use, {type(model).__name__}; wait for the other, or copy the model"
            )
        taken = [module for module in modules if module not in _holders]
        _holders.update(dict.fromkeys(taken, me))
    try:
        yield
    finally:
        with _lock:
            for module in taken:
                _holders.pop(module, None)
