"""Which files of a checkpoint directory are the model, which travel with it, and which do not.

The model is what transformers loads: the file that ``transformers_weights`` in ``config.json``
names, or else ``model.safetensors``, or else the shards of ``model.safetensors.index.json``, in
this order. Weights in any other file would stay unedited, so they are left out of the copy.

Symlinks to files inside the directory are copied as files. One that leads out of it is refused,
except in a snapshot of the Hugging Face cache, ``models--*/snapshots/*``, whose files are links
into ``models--*/blobs``. Symlinks to directories, sockets, pipes and devices are left out.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curvedit.editing.stored import StoredTensor, stored_tensors
from curvedit.models import conversion_hint, read_object

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_OTHER_WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".ot", ".ckpt", ".gguf", ".ggml"),
    *(".onnx", ".onnx_data", ".npz", ".tflite", ".mlmodel", ".pkl", ".index.json"),
)


@dataclass(frozen=True)
class Checkpoint:
    """The files of a checkpoint directory, and the tensors of its model by key."""

    directory: Path  # without symlinks
    tensors: Mapping[str, StoredTensor]
    copied: tuple[Path, ...]  # relative to the directory
    left_out: tuple[str, ...]  # relative paths; a directory's ends with "/"

    @property
    def bytes(self) -> int:
        """Size of all that is copied."""
        return sum((self.directory / path).stat().st_size for path in self.copied)


def read_checkpoint(source: Path) -> Checkpoint:
    """Find the model and the files of a checkpoint directory.

    Raises:
        FileNotFoundError: it is not a directory, has no safetensors, or lacks a shard.
        ValueError: its index and its shards do not agree, a file is damaged, it holds an adapter,
            or a symlink leads out of it.
    """
    if not source.is_dir():
        raise FileNotFoundError(
            f"model: expected a checkpoint directory, got {source}{conversion_hint(source)}"
        )
    directory = source.resolve()
    if (directory / "adapter_config.json").exists():
        raise ValueError(
            f"model: expected a whole model, got an adapter in {source} (adapter_config.json); "
            "merge it into its base model first, with merge_and_unload()"
        )
    index, files = _model_files(directory)
    tensors = _tensors(files) if index is None else _indexed_tensors(directory / index, files)
    copied, left_out = _sorted_out(directory, {index, *(file.name for file in files)})
    return Checkpoint(directory, tensors, tuple(copied), tuple(left_out))


def _model_files(directory: Path) -> tuple[str | None, list[Path]]:
    """Return the name of the index, if there is one, and the files that hold the model."""
    named = _config(directory).get("transformers_weights")
    if named is not None:
        _require_plain_name(named, directory / "config.json", ".safetensors", ".index.json")
        names = [named]
    else:
        names = [name for name in (_WEIGHTS, _INDEX) if (directory / name).is_file()]
    if not names or not (directory / names[0]).is_file():
        others = sorted(path.name for path in directory.iterdir() if _holds_weights(path))
        raise FileNotFoundError(
            f"model: expected {named or f'{_WEIGHTS} or {_INDEX}'} in {directory}, "
            f"got {others or 'no weights'}; only safetensors are read: convert with "
            "model.save_pretrained(directory)"
        )
    if not names[0].endswith(".index.json"):
        return None, [directory / names[0]]
    index = directory / names[0]
    shards = sorted(set(_weight_map(index).values()))
    for shard in shards:
        _require_plain_name(shard, index, ".safetensors")
        if not (directory / shard).is_file():
            raise FileNotFoundError(f"model: {shard} of {index} is missing; download it again")
    return index.name, [directory / shard for shard in shards]


def _config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    return read_object(path) if path.is_file() else {}


def _weight_map(index: Path) -> dict[str, str]:
    found = read_object(index).get("weight_map")
    if (
        not isinstance(found, dict)
        or not found
        or not all(isinstance(file, str) for file in found.values())
    ):
        raise ValueError(
            f"model: expected a weight_map from tensors to files in {index}; download it again"
        )
    return found


def _require_plain_name(name: Any, where: Path, *suffixes: str) -> None:
    """Refuse a path, or another type of file, where a file beside the other is named."""
    is_plain = isinstance(name, str) and not {"/", "\\", "\0"} & set(name) and name[:1] != "."
    if not is_plain or not name.endswith(suffixes):
        raise ValueError(
            f"model: expected the name of a {' or '.join(suffixes)} file beside it in {where}, "
            f"got {name!r}; download it again"
        )


def _tensors(files: list[Path]) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in stored_tensors(file):
            if tensor.key in found:
                raise ValueError(
                    f"model: expected each tensor in one file, got {tensor.key!r} in "
                    f"{found[tensor.key].file.name} and {file.name} of {file.parent}"
                )
            found[tensor.key] = tensor
    return found


def _indexed_tensors(index: Path, files: list[Path]) -> dict[str, StoredTensor]:
    found, named = _tensors(files), _weight_map(index)
    for key, file in named.items():
        if key not in found or found[key].file.name != file:
            raise ValueError(
                f"model: {index} places {key!r} in {file}, which does not hold it; "
                "download both again"
            )
    for key, tensor in found.items():
        if key not in named:
            raise ValueError(
                f"model: {tensor.file} holds {key!r}, which {index.name} does not name; "
                "download both again"
            )
    return found


def _holds_weights(path: Path) -> bool:
    return path.name.endswith(_OTHER_WEIGHTS)


def _sorted_out(directory: Path, model: set[str | None]) -> tuple[list[Path], list[str]]:
    """Return the files to copy, and what to leave out; refuse symlinks that lead out."""
    copied: list[Path] = []
    left_out: list[str] = []
    for folder, folders, names in os.walk(directory):
        place = Path(folder)
        for name in sorted(folders):
            if name.startswith(".") or (place / name).is_symlink():
                folders.remove(name)
                left_out.append(f"{(place / name).relative_to(directory).as_posix()}/")
        for name in sorted(names):
            path = place / name
            relative = path.relative_to(directory)
            if name.startswith("."):
                left_out.append(relative.as_posix())
                continue
            if path.is_symlink():
                _require_inside(path, directory)
            if not path.is_file() or (_holds_weights(path) and str(relative) not in model):
                left_out.append(relative.as_posix())
            elif str(relative) != "curvedit.json":  # the record of an earlier edit
                copied.append(relative)
    return sorted(copied), sorted(left_out)


def _require_inside(link: Path, directory: Path) -> None:
    """Refuse a symlink to a file that leads out of the directory, the Hugging Face cache aside."""
    target = Path(os.path.realpath(link))
    if not target.exists():
        raise ValueError(f"model: {link} is a symlink to nothing; download the file again")
    cached = directory.parent.parent
    is_cache = directory.parent.name == "snapshots" and cached.name.startswith("models--")
    if not (target.is_relative_to(directory) or (is_cache and target.parent == cached / "blobs")):
        raise ValueError(
            f"model: {link} is a symlink out of the checkpoint, to {target}; "
            "copy the file there instead"
        )
