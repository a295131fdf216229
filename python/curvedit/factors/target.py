"""A fitted linear map: its record, the keys of its sums, and its factors A and G as means."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from curvedit.models import is_quantised, weight_hash, weight_of

KINDS = ("A", "G", "A_w", "G_w", "S")


class Key(str):
    """The kind and target of a sum or a basis; as a string, ``"A/<target>"``, as in manifests."""

    kind: str  # one of KINDS
    target: str  # the linear map; for a shared "A", the first one fed by that tensor

    def __new__(cls, kind: str, target: str) -> "Key":
        """Build the key from its parts."""
        self = super().__new__(cls, f"{kind}/{target}")
        self.kind, self.target = kind, target
        return self

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        """Return the parts, for copying and pickling."""
        return self.kind, self.target

    @classmethod
    def parse(cls, text: str) -> "Key":
        """Parse ``"<kind>/<target>"``."""
        kind, _, target = text.partition("/")
        return cls(kind, target)


@dataclass(frozen=True)
class Target:
    """One fitted linear map."""

    shape: tuple[int, int]  # (d_out, d_in)
    input_group: str  # the first target fed by the same tensor; its A is this target's A
    tokens: int  # contributing positions
    weight_sha256: str  # models.weight_hash of the weight it was fitted on; "" if unknown
    weight_dtype: str  # such as "torch.float32"; "" if unknown

    def key(self, kind: str, name: str) -> Key:
        """Return the key of this target's factor of a kind; ``name`` is the target's own name."""
        return Key(kind, self.input_group if kind == "A" else name)

    def to_json(self) -> dict[str, Any]:
        """Return the target's entry in a manifest."""
        return {
            "shape": self.shape,
            "inputs": self.input_group,
            "tokens": self.tokens,
            "weight_sha256": self.weight_sha256,
            "weight_dtype": self.weight_dtype,
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Target":
        """Invert :meth:`to_json`.

        Raises:
            KeyError: an entry is missing.
            ValueError: the shape or the number of positions is not one.
        """
        rows, columns = entry["shape"]
        counts = (rows, columns, entry["tokens"])
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"expected a shape and a number of positions, got {counts}")
        return cls(
            (rows, columns),
            entry["inputs"],
            entry["tokens"],
            entry["weight_sha256"],
            entry["weight_dtype"],
        )


@dataclass(frozen=True)
class TargetFactors:
    """The factors of one target as means over its contributing positions, float32."""

    name: str
    tokens: int
    shape: tuple[int, int]  # (d_out, d_in)
    source: "_Source"

    @property
    def A(self) -> Tensor:  # noqa: N802
        """``E[a a^T]``, ``(d_in, d_in)``."""
        return self.source.mean("A", self.name)

    @property
    def G(self) -> Tensor:  # noqa: N802
        """``E[g g^T]``, ``(d_out, d_out)``."""
        return self.source.mean("G", self.name)

    @property
    def A_w(self) -> Tensor:  # noqa: N802
        """``E[|g|^2 a a^T]``, ``(d_in, d_in)``."""
        return self.source.mean("A_w", self.name)

    @property
    def G_w(self) -> Tensor:  # noqa: N802
        """``E[|a|^2 g g^T]``, ``(d_out, d_out)``."""
        return self.source.mean("G_w", self.name)

    @property
    def S(self) -> Tensor:  # noqa: N802
        """``E[(U_G^T D U_A)^2]``, ``(d_out, d_in)``: EK-FAC's eigenvalues, per position."""
        return self.source.mean("S", self.name)


class _Source(Protocol):
    def mean(self, kind: str, name: str) -> Tensor: ...


def fingerprint(module: nn.Module | None) -> tuple[str, str]:
    """The hash and dtype of a linear map's weight; empty for None or a quantised weight."""
    if module is None or is_quantised(module):
        return "", ""
    weight = weight_of(module)
    return weight_hash(weight), str(weight.dtype)
