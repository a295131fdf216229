"""The tune/test split: by source, so that no text is on both sides, and balanced."""

import random
from collections import Counter
from collections.abc import Sequence

from curvedit.mining.windows import Ids, runs_of

SIDES = ("tune", "test")
_RUN = 16  # tokens in a row that two sources share if one quotes the other


def split_sides(
    sources: Sequence[str],  # of each passage
    passages: Sequence[Ids],  # whole, in the same order
    texts: Sequence[tuple[str, Sequence[int]]],  # source and ids of every document
    *,
    seed: int,
) -> list[str]:
    """The side of each passage.

    All passages of a source are on one side, and so are those of sources of which one holds 16
    tokens in a row of a passage of the other. Groups of sources are dealt largest first, each to
    the side that has fewer passages so far.

    Args:
        sources: The source of each passage.
        passages: The token ids of each passage.
        texts: All documents, in which passages of other sources are looked for.
        seed: Seeds the order of groups of one size, and which side begins.

    Returns:
        "tune" or "test" for each passage; all "tune" if there is one group.
    """
    group = _joined(sources, passages, texts)
    sizes = Counter(group[source] for source in sources)
    generator = random.Random(seed)
    order = sorted(sizes)
    generator.shuffle(order)
    order.sort(key=lambda name: -sizes[name])  # stable: equal sizes stay shuffled
    count = dict.fromkeys(SIDES, 0)
    side = {}
    for name in order:
        side[name] = min(SIDES, key=lambda each: count[each])
        count[side[name]] += sizes[name]
    return [side[group[source]] for source in sources]


def _joined(
    sources: Sequence[str], passages: Sequence[Ids], texts: Sequence[tuple[str, Sequence[int]]]
) -> dict[str, str]:
    """The group of each source that has passages, named after one of its sources."""
    parent = {source: source for source in sources}

    def root(source: str) -> str:
        while parent[source] != source:
            source = parent[source]
        return source

    owner: dict[Ids, str] = {}
    for source, ids in zip(sources, passages, strict=True):
        for run in runs_of(ids, min(_RUN, len(ids))):
            one, other = root(source), root(owner.setdefault(run, source))
            parent[max(one, other)] = min(one, other)
    lengths = {len(run) for run in owner}
    for source, text in texts:
        if source not in parent:
            continue
        for length in lengths:
            for run in runs_of(text, length):
                if run in owner:
                    one, other = root(source), root(owner[run])
                    parent[max(one, other)] = min(one, other)
    return {source: root(source) for source in parent}
