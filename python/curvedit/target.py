"""One fitted linear map, and its factors as means."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from curvedit import linear


@dataclass(frozen=True)
class Target:
    """One fitted linear map."""

    shape: tuple[int, int]  # (d_out, d_in)
    inputs: str  # the first target fed by the same tensor; its A is this target's A
    tokens: int  # contributing positions
    weight_sha256: str  # linear.weight_hash of the weight it was fitted on; "" if unknown
    weight_dtype: str  # "torch.float32"; "" if unknown


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
    """Hash and dtype of a linear map's weight; two empty strings for none."""
    if module is None:
        return "", ""
    weight = linear.weight_of(module)
    return linear.weight_hash(weight), str(weight.dtype)
