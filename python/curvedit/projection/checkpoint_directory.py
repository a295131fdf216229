"""Projection on disk: a checkpoint directory and Selections in, edited copies of it out.

A shard is copied as it is, and the byte ranges of targeted tensors are then overwritten. Dtype and
shape stay the same, so nothing else in the file moves.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curvedit.checks import require_new_directory
from curvedit.files import new_directory
from curvedit.projection.weight import (
    TargetEdit,
    edit_weight,
    is_fitted,
    require_fitted,
    rotate_once,
)
from curvedit.selection import Selection, TargetSelection, summarise_selection

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".h5", ".msgpack", ".ot", ".ckpt", ".gguf", ".onnx")


@dataclass(frozen=True)
class StoredTensor:
    """The location of a tensor in a safetensors file."""

    key: str
    file: Path
    dtype: str  # in safetensors' own spelling, such as "BF16"
    shape: tuple[int, ...]
    start: int  # byte offset in the file
    stop: int  # one past the last byte

    def read(self) -> Tensor:
        """Read the tensor.

        Raises:
            ValueError: its dtype is not a floating-point one of 16 bits or more.
        """
        if self.dtype not in _DTYPES:
            raise ValueError(
                f"model: expected {self.key!r} to be stored as one of {list(_DTYPES)}, "
                f"got {self.dtype}; edit the unquantised checkpoint"
            )
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            content = bytearray(stream.read(self.stop - self.start))
        return torch.frombuffer(content, dtype=_DTYPES[self.dtype]).reshape(self.shape)

    def write(self, tensor: Tensor, directory: Path) -> None:
        """Overwrite the same bytes in the file's copy in ``directory``."""
        with (directory / self.file.name).open("r+b") as stream:
            stream.seek(self.start)
            stream.write(tensor.contiguous().view(torch.uint8).numpy().tobytes())


