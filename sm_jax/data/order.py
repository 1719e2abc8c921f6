"""What batches of all systems share: which examples belong to batch k, random streams, unreadable pictures.

The functions are pure functions of a seed.
"""

import numpy as np

MAX_REPLACEMENTS = 10  # tries to find another picture
SKIPPED = "skipped"  # key under which a batch carries what could not be read; taken out by `finish`

_EPOCH = 0  # the random stream of the order of an epoch; other purposes take other numbers


def rng(seed: int, *stream: int) -> np.random.Generator:
    """A generator that depends on the seed and the numbers of its stream alone."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=stream))


def picks(seed: int, k: int, *, count: int, size: int) -> list[int]:
    """Indices of the examples of global batch k: `count` examples follow a permutation of (seed, epoch), and
    a batch that reaches the end of an epoch goes on with the next."""
    positions = range(k * size, (k + 1) * size)
    epochs = {position // count for position in positions}
    orders = {epoch: rng(seed, _EPOCH, epoch).permutation(count) for epoch in epochs}
    return [int(orders[position // count][position % count]) for position in positions]


def rows(count: int, part: tuple[int, int]) -> range:
    """The rows of a batch of `count` that process `part[0]` of `part[1]` builds."""
    index, parts = part
    return range(index * count // parts, (index + 1) * count // parts)
