"""Mining: finds the passages of a corpus that a model recites."""

from curvedit.mining.stage import Mined, mine

__all__ = ["Mined", "mine"]
