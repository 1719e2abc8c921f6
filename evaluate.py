"""Measure a model: a table, a JSON file and pictures of what it found.

  python evaluate.py [--workdir=DIR] [--config=FILE[:ARGS]] [--data=PATH] [--config.KEY=VALUE ...]

Without options: the newest run under runs/, or, if there is none, the packaged ImageNet features with the
identity transformation, on the default data (generated shelves, classes that no training saw).

  --workdir=DIR         the run to evaluate (its best checkpoint); results go to DIR/evaluation
  --step=N              another checkpoint of the run: a step, best or last
  --config=FILE[:ARGS]  evaluate what this config starts from, without a run; results go to runs/evaluation
  --data=PATH           another data set: COCO JSON, Pascal VOC folder, OS2D CSV, folder per class, shelves;
                        for a model of phrases: JSON of phrases, shapes or shelves; for SCNet: pairs with
                        key-points (PF-PASCAL, PF-WILLOW, CSV, JSON), figures, Caltech-101, PASCAL-Parts
  --split=NAME          another split
  --protocol=requests   single pictures of objects are the requests, for a model of pictures: docs/requests.md
  --out=DIR             where the results go
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from sm_jax import platform
from sm_jax.errors import run_main

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "os2d.py"
OPTIONS = {"workdir": "", "step": "", "data": "", "split": "", "protocol": "", "out": ""}


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate by the command line `argv` (default: this process's); returns the exit status."""
    platform.setup()
    from sm_jax.evaluators import session  # after the platform is settled

    argv = sys.argv[1:] if argv is None else argv
    return session.run(argv, config=str(DEFAULT_CONFIG), options=OPTIONS, help=__doc__)


if __name__ == "__main__":
    sys.exit(run_main(main))
