"""What the command lines of the benchmarks share: options, sections, settings of both frameworks, output."""

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure, report
from sm_jax.errors import ConfigError

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def numbers(kind):
    """A comma-separated list of `kind`, at least one, all positive."""

    def parse(text):
        values = tuple(kind(part) for part in text.split(","))
        if not all(value > 0 for value in values):
            raise argparse.ArgumentTypeError(f"{text!r}: must be positive")
        return values

    return parse


def add_common(add: Callable[..., Any], sections: Sequence[str]) -> None:
    """The options that every benchmark has."""
    add("--device", choices=("cpu", "cuda"), default="cpu", help="of both frameworks")
    add("--sections", default=",".join(sections), help=f"comma-separated, of {','.join(sections)}")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the features")
    add("--tf32", action="store_true", help="allow TF32 in both frameworks (GPU); otherwise full float32")
    add("--rounds", type=int, default=9, help="rounds of every comparison; at least 7 for figures to report")
    add("--threads", type=int, default=0, help="of PyTorch; 0: as many as there are cores for this process")
    add("--json", metavar="FILE", help="write everything here too")


def chosen(text: str, sections: Sequence[str]) -> list[str]:
    """The sections of `--sections`.

    Raises:
      ConfigError: one that there is not.
    """
    names = text.split(",")
    unknown = [name for name in names if name not in sections]
    if unknown:
        raise ConfigError(f"--sections: {unknown[0]!r} is none of {', '.join(sections)}")
    return names


def settle(options: argparse.Namespace, *, peer: bool = True) -> None:
    """Both frameworks on the device and in the precision asked for; before either does any work.

    Without `peer` PyTorch takes no part and need not be there.
    """
    measure.quiet_threads()
    if options.device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    if options.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are measured
    jax.config.update("jax_default_matmul_precision", "default" if options.tf32 else "highest")
    if peer:
        _settle_torch(options)
    if options.device == "cuda" and jax.default_backend() != "gpu":
        raise ConfigError("--device cuda: jax finds no GPU; install jax[cuda12], or use --device cpu")


def _settle_torch(options: argparse.Namespace) -> None:
    try:
        import torch
    except ImportError as error:
        raise ConfigError("PyTorch is not installed; pip install 'sm_jax[convert]'") from error
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(options.threads or CORES)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no CUDA device; use --device cpu")


def collect(options: argparse.Namespace, rows: Iterator[measure.Row]) -> dict[str, Any]:
    """Print where this runs, and each of `rows` as it comes; returns everything."""
    clock = measure.clock(options.device)
    facts = measure.environment(options.device)
    report.environment(facts, vars(options))
    done = []
    for row in rows:
        report.row(row, clock=clock)
        done.append(row)
    report.footnotes(clock)
    facts["load_average_after"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"environment": facts, "options": vars(options), "rows": done}


def finish(options: argparse.Namespace, result: dict[str, Any]) -> int:
    """Write what `--json` asks for; the exit status."""
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1))
    return 0