def stored_tensors(file: Path) -> Iterator[StoredTensor]:
    """Locate the tensors of a safetensors file, from its header.

    Raises:
        ValueError: the file is truncated, or is not a safetensors file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(
                f"model: {file} is truncated or not a safetensors file; download it again"
            )
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise ValueError(
                f"model: the header of {file} is damaged ({error}); download it again"
            ) from error
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        start, stop = (8 + length + offset for offset in entry["data_offsets"])
        if stop > size:
            raise ValueError(
                f"model: {file} is truncated: {key!r} ends at byte {stop} of {size}; "
                "download it again"
            )
        yield StoredTensor(key, file, entry["dtype"], tuple(entry["shape"]), start, stop)


Place = tuple[StoredTensor, bool]  # a stored tensor, and whether it holds the transpose


def edit_checkpoint(
    source: Path, edits: Sequence[tuple[Path, Selection]], removed_scale: float, backend: str | None
) -> list[dict[str, TargetEdit]]:
    """Write edited checkpoints; every target is verified before anything is written.

    Args:
        source: A directory with safetensors, config and tokenizer, as ``save_pretrained`` writes.
        edits: New directories, and the selection to apply in each; the selections share their
            bases. Leftovers of an interrupted run under ``<out>.part`` are replaced.
        removed_scale: Factor applied to the removed part.
        backend: Backend of the projection; None lets ``ops`` choose.

    Returns:
        For each directory, the record of each target's edit.

    Raises:
        FileNotFoundError: ``source`` is not a directory, or has no safetensors.
        FileExistsError: a new directory is not empty.
        ValueError: a target is missing or is not the fitted weight, or a file is damaged.
        OSError: a directory cannot be written; nothing is left behind.
    """
    shards = _shards(source)
    for out, _ in edits:
        require_new_directory("out", out)
        if out.resolve() == source.resolve() or source.resolve() in out.resolve().parents:
            raise ValueError(f"out: expected a directory outside the model's, got {out}")
    stored = {tensor.key: tensor for shard in shards for tensor in stored_tensors(shard)}
    union = {name: target for _, selection in edits for name, target in selection.items()}
    places = {name: _place(name, target, stored) for name, target in union.items()}
    copied = [
        path for path in sorted(source.rglob("*")) if path.is_file() and not _left_out(path, source)
    ]
    size = sum(path.stat().st_size for path in copied)
    with ExitStack() as stack:
        parts = [
            stack.enter_context(
                new_directory("out", out, needed_bytes=size * (len(edits) - number))
            )
            for number, (out, _) in enumerate(edits)
        ]
        for path in copied:
            for part in parts:
                target = part / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        selections = [selection for _, selection in edits]
        done = _overwrite(places, selections, parts, removed_scale, backend)
        for selection, part, its in zip(selections, parts, done, strict=True):
            record = _record(source, selection, removed_scale, places, its)
            (part / "curvedit.json").write_text(json.dumps(record, indent=2))
    return done


def _overwrite(
    places: dict[str, Place],
    selections: Sequence[Selection],
    parts: Sequence[Path],
    removed_scale: float,
    backend: str | None,
) -> list[dict[str, TargetEdit]]:
    """Edit every target in each of the copies, one weight in memory at a time."""
    done: list[dict[str, TargetEdit]] = [{} for _ in selections]
    for name, (tensor, transposed) in places.items():
        weight = tensor.read()
        weight = weight.T if transposed else weight
        wanted = [number for number, selection in enumerate(selections) if name in selection]
        among = [selections[number] for number in wanted]
        components = rotate_once(name, weight, among, backend)
        for number, selection in zip(wanted, among, strict=True):
            edited, done[number][name] = edit_weight(
                name, weight, selection, removed_scale, backend, components
            )
            tensor.write(edited.T if transposed else edited, parts[number])
    return done


def _shards(source: Path) -> list[Path]:
    if not source.is_dir():
        raise FileNotFoundError(f"model: expected a checkpoint directory, got {source}")
    shards = sorted(source.glob("*.safetensors"))
    if not shards:
        others = sorted(path.name for path in source.iterdir() if path.suffix in _OTHER_WEIGHTS)
        raise FileNotFoundError(
            f"model: expected *.safetensors in {source}, got {others or 'no weights'}; "
            "only safetensors are read: convert with model.save_pretrained(directory)"
        )
    index = source / "model.safetensors.index.json"
    if index.is_file():
        missing = set(json.loads(index.read_text())["weight_map"].values()) - {
            shard.name for shard in shards
        }
        if missing:
            raise FileNotFoundError(
                f"model: {sorted(missing)[0]} of {index} is missing; download it again"
            )
    return shards


def _left_out(path: Path, source: Path) -> bool:
    """Whether to leave a file out: weights in other formats, which are unedited; hidden files."""
    parts = path.relative_to(source).parts
    return (
        path.suffix in _OTHER_WEIGHTS
        or any(part.startswith(".") for part in parts)
        or path.name == "curvedit.json"
    )


def _place(name: str, target: TargetSelection, stored: dict[str, StoredTensor]) -> Place:
    """Find the stored tensor of a target by name, or else by content, and verify it.

    Names differ if transformers renames weights while loading them.
    """
    key = _key(name, list(stored))
    if key is None:
        return _place_by_content(name, target, stored)
    tensor = stored[key]
    weight = tensor.read()
    if weight.shape == target.shape[::-1]:
        square = weight.shape[0] == weight.shape[1]
        if not square or (target.weight_sha256 and is_fitted(weight.T, target)):
            require_fitted(name, weight.T, target)
            return tensor, True
    require_fitted(name, weight, target)
    return tensor, False


def _place_by_content(name: str, target: TargetSelection, stored: dict[str, StoredTensor]) -> Place:
    found: list[Place] = []
    for tensor in stored.values():
        if (
            target.weight_sha256
            and tensor.dtype in _DTYPES
            and sorted(tensor.shape) == sorted(target.shape)
        ):
            weight = tensor.read()
            found += [
                (tensor, transposed)
                for transposed in (False, True)
                if (weight.T if transposed else weight).shape == target.shape
                and is_fitted(weight.T if transposed else weight, target)
            ]
    if len(found) != 1:
        got = [tensor.key for tensor, _ in found] or f"none among keys such as {list(stored)[:3]}"
        raise ValueError(
            f"model: expected one tensor with the name or the content of the target {name!r}, "
            f"got {got}"
        )
    require_fitted(name, found[0][0].read().T if found[0][1] else found[0][0].read(), target)
    return found[0]


def _key(name: str, keys: list[str]) -> str | None:
    """Return the key of a module's weight, or None if there is no or more than one candidate.

    A base-model prefix may be missing on either side.
    """
    wanted = f"{name}.weight"
    if wanted in keys:
        return wanted
    near = [key for key in keys if key.endswith(f".{wanted}") or wanted.endswith(f".{key}")]
    return near[0] if len(near) == 1 else None


def _record(
    source: Path,
    selection: Selection,
    removed_scale: float,
    places: dict[str, Place],
    edits: dict[str, TargetEdit],
) -> dict[str, Any]:
    targets = {
        summary.name: {
            **summary.to_json(),
            **edits[summary.name].to_json(),
            "key": places[summary.name][0].key,
            "file": places[summary.name][0].file.name,
        }
        for summary in summarise_selection(selection)
    }
    return {
        "tool": f"curvedit {version('curvedit')}",
        "source": source.name,
        "recipe": {**selection.recipe, "removed_scale": removed_scale},
        "targets": targets,
    }
