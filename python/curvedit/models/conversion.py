"""A GGUF file as a checkpoint directory, which can be edited."""

from importlib import import_module
from pathlib import Path
from typing import Any, cast

from torch import nn

from curvedit.checks import require_choice, require_new_directory
from curvedit.files import new_directory
from curvedit.models.gguf_files import is_gguf, require_gguf, without_bars
from curvedit.models.loading import load_model, load_tokenizer

DTYPES = ("float32", "bfloat16", "float16")


def convert_gguf(
    path: str | Path, out: str | Path, *, dtype: str = "float32", progress: bool = True
) -> nn.Module:
    """Write the dequantised weights of a GGUF file, its config and its tokenizer to a directory.

    Args:
        path: The file.
        out: A new directory, which is written whole or not at all.
        dtype: Precision of the weights; float32 holds exactly what the file's blocks stand for.
        progress: Show the progress bars of transformers, on a terminal.

    Returns:
        The model that was written, on the CPU.

    Raises:
        FileExistsError: ``out`` is not empty, or another process is writing it.
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: transformers, gguf or accelerate is not installed.
        ValueError: ``path`` is not a GGUF file, is damaged, or is of an architecture that
            transformers does not read from such files; or the dtype is another.
        OSError: the directory cannot be written.
    """
    require_choice("dtype", dtype, DTYPES)
    if not is_gguf(path):
        raise ValueError(f"model: expected a GGUF file, NAME.gguf, got {path}")
    require_new_directory("out", Path(out))
    require_gguf("model", path)
    with without_bars(import_module("transformers"), always=not progress):
        model: Any = load_model(path, dtype=dtype, device="cpu")
        tokenizer = load_tokenizer(path)
        needed = sum(each.numel() * each.element_size() for each in model.parameters())
        with new_directory("out", out, needed_bytes=needed) as part:
            model.save_pretrained(part)
            if tokenizer is not None:
                tokenizer.save_pretrained(part)
    return cast(nn.Module, model)
