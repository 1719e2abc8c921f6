"""What a built folder says of the published data set in it: `published.json`, beside TFDS's own files."""

import json
import math
from pathlib import Path
from typing import NamedTuple

from sm_jax.errors import DataError

FILE = "published.json"


class Facts(NamedTuple):
    """How a published data set is searched.

    Attributes:
      name: of the data set.
      nominal: longer side of its pictures, pixels.
      eval_scale: what that side is brought to, pixels.
      views: of the class pictures, as `eval.views`.
      protocol: as `eval.protocol`.
    """

    name: str
    nominal: int
    eval_scale: int
    views: str
    protocol: str


def write(folder: Path, facts: Facts) -> None:
    """Leaves `facts` in a built folder."""
    (folder / FILE).write_text(json.dumps(facts._asdict(), indent=1) + "\n", "utf-8")


def read(folder: str | Path) -> Facts | None:
    """What `write` left; None without it. Raises DataError for a damaged file."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        facts = Facts(**json.loads(path.read_text("utf-8")))
        if not all(isinstance(value, int) and 0 < value < math.inf for value in facts[1:3]):
            raise ValueError("sizes must be positive")
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not readable ({str(error)[:60]}); build the data set again") from None
    return facts
