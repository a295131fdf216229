"""The value that ``fit`` returns and ``rank`` takes: Kronecker factors and their eigenbases."""

from curvedit.factors.basis import Basis
from curvedit.factors.decomposition import decompose, singular_bases
from curvedit.factors.target import Key, Target, fingerprint
from curvedit.factors.value import Factors

__all__ = ["Basis", "Factors", "Key", "Target", "decompose", "fingerprint", "singular_bases"]
