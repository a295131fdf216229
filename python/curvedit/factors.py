"""The Kronecker factors of a model's linear maps: the value that ``fit`` returns and ``rank`` takes.

For each target ``y = W a`` with ``g = dL/dy`` (``L`` is the *sum* of the loss over contributing
positions): ``A = E[a a^T]``, ``G = E[g g^T]``, and the norm-weighted ``A_w = E[|g|^2 a a^T]``,
``G_w = E[|a|^2 g g^T]``. Stored as tile-packed float32 *sums* with a position count, so that
factors of disjoint data add exactly; read as means. Targets fed by one tensor share one ``A``.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from curvedit import linear
from curvedit.check import require_finite, require_shape
from curvedit.eigen import SMALL, decompose, decompose_small
from curvedit.factor_files import file_stem, read_basis, read_certificate, read_tensor, write_basis
from curvedit.files import file_hash, new_directory, write_whole
from curvedit.kernels import tiles
from curvedit.selection import Basis
from curvedit.target import Target, TargetFactors, fingerprint

FORMAT = 1
KINDS = ("A", "G", "A_w", "G_w", "S")


class Factors(Mapping[str, TargetFactors]):
    """Kronecker factors of a model's targets, in memory or in a directory.

    ``factors[name].A`` is the mean; ``factors.basis("A", name)`` its eigendecomposition, cached
    beside the factors. ``provenance`` says how they came about (labels, seed, data, model).
    """

    def __init__(
        self,
        targets: Mapping[str, Target],
        sums: Mapping[str, Tensor],  # "A/<inputs>", "G/<name>", …: tile-packed float32; "S/<name>": dense
        provenance: Mapping[str, Any],
        *,
        directory: Path | None = None,
    ) -> None:
        """Hold the given sums; with ``directory``, those not given are read from it when used."""
        self.targets = dict(targets)
        self.provenance = dict(provenance)
        self.directory = directory
        self._sums = dict(sums)
        self._bases: dict[str, Basis] = {}
        self._files: dict[str, dict[str, Any]] = {}

    def __getitem__(self, name: str) -> TargetFactors:
        """The factors of one target, as means."""
        target = self._target(name)
        return TargetFactors(name, target.tokens, target.shape, self)

    def __iter__(self) -> Iterator[str]:
        """Target names."""
        return iter(self.targets)

    def __len__(self) -> int:
        """Number of targets."""
        return len(self.targets)

    def _target(self, name: str) -> Target:
        if name not in self.targets:
            raise KeyError(f"target {name!r} is not among the fitted ones: {sorted(self.targets)}")
        return self.targets[name]

    def has(self, kind: str, name: str) -> bool:
        """Whether a factor of this kind (one of ``KINDS``) was fitted for the target."""
        key = self._key(kind, name)
        return key in self._sums or key in self._files

    def _key(self, kind: str, name: str) -> str:
        target = self._target(name)
        return f"{kind}/{target.inputs if kind == 'A' else name}"

    def _size(self, key: str) -> int:
        kind, _, name = key.partition("/")
        return self.targets[name].shape[1 if kind.startswith("A") else 0]

    def _numel(self, key: str) -> int:
        kind, _, name = key.partition("/")
        rows, columns = self.targets[name].shape
        return rows * columns if kind == "S" else tiles.tile_count(self._size(key)) * tiles.TILE**2

    def sum(self, key: str) -> Tensor:
        """The sum, tile-packed but for "S", under ``"<kind>/<target>"``.

        Raises:
            KeyError: it was not fitted.
            ValueError: its file is damaged.
        """
        if key in self._sums:
            return self._sums[key]
        if key not in self._files or self.directory is None:
            kind, _, name = key.partition("/")
            remedy = {"A_w": "weighted=True", "G_w": "weighted=True", "S": "corrected='sequence'"}.get(kind)
            raise KeyError(
                f"{kind} of {name} was not fitted; fit again with {remedy}" if remedy else f"no factor {key}"
            )
        path = self.directory / self._files[key]["file"]
        if file_hash(path) != self._files[key]["sha256"]:
            raise ValueError(f"factors: {path} is damaged (its SHA-256 is not the manifest's); fit again")
        return read_tensor(path, "sum")

    def mean(self, kind: str, name: str) -> Tensor:
        """The dense mean float32 of one target, ``(n, n)`` or "S" ``(d_out, d_in)``; ``kind`` is one of ``KINDS``."""
        key = self._key(kind, name)
        total: Tensor = self.sum(key) if kind == "S" else tiles.unpack(self.sum(key), self._size(key))
        return total / self._target(name).tokens

    def add_corrections(self, sums: Mapping[str, Tensor], **facts: Any) -> None:
        """Hold corrected eigenvalues, sums ``"S/<target>"`` (d_out, d_in), which belong to the present bases.

        Raises:
            ValueError: the factors are saved already: a directory is written once.
        """
        if self.directory is not None:
            raise ValueError(f"factors: expected ones that were not saved yet, got those of {self.directory}")
        names = [key.partition("/")[2] for key in sums]
        bases = {name: self._hash_of_bases(name) for name in names}
        self._sums |= sums
        self.provenance["corrected"] = {**facts, "bases": bases}

    def corrections(self, name: str) -> Tensor:
        """EK-FAC's eigenvalues of one target, ``(d_out, d_in)`` float32.

        Raises:
            KeyError: they were not fitted.
            ValueError: they belong to other bases: those were decomposed again since.
        """
        values = self.mean("S", name)
        if self.provenance["corrected"]["bases"][name] != self._hash_of_bases(name):
            raise ValueError(f"factors: the bases of {name!r} are not those its corrections were fitted in; fit again")
        return values

    def _hash_of_bases(self, name: str) -> str:
        return "".join(linear.weight_hash(self.basis(kind, name).vectors)[:16] for kind in ("G", "A"))

    def basis(self, kind: str, name: str) -> Basis:
        """The eigendecomposition of a mean factor, computed once and cached beside the factors."""
        key = self._key(kind, name)
        path = self._basis_path(key)
        if path is not None and path.exists():
            return read_basis(path)
        if key not in self._bases:
            basis = decompose(f"{kind} of {name}", self.mean(kind, name))
            self._keep(key, basis)
            return basis
        return self._bases[key]

    def certificate(self, kind: str, name: str) -> Mapping[str, Any]:
        """How well a basis satisfies its defining equations; see ``eigen.decompose``."""
        path = self._basis_path(self._key(kind, name))
        return read_certificate(path) if path is not None and path.exists() else self.basis(kind, name).certificate

    def decompose(self, kinds: Iterable[tuple[str, str]], *, progress: bool = True) -> None:
        """Decompose what ``basis`` would later ask for, small factors several at a time.

        Args:
            kinds: Pairs of a kind, "A", "G", "A_w" or "G_w", and a target.
            progress: Show a bar, in units of work, n^3.

        Raises:
            KeyError: one was not fitted.
            ValueError: one is not finite, not positive semi-definite, or too large.
            RuntimeError: one could not be decomposed well enough.
        """
        missing = {self._key(kind, name): (kind, name) for kind, name in kinds if not self._is_decomposed(kind, name)}
        by_size: dict[int, list[str]] = {}
        for key in sorted(missing, key=self._size):
            by_size.setdefault(self._size(key), []).append(key)
        work = sum(size**3 * len(keys) for size, keys in by_size.items())
        with tqdm(total=work, unit="op", unit_scale=True, desc="decompose", disable=None if progress else True) as bar:
            for size, keys in by_size.items():
                for some in _groups(keys, size):
                    names = [" of ".join(missing[key]) for key in some]
                    bar.set_postfix_str(names[0], refresh=False)
                    factors = [self.mean(*missing[key]) for key in some]
                    together = decompose_small(names, factors) if size <= SMALL else map(decompose, names, factors)
                    for key, basis in zip(some, together, strict=True):
                        self._keep(key, basis)
                        bar.update(size**3)

    def _is_decomposed(self, kind: str, name: str) -> bool:
        key = self._key(kind, name)
        path = self._basis_path(key)
        return key in self._bases or (path is not None and path.exists())

    def _keep(self, key: str, basis: Basis) -> None:
        """Beside the factors where they are in a directory that can be written to; else in memory."""
        path = self._basis_path(key)
        if path is None or not os.access(path.parent, os.W_OK):
            self._bases[key] = basis
        else:
            write_basis(path, basis)

    def _basis_path(self, key: str) -> Path | None:
        return None if self.directory is None else self.directory / (file_stem(key) + ".basis.safetensors")

    @property
    def identity(self) -> str:
        """SHA-256 of the manifest on disk, or ``""`` for factors that were never saved."""
        return file_hash(self.directory / "manifest.json") if self.directory else ""

    @classmethod
    def from_moments(
        cls, moments: Mapping[str, tuple[Tensor, Tensor, int]], *, model: nn.Module | None = None
    ) -> "Factors":
        """Factors computed elsewhere.

        Args:
            moments: Name to ``(A, G, tokens)``: mean second moments ``(d_in, d_in)`` and
                ``(d_out, d_out)``, and the number of positions they are means of. Targets given
                the same tensor object as ``A`` share it.
            model: When given, each target must be one of its linear maps, and its weight is
                recorded, so that a later ``project`` can refuse another model.

        Returns:
            The factors; without a model, ``project`` cannot check what they belong to.

        Raises:
            ValueError: a moment is not square, not finite or does not fit the model.
        """
        maps = {} if model is None else linear.find_targets(model, list(moments))
        targets: dict[str, Target] = {}
        sums: dict[str, Tensor] = {}
        leaders: dict[int, str] = {}
        for name, (second_in, second_out, tokens) in moments.items():
            require_shape(f"moments[{name!r}][0]", second_in, (second_in.shape[0], second_in.shape[0]))
            require_shape(f"moments[{name!r}][1]", second_out, (second_out.shape[0], second_out.shape[0]))
            require_finite(f"moments[{name!r}][0]", second_in)
            require_finite(f"moments[{name!r}][1]", second_out)
            if tokens < 1:
                raise ValueError(f"moments[{name!r}][2]: expected a positive number of positions, got {tokens}")
            leader = leaders.setdefault(id(second_in), name)
            shape = (second_out.shape[0], second_in.shape[0])
            if name in maps:
                require_shape(f"moments[{name!r}]", linear.weight_of(maps[name]), shape)
            sums.setdefault(f"A/{leader}", tiles.pack(second_in.float() * tokens))
            sums[f"G/{name}"] = tiles.pack(second_out.float() * tokens)
            targets[name] = Target(shape, leader, int(tokens), *fingerprint(maps.get(name)))
        return cls(targets, sums, {"labels": "unknown", "made_by": "from_moments"})

    @classmethod
    def merge(cls, parts: Iterable["Factors"]) -> "Factors":
        """Factors of the union of disjoint data: sums and position counts add.

        Raises:
            ValueError: the parts differ in targets, weights, input groups or labels; or hold corrected
                eigenvalues, which belong to the bases of one part and not to those of the union.
        """
        first, *rest = list(parts)
        if any("corrected" in part.provenance for part in (first, *rest)):
            raise ValueError(
                "merge: corrected eigenvalues belong to one part's own bases; merge factors fitted without them"
            )
        sums = {key: first.sum(key).clone() for key in first.keys_of_sums()}
        tokens = {name: target.tokens for name, target in first.targets.items()}
        for part in rest:
            _require_mergeable(first, part)
            for key, total in sums.items():
                total += part.sum(key)
            for name, target in part.targets.items():
                tokens[name] += target.tokens
        targets = {name: Target(**{**asdict(target), "tokens": tokens[name]}) for name, target in first.targets.items()}
        data = [part.provenance.get("data") for part in (first, *rest)]
        return cls(targets, sums, {**first.provenance, "data": data, "merged": 1 + len(rest)})

    def keys_of_sums(self) -> list[str]:
        """Keys of all stored sums, ``"<kind>/<target>"``."""
        return sorted({*self._sums, *self._files})

    def save(self, directory: str | Path) -> Path:
        """Write the factor directory of design section 5; afterwards bases are cached in it.

        Raises:
            FileExistsError: the directory has content.
            OSError: it cannot be written; nothing is left under its name.
        """
        needed = sum(4 * self._numel(key) for key in self.keys_of_sums())
        with new_directory("directory", directory, needed_bytes=needed) as part:
            files = {}
            for key in self.keys_of_sums():
                path = part / (file_stem(key) + ".safetensors")
                save_file({"sum": self.sum(key).cpu().contiguous()}, path)
                files[key] = {"file": path.name, "bytes": path.stat().st_size, "sha256": file_hash(path)}
            for key, basis in self._bases.items():
                write_basis(part / (file_stem(key) + ".basis.safetensors"), basis)
            manifest = {
                "format": FORMAT,
                "status": "complete",
                **self.provenance,
                "targets": {name: asdict(target) for name, target in self.targets.items()},
                "files": files,
            }
            write_whole(part / "manifest.json", json.dumps(manifest, indent=2).encode())
        self.directory = Path(directory).absolute()
        self._files, self._bases = files, {}
        return self.directory

    @classmethod
    def load(cls, directory: str | Path) -> "Factors":
        """Open a factor directory; sums are read, and their SHA-256 checked, when used.

        Raises:
            FileNotFoundError: it is no factor directory, or a file is missing.
            ValueError: it is incomplete, of another format, or a file has the wrong size.
        """
        directory = Path(directory).absolute()
        path = directory / "manifest.json"
        if not path.is_file():
            raise FileNotFoundError(f"factors: expected a factor directory with manifest.json, got {directory}")
        try:
            manifest = json.loads(path.read_text())
            if manifest["format"] != FORMAT or manifest["status"] != "complete":
                raise ValueError(
                    f"factors: expected format {FORMAT} with status 'complete', got "
                    f"{manifest['format']} with {manifest['status']!r} in {path}"
                )
            targets = {
                name: Target(**{**entry, "shape": tuple(entry["shape"])})
                for name, entry in manifest.pop("targets").items()
            }
            files = manifest.pop("files")
        except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(f"factors: {path} is damaged ({error!r}); fit again") from error
        for entry in files.values():
            part = directory / entry["file"]
            if not part.is_file():
                raise FileNotFoundError(f"factors: {part} is missing; fit again")
            if part.stat().st_size != entry["bytes"]:
                raise ValueError(
                    f"factors: {part} is truncated: expected {entry['bytes']} bytes, got "
                    f"{part.stat().st_size}; fit again"
                )
        provenance = {key: value for key, value in manifest.items() if key not in ("format", "status")}
        factors = cls(targets, {}, provenance, directory=directory)
        factors._files = files
        return factors

    def require_model(self, model: nn.Module) -> None:
        """Refuse a model whose target weights are not those the factors were fitted on.

        Raises:
            ValueError: names the first differing target.
        """
        modules = dict(model.named_modules())
        for name, target in self.targets.items():
            module = modules.get(name)
            if module is None or not linear.is_linear_map(module):
                raise ValueError(
                    f"model: expected a linear map {name!r}, as the factors have, got {type(module).__name__}"
                )
            if target.weight_sha256 and fingerprint(module) != (target.weight_sha256, target.weight_dtype):
                raise ValueError(
                    f"model: the weight of {name!r} is not the one the factors were fitted on; "
                    "use the factors' own model, or fit again"
                )


def _groups(keys: list[str], size: int) -> Iterator[list[str]]:
    """As many factors at a time as make 64 MiB; large ones alone."""
    number = 1 if size > SMALL else max(1, (1 << 26) // (4 * size * size))
    for start in range(0, len(keys), number):
        yield keys[start : start + number]


def _require_mergeable(first: Factors, other: Factors) -> None:
    for name in sorted({*first.targets, *other.targets}):
        if name not in first.targets or name not in other.targets:
            raise ValueError(f"merge: target {name!r} is in one part only")
        ours, theirs = ({**asdict(part.targets[name]), "tokens": 0} for part in (first, other))
        if ours != theirs:
            raise ValueError(f"merge: target {name!r} differs: {ours} and {theirs}")
    if first.keys_of_sums() != other.keys_of_sums():
        raise ValueError("merge: the parts hold different kinds of factors")
    for field in ("labels", "task"):
        one, two = first.provenance.get(field), other.provenance.get(field)
        if one != two:
            raise ValueError(f"merge: {field} differs: {one!r} and {two!r}")
