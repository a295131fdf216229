"""Loads a model and its tokenizer from a Hugging Face checkpoint, for the command line.

Nothing that is loaded runs code of its own: no remote code, no pickled weights.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
        FileNotFoundError: a path that looks local does not exist, or has no safetensors.
        ModuleNotFoundError: transformers is not installed.
        ValueError: the device is not there; or the config is damaged, names no class of
            transformers, or is that of a quantised model or an encoder-decoder; or the checkpoint
            lacks tensors of that class or cannot be read.
        OSError: a hub name is not found.
    """
    target = _available(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    architecture, config = model_class(path)
    _require_safetensors(Path(path))
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"model: expected a decoder or an encoder, got {path}, an encoder-decoder "
            f"({architecture.__name__}); load it in Python and call curvedit.fit with a loss"
        )
    with _one_line("model", path):
        model, info = architecture.from_pretrained(
            path,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    missing = sorted(info["missing_keys"]) or [
        name for name, parameter in model.named_parameters() if parameter.is_meta
    ]
    if missing:
        raise ValueError(
            f"model: {path} lacks {len(missing)} tensors of {architecture.__name__}, "
            f"such as {missing[0]!r}"
        )
    loaded: nn.Module = model.to(target).eval()
    return loaded


def model_class(path: str | Path) -> tuple[Any, Any]:
    """Return the class of transformers that a checkpoint's config names, and the config.

    Raises:
        FileNotFoundError: a path that looks local does not exist.
        ModuleNotFoundError: transformers is not installed.
        ValueError: the config is damaged, names no class of transformers, needs code of its own, or
            is that of a quantised model.
        OSError: a hub name is not found.
    """
    transformers = _transformers()
    _require_present("model", path)
    raw = _raw_config(Path(path))
    try:
        with _one_line("model", path):
            config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (ValueError, OSError) as error:
        if "auto_map" in raw:
            raise ValueError(
                f"model: {path} needs code of its own (auto_map in config.json), which is not run; "
                "load the model in Python and call curvedit.fit on it"
            ) from error
        raise
    _require_unquantised(path, {**config.to_dict(), **raw})
    names = getattr(config, "architectures", None) or []
    name = names[0] if isinstance(names, list) and names else None
    architecture = getattr(transformers, name, None) if isinstance(name, str) else None
    if not isinstance(architecture, type) or not issubclass(
        architecture, transformers.PreTrainedModel
    ):
        raise ValueError(
            "model: expected a config that names a transformers class in 'architectures', "
            f"got {names} in {path}; load the model in Python and call curvedit.fit on it"
        )
    return architecture, config


def load_tokenizer(path: str | Path) -> Any | None:
    """Load the tokenizer of a checkpoint directory or hub name; None if a directory has none.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        ValueError: its files are damaged.
        OSError: a hub name is not found.
    """
    directory = Path(path)
    if (
        directory.is_dir()
        and not any(directory.glob("tokenizer*"))
        and not any(directory.glob("vocab*"))
    ):
        return None
    transformers = _transformers()
    with _one_line("tokenizer", path):
        return transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def _require_present(name: str, path: str | Path) -> None:
    looks_local = (
        isinstance(path, Path)
        or str(path).startswith((".", "/", "~"))
        or str(path).count("/") > 1
        or Path(path).is_dir()
    )
    if looks_local and not (Path(path) / "config.json").is_file():
        raise FileNotFoundError(
            f"{name}: expected a checkpoint directory with config.json, got {path}"
        )


def _raw_config(directory: Path) -> Mapping[str, Any]:
    """Return the object in a directory's ``config.json``; empty for a hub name."""
    path = directory / "config.json"
    if not path.is_file():
        return {}
    return read_object(path)


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint.

    Raises:
        ValueError: the file is not JSON, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"model: {path} is not JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"model: expected a JSON object in {path}, got {type(content).__name__}; "
            "download it again"
        )
    return content


def _require_unquantised(path: str | Path, config: Mapping[str, Any]) -> None:
    for part in (config, *(each for each in config.values() if isinstance(each, dict))):
        found = part.get("quantization_config") or part.get("compression_config")
        if found:
            method = found.get("quant_method", "unnamed") if isinstance(found, dict) else found
            raise ValueError(
                f"model: {path} is quantised ({method}); edit the unquantised checkpoint"
            )


def _require_safetensors(directory: Path) -> None:
    """Refuse a directory of pickled weights, which could run code when read."""
    pickled = sorted(path.name for path in directory.glob("*.bin") if path.is_file())
    if pickled and not any(directory.glob("*.safetensors")):
        raise FileNotFoundError(
            f"model: expected *.safetensors in {directory}, got {pickled[0]}; only safetensors are "
            "read: convert with model.save_pretrained(directory)"
        )


def _available(name: str) -> torch.device:
    """Return a device that is there.

    Raises:
        ValueError: torch knows or finds no such device.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        raise ValueError(
            f"device: expected one that torch finds here, got {name!r} ({_first_line(error)}); "
            "use cpu, or leave it out"
        ) from error
    if device.type == "meta":
        raise ValueError(f"device: expected one with memory, got {name!r}; use cpu")
    return device


@contextmanager
def _one_line(name: str, path: str | Path) -> Iterator[None]:
    """Report in one line whatever transformers raises about a checkpoint."""
    try:
        yield
    except (ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except OSError as error:
        raise OSError(f"{name}: {path} cannot be loaded ({_first_line(error)})") from error
    except Exception as error:  # of any type: packages behind transformers raise their own
        raise ValueError(f"{name}: {path} cannot be loaded ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
