"""Damaged pictures of an evaluation: a few are left out and named, many stop it."""

import math
from collections import Counter

from sm_jax.errors import DataError

MAX_SHARE = 0.01


class Damaged:
    """The pictures that could not be read.

    Attributes:
      lines: one for each, in the order of reading.
    """

    def __init__(self):
        self.lines: list[str] = []
        self._counts: Counter[str] = Counter()

    def add(self, kind: str, line: str, *, total: int) -> None:
        """Note a damaged picture; one of a kind is always borne, however few there are.

        Args:
          kind: what the picture is, singular, such as "image".
          line: what is wrong with it.
          total: number of pictures of this kind.

        Raises:
          DataError: more than one and more than 1 % of the kind are damaged.
        """
        self.lines.append(line)
        self._counts[kind] += 1
        if self._counts[kind] > max(1, math.floor(MAX_SHARE * total)):
            listed = "; ".join(self.lines[:3])
            raise DataError(
                f"more than 1 % of the {kind}s to evaluate on are damaged ({listed}); see sm-jax data check"
            )
