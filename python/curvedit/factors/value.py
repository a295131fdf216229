"""Factors, the value that ``fit`` returns and ``rank`` takes: a model's Kronecker factors.

For each target ``y = W a`` with ``g = dL/dy`` (``L`` is the *sum* of the loss over contributing
positions): ``A = E[a a^T]``, ``G = E[g g^T]``, and the norm-weighted ``A_w = E[|g|^2 a a^T]``,
``G_w = E[|a|^2 g g^T]``. They are stored as tile-packed float32 *sums* with a count of positions,
so that factors of disjoint data add exactly, and read as means. Targets fed by the same tensor
share one ``A``.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from curvedit import meter
from curvedit.checks import require_finite, require_shape
from curvedit.factors.basis import Basis, BasisStore
from curvedit.factors.decomposition import decompose_several, groups
from curvedit.factors.directory import (
    MANIFEST,
    StoredSums,
    identities,
    read_directory,
    write_directory,
)
from curvedit.factors.merging import merged_provenance, require_alike, require_disjoint
from curvedit.factors.target import Key, Target, TargetFactors, fingerprint
from curvedit.files import file_hash, new_directory
from curvedit.models import find_targets, instead_of, maps_of, weight_hash, weight_of
from curvedit.ops import tiles

_REMEDIES = {"A_w": "weighted=True", "G_w": "weighted=True", "S": "corrected='sequence'"}


class Factors(Mapping[str, TargetFactors]):
    """Kronecker factors of a model's targets, in memory or in a directory.

    ``factors[name].A`` is the mean, and ``factors.basis("A", name)`` its eigendecomposition, cached
    beside the factors. ``provenance`` records their origin (labels, seed, data, model).
    """

    def __init__(
        self,
        targets: Mapping[str, Target],
        sums: Mapping[Key, Tensor],  # tile-packed float32; "S" dense
        provenance: Mapping[str, Any],
    ) -> None:
        """Hold the given sums, in memory or as files that are read on access."""
        self.targets = dict(targets)
        self.provenance = dict(provenance)
        self.directory: Path | None = None
        self._sums = sums
        self._bases = BasisStore()

    def __getitem__(self, name: str) -> TargetFactors:
        """Return the factors of one target, as means."""
        target = self._target(name)
        return TargetFactors(name, target.tokens, target.shape, self)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the target names."""
        return iter(self.targets)

    def __len__(self) -> int:
        """Number of targets."""
        return len(self.targets)

    def _target(self, name: str) -> Target:
        if name not in self.targets:
            raise KeyError(f"target {name!r} was not fitted; fitted are {sorted(self.targets)}")
        return self.targets[name]

    def _key(self, kind: str, name: str) -> Key:
        return self._target(name).key(kind, name)

    def _size(self, key: Key) -> int:
        return self.targets[key.target].shape[1 if key.kind.startswith("A") else 0]

    def _numel(self, key: Key) -> int:
        rows, columns = self.targets[key.target].shape
        return rows * columns if key.kind == "S" else tiles.numel(self._size(key))

    def sum(self, key: str) -> Tensor:
        """Return the sum of a key, one of :meth:`keys_of_sums`: tile-packed, except "S" (dense).

        Raises:
            KeyError: it was not fitted.
            ValueError: its file is damaged.
        """
        found = Key.parse(key)
        if found not in self._sums:
            remedy = _REMEDIES.get(found.kind)
            raise KeyError(
                f"{found.kind} of {found.target} was not fitted; fit again with {remedy}"
                if remedy
                else f"no factor {key}"
            )
        return self._sums[found]

    def mean(self, kind: str, name: str) -> Tensor:
        """Return a dense float32 mean of one target: ``(n, n)``, or ``(d_out, d_in)`` for "S".

        ``kind`` is one of "A", "G", "A_w", "G_w" and "S".

        Raises:
            KeyError: it was not fitted.
            ValueError: its file is damaged.
        """
        key = self._key(kind, name)
        total: Tensor = (
            self.sum(key) if kind == "S" else tiles.unpack(self.sum(key), self._size(key))
        )
        return total / self._target(name).tokens

    def frequency(self, name: str) -> float:
        """How often a target is called per position that the loss was summed over.

        Less than 1 for an expert, 1 for most. The curvature of the mean loss is this many times
        the product of the target's factors. Taken as 1 where the positions are not known.
        """
        positions = self.provenance.get("positions")
        tokens = self._target(name).tokens
        return tokens / positions if isinstance(positions, int) and positions > 0 else 1.0

    def add_corrections(self, sums: Mapping[Key, Tensor], **facts: Any) -> None:
        """Add each target's corrected eigenvalues "S" (d_out, d_in), measured in its present bases.

        Raises:
            ValueError: the factors were saved already; a directory is written only once.
        """
        if self.directory is not None:
            raise ValueError(
                f"factors: expected unsaved factors, got those saved in {self.directory}"
            )
        self._sums = {**self._sums, **sums}
        bases = {key.target: self._hash_of_bases(key.target) for key in sums}
        self.provenance["corrected"] = {**facts, "bases": bases}

    def corrections(self, name: str) -> Tensor:
        """Return the EK-FAC eigenvalues of one target, ``(d_out, d_in)`` float32.

        Raises:
            KeyError: they were not fitted.
            ValueError: the factors were decomposed again since, so these belong to other bases.
        """
        values = self.mean("S", name)
        if self.provenance["corrected"]["bases"][name] != self._hash_of_bases(name):
            raise ValueError(
                f"factors: the bases of {name!r} differ from those its corrections were fitted in; "
                "fit again"
            )
        return values

    def _hash_of_bases(self, name: str) -> str:
        return "".join(weight_hash(self.basis(kind, name).vectors)[:16] for kind in ("G", "A"))

    def basis(self, kind: str, name: str) -> Basis:
        """Return the eigendecomposition of a mean factor, computed once and cached.

        Raises:
            KeyError: the factor was not fitted.
            ValueError: the factor, or its cached basis, is damaged or not valid; or that basis is
                of another factor.
            RuntimeError: it could not be decomposed accurately enough.
        """
        return self._bases.get(self._decomposed(kind, name))

    def spectrum(self, kind: str, name: str) -> Tensor:
        """Return the eigenvalues of a mean factor, (n,) float64, without reading its eigenvectors.

        Raises what :meth:`basis` raises.
        """
        return self._bases.spectrum(self._decomposed(kind, name)).values

    def certificate(self, kind: str, name: str) -> Mapping[str, Any]:
        """Return the record of how well a basis satisfies its defining equations.

        The keys are ``residual``, ``orthogonality``, ``rank``, ``smallest``, ``condition``,
        ``precision`` and ``retried``. Raises what :meth:`basis` raises.
        """
        return self._bases.spectrum(self._decomposed(kind, name)).certificate

    def _decomposed(self, kind: str, name: str) -> Key:
        """Return the key of a factor that has been decomposed, now if not before."""
        key = self._key(kind, name)
        if key not in self._bases:
            self.decompose([(kind, name)], progress=False)
        return key

    def decompose(self, kinds: Iterable[tuple[str, str]], *, progress: bool = True) -> None:
        """Decompose factors ahead of :meth:`basis`, several small ones at a time.

        Args:
            kinds: Pairs of a kind, "A", "G", "A_w" or "G_w", and a target.
            progress: Show a progress bar, in units of n^3 operations.

        Raises:
            KeyError: a factor was not fitted.
            ValueError: a factor is not finite, not positive semi-definite, or too large.
            RuntimeError: a factor could not be decomposed accurately enough.
        """
        missing = {key: pair for pair in kinds if (key := self._key(*pair)) not in self._bases}
        if not missing:
            return
        sizes = {key: self._size(key) for key in missing}
        work = sum(size**3 for size in sizes.values())
        with meter.progress(work, unit="op", what="decompose", shown=progress) as bar:
            for keys in groups(sizes):
                names = [" of ".join(missing[key]) for key in keys]
                bar.note(names[0])
                factors = [self.mean(*missing[key]) for key in keys]
                for key, basis in zip(keys, decompose_several(names, factors), strict=True):
                    self._bases.keep(key, basis)
                    bar.update(sizes[key] ** 3)

    @property
    def identity(self) -> str:
        """SHA-256 of the manifest on disk, or ``""`` if the factors were never saved."""
        return file_hash(self.directory / MANIFEST) if self.directory else ""

    @classmethod
    def from_moments(
        cls, moments: Mapping[str, tuple[Tensor, Tensor, int]], *, model: nn.Module | None = None
    ) -> "Factors":
        """Build factors from second moments that were computed elsewhere.

        Args:
            moments: Per target name ``(A, G, tokens)``: mean second moments ``(d_in, d_in)`` and
                ``(d_out, d_out)``, and the number of positions they are means over. Targets given
                the same tensor object as ``A`` share it.
            model: If given, each target must be one of its linear maps. Its weights are recorded,
                so that ``project`` can refuse another model.

        Returns:
            The factors. Without a model, ``project`` cannot check which weights they belong to.

        Raises:
            ValueError: a moment is not square, not finite, or does not fit the model.
        """
        maps = {} if model is None else find_targets(model, list(moments))
        targets: dict[str, Target] = {}
        sums: dict[Key, Tensor] = {}
        leaders: dict[int, str] = {}
        for name, (second_in, second_out, tokens) in moments.items():
            require_shape(
                f"moments[{name!r}][0]", second_in, (second_in.shape[0], second_in.shape[0])
            )
            require_shape(
                f"moments[{name!r}][1]", second_out, (second_out.shape[0], second_out.shape[0])
            )
            require_finite(f"moments[{name!r}][0]", second_in)
            require_finite(f"moments[{name!r}][1]", second_out)
            if tokens < 1:
                raise ValueError(
                    f"moments[{name!r}][2]: expected a positive number of positions, got {tokens}"
                )
            leader = leaders.setdefault(id(second_in), name)
            shape = (second_out.shape[0], second_in.shape[0])
            if name in maps:
                require_shape(f"moments[{name!r}]", weight_of(maps[name]), shape)
            sums.setdefault(Key("A", leader), tiles.pack(second_in.float() * tokens))
            sums[Key("G", name)] = tiles.pack(second_out.float() * tokens)
            targets[name] = Target(shape, leader, int(tokens), *fingerprint(maps.get(name)))
        return cls(targets, sums, {"labels": "unknown", "made_by": "from_moments"})

    @classmethod
    def merge(cls, parts: Iterable["Factors"]) -> "Factors":
        """Merge factors of disjoint data into those of its union, by adding sums and counts.

        Raises:
            ValueError: the parts differ in targets, weights, input groups, kinds, labels or task;
                were fitted on data that overlap; or hold corrected eigenvalues, which belong to the
                bases of a single part.
        """
        first, *rest = list(parts)
        if any("corrected" in part.provenance for part in (first, *rest)):
            raise ValueError(
                "merge: expected parts without corrected eigenvalues, which belong to the bases of "
                "a single part; fit without corrected="
            )
        for part in rest:
            require_alike(first, part)
        provenances = [part.provenance for part in (first, *rest)]
        require_disjoint(provenances)
        sums = {key: first.sum(key).clone() for key in first.keys_of_sums()}
        tokens = {name: target.tokens for name, target in first.targets.items()}
        for part in rest:
            for key, total in sums.items():
                total += part.sum(key)
            for name, target in part.targets.items():
                tokens[name] += target.tokens
        targets = {
            name: replace(target, tokens=tokens[name]) for name, target in first.targets.items()
        }
        return cls(targets, sums, merged_provenance(provenances))

    def keys_of_sums(self) -> list[Key]:
        """Return the keys of all sums, sorted."""
        return sorted(self._sums)

    def save(self, directory: str | Path) -> Path:
        """Write the factors to a new directory, in which bases are cached from then on.

        Returns:
            The directory, as an absolute path.

        Raises:
            FileExistsError: the directory is not empty.
            OSError: it cannot be written; nothing is left behind.
        """
        needed = sum(4 * self._numel(key) for key in self._sums)
        with new_directory("directory", directory, needed_bytes=needed) as part:
            files = write_directory(part, self.targets, self._sums, self.provenance)
            known = identities(self.targets, files)
            self._bases.write(part, known)
        self.directory = Path(directory).absolute()
        self._sums = StoredSums(self.directory, files)
        self._bases.move(self.directory, known)
        return self.directory

    @classmethod
    def load(cls, directory: str | Path) -> "Factors":
        """Open a factor directory; each sum is read, and its SHA-256 checked, when it is used.

        Raises:
            FileNotFoundError: it is not a factor directory, or a file is missing.
            ValueError: it is incomplete or damaged, has another format, or a file has the wrong
                size.
        """
        directory = Path(directory).absolute()
        targets, sums, provenance = read_directory(directory)
        factors = cls(targets, sums, provenance)
        factors.directory = directory
        factors._bases.move(directory, identities(targets, sums.files))
        return factors

    def require_model(self, model: nn.Module) -> None:
        """Refuse a model whose target weights are not those the factors were fitted on.

        Raises:
            ValueError: a target differs or is missing; the message names the first.
        """
        maps = maps_of(model)
        for name, target in self.targets.items():
            module = maps.get(name)
            if module is None:
                raise ValueError(
                    f"model: expected a linear map {name!r}, as in the factors, "
                    f"got {instead_of(model, name)}"
                )
            if target.weight_sha256 and fingerprint(module) != (
                target.weight_sha256,
                target.weight_dtype,
            ):
                raise ValueError(
                    f"model: the weight of {name!r} is not the one the factors were fitted on; "
                    "use the factors' own model, or fit again"
                )
