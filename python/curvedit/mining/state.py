"""What an interrupted screening has found, kept in a file beside the output."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


class State:
    """What an interrupted screening has found, in a file beside the output.

    The first line says what is screened, and each further one holds the counts of some windows. A
    last line without an end was being written when the process stopped; it is dropped.
    """

    def __init__(self, path: Path, what: dict[str, Any]) -> None:
        """Begin the file, or open the one that an interrupted run left.

        Raises:
            ValueError: the file belongs to another model, corpus or settings.
        """
        self.path, head = path, json.dumps(what, sort_keys=True)
        self._counts: list[int] = []
        if path.exists():
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            lines = whole.decode("utf-8", "replace").splitlines()
            if lines and lines[0] != head:
                raise ValueError(
                    f"out: expected {path} to be of an interrupted run with the same model, corpus "
                    f"and settings, got one with another {_difference(lines[0], what)}; "
                    "remove it, or choose another output"
                )
            self._counts = [count for line in lines[1:] for count in json.loads(line)]
            if len(whole) != len(content) or not lines:
                path.write_bytes(whole or f"{head}\n".encode())
            return
        path.write_text(head + "\n", encoding="utf-8")

    def fill(self, right: npt.NDArray[np.int64]) -> int:
        """Fill in the counts that are known; return how many."""
        known = self._counts[: len(right)]
        right[: len(known)] = known
        return len(known)

    def add(self, counts: npt.NDArray[np.int64]) -> None:
        """Keep the counts of the next windows."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(counts.tolist()) + "\n")

    def remove(self) -> None:
        """Remove the file: the screening is done."""
        self.path.unlink(missing_ok=True)


def _difference(head: str, what: dict[str, Any]) -> str:
    """The first entry in which two runs differ."""
    try:
        found = json.loads(head)
    except ValueError:
        return "content"
    other = found if isinstance(found, dict) else {}
    return next((key for key in what if other.get(key) != what[key]), "content")
