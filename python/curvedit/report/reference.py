"""The fixed reference of nDCG@10: the unedited model's most likely tokens at each position."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
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
        write_whole(
            path,
            save({"top": self.top}, metadata={"reference": json.dumps({"data": self.data_sha256})}),
        )

    @classmethod
    def load(cls, path: Path) -> "Reference":
        """Read what :meth:`save` wrote."""
        with safe_open(path, framework="numpy") as stored:
            metadata = stored.metadata() or {}
            if "reference" not in metadata:
                raise ValueError(
                    "reference: expected the top tokens of a baseline with the hash of their text, "
                    f"got {path} without one"
                )
            return cls(stored.get_tensor("top"), json.loads(metadata["reference"])["data"])
