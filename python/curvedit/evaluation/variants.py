"""Variants of passages: the same texts asked for in other ways."""

import random
from collections.abc import Callable
from dataclasses import replace

from curvedit.data import Ids, Passages


def shorter(passages: Passages, tokens: int) -> Passages:
    """Without the first ``tokens`` of each prefix; what begins every sequence (BOS) stays.

    Raises:
        ValueError: a prefix would be empty.
    """
    return _each(passages, lambda bare, suffix: (bare[tokens:], suffix), f"shorter by {tokens}")


def shifted(passages: Passages, tokens: int) -> Passages:
    """Cut ``tokens`` later in the same text; earlier where that is negative.

    Raises:
        ValueError: a prefix or suffix would be empty.
    """

    def cut(bare: Ids, suffix: Ids) -> tuple[Ids, Ids]:
        whole, place = bare + suffix, len(bare) + tokens
        return (whole[: max(place, 0)], whole[max(place, 0) :])

    return _each(passages, cut, f"shifted by {tokens}")


def perturbed(passages: Passages, share: float, *, seed: int = 0) -> Passages:
    """With a share of each prefix's tokens, at least one, replaced by others of the passages.

    Args:
        passages: The passages.
        share: Share of the tokens of each prefix.
        seed: Seeds which tokens, and by what they are replaced.

    Raises:
        ValueError: the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share: expected a number in (0, 1], got {share}")
    known = sorted({id_ for prefix, suffix in passages.rows() for id_ in prefix + suffix})
    generator = random.Random(seed)

    def change(bare: Ids, suffix: Ids) -> tuple[Ids, Ids]:
        ids = list(bare)
        for place in generator.sample(range(len(ids)), max(1, round(share * len(ids)))):
            others = [id_ for id_ in known if id_ != ids[place]] or known
            ids[place] = generator.choice(others)
        return tuple(ids), suffix

    return _each(passages, change, f"perturbed by {share:g}")


def _each(passages: Passages, change: Callable[[Ids, Ids], tuple[Ids, Ids]], name: str) -> Passages:
    opening = tuple(passages.identity.get("bos_ids", ()))
    prefixes, suffixes = [], []
    for number, (prefix, suffix) in enumerate(passages.rows()):
        head = opening if opening and prefix[: len(opening)] == opening else ()
        bare, rest = change(prefix[len(head) :], suffix)
        if not bare or not rest:
            raise ValueError(
                f"variants: expected a prefix and a suffix of at least 1 token, got {len(bare)} "
                f"and {len(rest)} of passage {number} {name}"
            )
        prefixes.append(head + bare)
        suffixes.append(rest)
    return replace(passages, prefixes=prefixes, suffixes=suffixes)
