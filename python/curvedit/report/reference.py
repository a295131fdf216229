"""The fixed reference of nDCG@10, top-1 agreement and KL divergence: the unedited predictions."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from curvedit.files import write_whole

FILE = "ndcg10_reference.safetensors"


@dataclass(frozen=True)
class Kept:
    """What a baseline's distributions are compared by: its likeliest tokens, and some of the rest.

    The first ``exact`` tokens of each position are its likeliest; the others were drawn from the
    rest, whose probability is ``rest``.
    """

    ids: npt.NDArray[np.int32]  # (positions, tokens)
    logs: npt.NDArray[np.float32]  # (positions, tokens) log probabilities
    rest: npt.NDArray[np.float32]  # (positions,)
    exact: int


@dataclass(frozen=True)
class Reference:
    """A baseline's predictions on a text: its likeliest tokens, and what KL divergence needs.

    ``top`` holds token ids ``(positions, 10)``, best first; ``data_sha256`` is of the text.
    """

    top: npt.NDArray[np.int32]
    data_sha256: str
    kept: Kept | None = None

    def save(self, path: Path) -> None:
        """Write the ids and the text's hash as one safetensors file."""
        facts: dict[str, Any] = {"data": self.data_sha256, "sha256": self._hash()}
        arrays: dict[str, npt.NDArray[Any]] = {"top": self.top}
        if self.kept is not None:
            facts["exact"] = self.kept.exact
            arrays |= {"ids": self.kept.ids, "logs": self.kept.logs, "rest": self.kept.rest}
        write_whole(path, save(arrays, metadata={"reference": json.dumps(facts)}))

    @classmethod
    def load(cls, path: Path) -> "Reference":
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file is damaged, or is not such a file.
        """
        try:
            with safe_open(path, framework="numpy") as stored:
                facts = json.loads((stored.metadata() or {})["reference"])
                kept = None
                if "exact" in facts:
                    ids, logs, rest = (stored.get_tensor(key) for key in ("ids", "logs", "rest"))
                    kept = Kept(ids, logs, rest, facts["exact"])
                found = cls(stored.get_tensor("top"), facts["data"], kept)
                written = facts.get("sha256", found._hash())
        except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                "reference: expected the top tokens of a baseline with the hash of their text, "
                f"got {path} without them ({error!r}); measure the baseline again"
            ) from error
        if written != found._hash():
            raise ValueError(
                f"reference: {path} is damaged (its content differs from its SHA-256); "
                "measure the baseline again"
            )
        return found

    def _hash(self) -> str:
        text = f"{self.top.dtype} {self.top.shape} {self.data_sha256} "
        digest = hashlib.sha256(text.encode() + self.top.tobytes())
        if self.kept is not None:
            for array in (self.kept.ids, self.kept.logs, self.kept.rest):
                digest.update(f"{array.shape}".encode() + array.tobytes())
        return digest.hexdigest()
