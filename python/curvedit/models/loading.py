"""Loads a model and its tokenizer from a Hugging Face checkpoint, for the command line."""

from pathlib import Path
from typing import Any

import torch
from torch import nn


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "loading a checkpoint directory needs transformers; pip install 'curvedit[hf]'"
        ) from error
    return transformers


def load_model(path: str | Path, *, dtype: str = "auto", device: str | None = None) -> nn.Module:
    """Load a checkpoint directory or hub name as the class that its config names.

    Args:
        path: A directory written by ``save_pretrained``, or a hub name.
        dtype: "auto" for the checkpoint's own dtype, or "float32", "bfloat16", "float16".
        device: "cpu", "cuda", …; None uses CUDA if it is available.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: a path that looks local does not exist.
        ModuleNotFoundError: transformers is not installed.
        ValueError: the config names no class, or one that transformers does not have; or the
            checkpoint lacks tensors of that class.
    """
    transformers = _transformers()
    _require_present("model", path)
    config = transformers.AutoConfig.from_pretrained(path)
    names = getattr(config, "architectures", None) or []
    architecture = getattr(transformers, names[0], None) if names else None
    if architecture is None:
        raise ValueError(
            "model: expected a config that names a transformers class in 'architectures', "
            f"got {names} in {path}; load the model in Python and call curvedit.fit on it"
        )
    model, info = architecture.from_pretrained(
        path, dtype=dtype if dtype == "auto" else getattr(torch, dtype), output_loading_info=True
    )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(
            f"model: {path} lacks {len(missing)} tensors of {names[0]}, such as {missing[0]!r}"
        )
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    loaded: nn.Module = model.to(target).eval()
    return loaded


def load_tokenizer(path: str | Path) -> Any | None:
    """Load the tokenizer of a checkpoint directory or hub name; None if a directory has none."""
    directory = Path(path)
    if (
        directory.is_dir()
        and not any(directory.glob("tokenizer*"))
        and not any(directory.glob("vocab*"))
    ):
        return None
    return _transformers().AutoTokenizer.from_pretrained(path)


def _require_present(name: str, path: str | Path) -> None:
    looks_local = (
        isinstance(path, Path) or str(path).startswith((".", "/", "~")) or str(path).count("/") > 1
    )
    if looks_local and not (Path(path) / "config.json").is_file():
        raise FileNotFoundError(
            f"{name}: expected a checkpoint directory with config.json, got {path}"
        )
