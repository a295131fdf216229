"""The fixed reference of nDCG@10: the unedited model's most likely tokens at each position."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from curvedit.files import write_whole

FILE = "ndcg10_reference.safetensors"


@dataclass(frozen=True)
class Reference:
    """Top token ids ``(positions, 10)``, best first, and the SHA-256 of the text they belong to."""

    top: npt.NDArray[np.int32]
    data_sha256: str

    def save(self, path: Path) -> None:
        """Write the ids and the text's hash as one safetensors file."""
        facts = {"data": self.data_sha256, "sha256": self._hash()}
        write_whole(path, save({"top": self.top}, metadata={"reference": json.dumps(facts)}))

    @classmethod
    def load(cls, path: Path) -> "Reference":
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file is damaged, or is not such a file.
        """
        try:
            with safe_open(path, framework="numpy") as stored:
                facts = json.loads((stored.metadata() or {})["reference"])
                found = cls(stored.get_tensor("top"), facts["data"])
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
        return hashlib.sha256(text.encode() + self.top.tobytes()).hexdigest()
