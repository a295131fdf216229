"""Factor directories: targets, sums and provenance written to disk and read back.

A directory holds a manifest and one file per sum, which is read when it is first used. The manifest
holds the SHA-256 of every sum, and its own, of all that stands in it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from curvedit.factors.basis import file_stem
from curvedit.factors.target import KINDS, Key, Target
from curvedit.files import document_hash, file_hash, write_whole

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class SumFile:
    """The file that holds a sum."""

    name: str
    bytes: int
    sha256: str


class StoredSums(Mapping[Key, Tensor]):
    """The sums in a directory; each is read, and its SHA-256 checked, on access."""

    def __init__(self, directory: Path, files: Mapping[Key, SumFile]) -> None:
        """Refer to these files in the directory."""
        self.directory, self.files = directory, dict(files)

    def __getitem__(self, key: Key) -> Tensor:
        """Read a sum: tile-packed, except "S", which is dense.

        Raises:
            KeyError: the directory has no such sum.
            ValueError: its file is damaged.
        """
        file = self.files[key]
        path = self.directory / file.name
        if file_hash(path) != file.sha256:
            raise ValueError(
                f"factors: {path} is damaged (its SHA-256 differs from the manifest's); fit again"
            )
        try:
            with safe_open(path, framework="pt") as stored:
                value: Tensor = stored.get_tensor("sum")
                return value
        except SafetensorError as error:
            raise ValueError(f"factors: {path} is damaged ({error}); fit again") from error

    def __iter__(self) -> Iterator[Key]:
        """Iterate over the keys."""
        return iter(self.files)

    def __len__(self) -> int:
        """Number of sums."""
        return len(self.files)


def write_directory(
    part: Path,
    targets: Mapping[str, Target],
    sums: Mapping[Key, Tensor],
    provenance: Mapping[str, Any],
) -> dict[Key, SumFile]:
    """Write the sums, then the manifest, into an existing directory."""
    files = {}
    for key in sorted(sums):
        path = part / f"{file_stem(key)}.safetensors"
        save_file({"sum": sums[key].cpu().contiguous()}, path)
        files[key] = SumFile(path.name, path.stat().st_size, file_hash(path))
    manifest = {
        "format": FORMAT,
        "status": "complete",
        **provenance,
        "targets": {name: target.to_json() for name, target in targets.items()},
        "files": {
            key: {"file": file.name, "bytes": file.bytes, "sha256": file.sha256}
            for key, file in files.items()
        },
    }
    manifest["sha256"] = document_hash(manifest)
    write_whole(part / MANIFEST, json.dumps(manifest, indent=2).encode())
    return files


def identities(targets: Mapping[str, Target], files: Mapping[Key, SumFile]) -> dict[Key, str]:
    """Return, for each mean factor, a text that differs if the factor differs."""
    return {key: f"{file.sha256}/{targets[key.target].tokens}" for key, file in files.items()}


def read_directory(directory: Path) -> tuple[dict[str, Target], StoredSums, dict[str, Any]]:
    """Read the targets, sums and provenance of a factor directory.

    Raises:
        FileNotFoundError: it is not a factor directory, or a file is missing.
        ValueError: it is incomplete or damaged, has another format, or a file has the wrong size.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"factors: expected a factor directory with {MANIFEST}, got {directory}"
        )
    manifest = _read_manifest(path)
    try:
        targets = {name: Target.from_json(entry) for name, entry in manifest.pop("targets").items()}
        files = {Key.parse(key): _sum_file(entry) for key, entry in manifest.pop("files").items()}
        _require_known(targets, files)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"factors: {path} is damaged ({error!r}); fit again") from error
    for file in files.values():
        part = directory / file.name
        if not part.is_file():
            raise FileNotFoundError(f"factors: {part} is missing; fit again")
        if part.stat().st_size != file.bytes:
            raise ValueError(
                f"factors: {part} is truncated: expected {file.bytes} bytes, "
                f"got {part.stat().st_size}; fit again"
            )
    provenance = {key: value for key, value in manifest.items() if key not in ("format", "status")}
    return targets, StoredSums(directory, files), provenance


def _read_manifest(path: Path) -> dict[str, Any]:
    """Return the content of a manifest, without its hash, which is checked."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"factors: {path} is damaged ({error}); fit again") from error
    if not isinstance(manifest, dict):
        raise ValueError(
            f"factors: {path} is damaged (expected a JSON object, got "
            f"{type(manifest).__name__}); fit again"
        )
    found, status = manifest.get("format"), manifest.get("status")
    if found != FORMAT or status != "complete":
        raise ValueError(
            f"factors: expected format {FORMAT} with status 'complete', got {found!r} with "
            f"{status!r} in {path}"
        )
    stored = manifest.pop("sha256", None)
    if stored is None:
        raise ValueError(
            f"factors: {path} has no SHA-256 of its own, as those of earlier versions; fit again"
        )
    if document_hash(manifest) != stored:
        raise ValueError(
            f"factors: {path} is damaged (its content differs from its SHA-256); fit again"
        )
    return manifest


def _sum_file(entry: Mapping[str, Any]) -> SumFile:
    name, size, sha256 = entry["file"], entry["bytes"], entry["sha256"]
    if not isinstance(name, str) or Path(name).name != name:
        raise ValueError(f"expected the name of a file beside it, got {name!r}")
    return SumFile(name, size, sha256)


def _require_known(targets: Mapping[str, Target], files: Mapping[Key, SumFile]) -> None:
    for key in files:
        if key.kind not in KINDS or key.target not in targets:
            raise ValueError(f"expected the factor of a target, got {key!r}")
