"""Train a matcher, or continue a run.

  python train.py [--config=FILE[:ARGS]] [--workdir=DIR] [--config.KEY=VALUE ...] [--profile]

  --config=FILE[:ARGS]  config file and its arguments, such as configs/os2d.py:runlocal (default os2d.py)
  --config.KEY=VALUE    set one value, for example --config.optim.lr=0.01
  --workdir=DIR         where the run lives (default runs/SYSTEM-TIME); a run that is there is continued
  --profile             write a profiler trace of a few steps to WORKDIR/profile

Ctrl-C or SIGTERM saves at the next step and leaves; the same command with the same --workdir goes on.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sm_jax import platform
from sm_jax.errors import run_main

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "os2d.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Train by the command line `argv` (default: this process's); returns the exit status."""
    platform.setup()
    from sm_jax import training  # after the platform is settled
    from sm_jax.data import GENERATED
    from sm_jax.data.sources.files import outside
    from sm_jax.training import commandline
    from sm_jax.training.signals import Interrupted

    config, options = commandline.parse(
        sys.argv[1:] if argv is None else argv,
        config=str(DEFAULT_CONFIG),
        options={"workdir": "", "profile": False},
        help=__doc__,
    )
    if options["profile"]:
        with config.unlocked():
            config.profile = True
    workdir = options["workdir"] or f"runs/{config.system}-{time.strftime('%Y%m%d-%H%M%S')}"
    print(f"workdir: {workdir}", flush=True)
    source = config.get("data", {}).get("source", "shelves")
    if source not in GENERATED:
        outside(workdir, source)
    try:
        training.train(config, workdir)
    except Interrupted:
        print("stopped before the first step; with this workdir the same command goes on")
    except KeyboardInterrupt:
        print("interrupted twice: left without saving", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
