"""Loads a model and its tokenizer from a Hugging Face checkpoint or a GGUF file.

Nothing that is loaded runs code of its own: no remote code, no pickled weights.
"""

import copy
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from curvedit.meter import beat
from curvedit.models.gguf_files import (
    dequantised,
    holds_tokenizer,
    is_gguf,
    require_gguf,
    source_of,
    stamp_of,
    without_bars,
)

_READABLE = ("bitsandbytes", "torchao")  # methods of quantisation, and packages


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "loading a checkpoint directory needs transformers; pip install 'curvedit[hf]'"
        ) from error
    return transformers


def load_model(
    path: str | Path,
    *,
    dtype: str = "auto",
    device: str | None = None,
    quantised: bool = False,
) -> nn.Module:
    """Load a checkpoint directory or hub name as the class that its config names, or a GGUF file.

    Args:
        path: A directory written by ``save_pretrained``, a hub name, or a file that ends in
            ``.gguf``, whose weights are dequantised.
        dtype: "auto" for the checkpoint's own dtype (float32 for a GGUF file), or "float32",
            "bfloat16", "float16".
        device: "cpu", "cuda", …; None uses CUDA if it is available.
        quantised: Take also checkpoints that bitsandbytes or torchao has quantised, which can be
            fitted and measured, but not edited.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: a path that looks local does not exist, or has no safetensors.
        ModuleNotFoundError: transformers is not installed; or what a quantised checkpoint or a GGUF
            file needs.
        ValueError: the device is not there; or the config is damaged, names no class of
            transformers, or is that of a quantised model or an encoder-decoder; or the checkpoint
            lacks tensors of that class or cannot be read; or the GGUF file is damaged, or of an
            architecture that transformers does not read from such files.
        OSError: a hub name is not found.
    """
    target = _available(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    architecture, config = model_class(path, quantised=quantised)
    place, options = source_of(path)
    if options:
        options = {**options, **dequantised(_transformers()), "config": config}
        dtype = "float32" if dtype == "auto" else dtype
    else:
        _require_safetensors(Path(path))
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"model: expected a decoder or an encoder, got {path}, an encoder-decoder "
            f"({architecture.__name__}); load it in Python and call curvedit.fit with a loss"
        )
    beat()
    hushed = without_bars(_transformers()) if options else nullcontext()
    with _one_line("model", path), hushed:
        model, info = architecture.from_pretrained(
            place,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
            **options,
        )
    if options:  # transformers names the file's folder
        model.config._name_or_path = str(path)
    missing = sorted(info["missing_keys"]) or [
        name for name, parameter in model.named_parameters() if parameter.is_meta
    ]
    if missing:
        raise ValueError(
            f"model: {path} lacks {len(missing)} tensors of {architecture.__name__}, "
            f"such as {missing[0]!r}"
        )
    loaded: nn.Module = model.to(target).eval()
    beat()
    return loaded


def model_class(
    path: str | Path, name: str = "model", *, quantised: bool = False
) -> tuple[Any, Any]:
    """Return the class of transformers that a checkpoint's config names, and the config.

    Args:
        path: A checkpoint directory, a hub name or a GGUF file.
        name: The caller's argument, for messages about a GGUF file.
        quantised: As for :func:`load_model`.

    Returns:
        The class and the config; of a GGUF file, the class for language modelling.

    Raises:
        FileNotFoundError: a path that looks local does not exist.
        ModuleNotFoundError: transformers is not installed; or, for a GGUF file, gguf or accelerate.
        ValueError: the config is damaged, names no class of transformers, needs code of its own, or
            is that of a quantised model; or a GGUF file is damaged or of an unknown architecture.
        OSError: a hub name is not found.
    """
    if is_gguf(path):
        return _gguf_class(path, name)
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
    _require_unquantised(path, {**config.to_dict(), **raw}, _READABLE if quantised else ())
    names = getattr(config, "architectures", None) or []
    first = names[0] if isinstance(names, list) and names else None
    architecture = getattr(transformers, first, None) if isinstance(first, str) else None
    if not isinstance(architecture, type) or not issubclass(
        architecture, transformers.PreTrainedModel
    ):
        raise ValueError(
            "model: expected a config that names a transformers class in 'architectures', "
            f"got {names} in {path}; load the model in Python and call curvedit.fit on it"
        )
    return architecture, config


def _gguf_class(path: str | Path, name: str) -> tuple[Any, Any]:
    file = require_gguf(name, path)
    transformers = _transformers()
    with _one_line(name, path):
        config = copy.deepcopy(_gguf_config(*stamp_of(file)))
        architecture = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if not isinstance(architecture, type):
        raise ValueError(
            f"{name}: expected a GGUF file of a language model, got {path}, "
            f"of type {config.model_type!r}"
        )
    return architecture, config


# transformers reads all of a file's metadata for each of these, which takes seconds where the
# vocabulary is large.
@lru_cache(maxsize=2)
def _gguf_config(path: str, *_: int) -> Any:
    place, options = source_of(path)
    beat()
    return _transformers().AutoConfig.from_pretrained(place, trust_remote_code=False, **options)


@lru_cache(maxsize=2)
def _gguf_tokenizer(path: str, *stamp: int) -> Any:
    place, options = source_of(path)
    beat()
    automatic = _transformers().AutoTokenizer
    tokenizer = automatic.from_pretrained(place, trust_remote_code=False, **options)
    beat()
    eos = getattr(_gguf_config(path, *stamp), "eos_token_id", None)
    if isinstance(eos, int) and tokenizer.bos_token_id == tokenizer.eos_token_id != eos:
        # transformers 4 takes BOS for EOS in a Llama's file
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(eos)
    return tokenizer


def load_tokenizer(path: str | Path) -> Any | None:
    """Load the tokenizer of a checkpoint directory, hub name or GGUF file; None if it has none.

    Raises:
        FileNotFoundError: a GGUF file does not exist.
        ModuleNotFoundError: transformers is not installed; or, for a GGUF file, gguf or accelerate.
        ValueError: its files are damaged.
        OSError: a hub name is not found.
    """
    if is_gguf(path):
        file = require_gguf("tokenizer", path)
        if not holds_tokenizer(file):
            return None
        with _one_line("tokenizer", path):
            tokenizer = copy.deepcopy(_gguf_tokenizer(*stamp_of(file)))
        tokenizer.name_or_path = str(path)
        return tokenizer
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


def _require_unquantised(
    path: str | Path, config: Mapping[str, Any], readable: Collection[str]
) -> None:
    for part in (config, *(each for each in config.values() if isinstance(each, dict))):
        found = part.get("quantization_config") or part.get("compression_config")
        if found:
            method = found.get("quant_method", "unnamed") if isinstance(found, dict) else found
            if method in readable and find_spec(method) is not None:
                continue
            if method in readable:
                raise ModuleNotFoundError(
                    f"model: {path} is quantised by {method}; pip install {method}, or give the "
                    "unquantised checkpoint"
                )
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
