"""A trained run as one safetensors file that says which model it is for: weights, config, results.

The metadata holds what a person needs to use the file without the run: `sm_jax.config` (JSON: system, model,
data and eval sections, the vocabulary of a text system among them), `sm_jax.step`, `sm_jax.metrics` (JSON, of
the evaluation at that step) and `sm_jax.versions`.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from sm_jax.errors import WeightsError
from sm_jax.weights.io import check_shapes, flatten, read_metadata, read_tensors, save_variables

CONFIG = "sm_jax.config"
SECTIONS = ("system", "seed", "steps", "batch_size", "model", "objective", "data", "optim", "eval")
"""What of a run's config is kept; where checkpoints and devices were is of no use elsewhere."""


class Exported(NamedTuple):
    """What was written: the file, the checkpoint's step and results, how many tensors and numbers."""

    path: Path
    step: int
    metrics: dict[str, float]
    tensors: int
    numbers: int


def export(
    run: str | os.PathLike,
    out: str | os.PathLike,
    *,
    step: int | str | None = None,
    dtype: str = "f16",
    ema: bool | None = None,
) -> Exported:
    """Write the model of a training run to one file.

    Args:
      run: the run's folder.
      out: the `.safetensors` file; it appears only when it is complete.
      step: a step, "best", "last", or None: best where the run was evaluated, else last.
      dtype: "f16" stores kernels and tables in half precision (vectors and statistics stay float32), "f32".
      ema: see `training.restore_variables`.

    Raises:
      WeightsError: no such checkpoint, or a file that cannot be written; ConfigError: no run.
    """
    import jax
    import numpy as np

    from sm_jax.training import restore_config, restore_variables

    if not Path(run).expanduser().is_dir():
        raise WeightsError(f"{run}: no such folder; give the folder of a training run")
    config = restore_config(run)
    variables, meta = restore_variables(run, step, ema=ema)
    variables = jax.device_get(variables)
    kept = {key: value for key, value in config.items() if key in SECTIONS}
    metadata = {
        CONFIG: ConfigDict(kept).to_json_best_effort(sort_keys=True),
        "sm_jax.step": str(meta["step"]),
        "sm_jax.metrics": json.dumps(meta["metrics"], sort_keys=True),
        "sm_jax.versions": json.dumps(meta["versions"], sort_keys=True),
    }
    save_variables(out, variables, metadata, dtype=dtype)
    sizes = [np.size(value) for value in flatten(variables).values()]
    return Exported(Path(out), meta["step"], meta["metrics"], len(sizes), sum(sizes))


def verify(path: str | os.PathLike) -> str | None:
    """What an exported file holds, after its names and shapes were compared with the model of its config.

    None for a file without a config. Raises `WeightsError`, with a `-`/`+` list where the tensors differ.
    """
    config = read_config(path)
    if config is None:
        return None
    import jax

    from sm_jax import systems

    system = systems.make(config)
    shapes = flatten(jax.eval_shape(lambda: system.init(jax.random.key(0), None)))
    tensors, _ = read_tensors(path)
    check_shapes(
        {name: tensor.shape for name, tensor in tensors.items()},
        {name: leaf.shape for name, leaf in shapes.items()},
        where=str(path),
        what=f"the {config.system} model of its config",
    )
    return f"{config.system}, {len(tensors)} tensors, with its config"


def read_config(path: str | os.PathLike) -> ConfigDict | None:
    """The config that an exported file carries, sequences as tuples; None where it has none.

    Raises:
      WeightsError: a file that cannot be read, or whose config is damaged.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return None
    text = read_metadata(path).get(CONFIG)
    if text is None:
        return None
    try:
        values: Any = json.loads(text)
        values["system"], values["model"]
    except (ValueError, TypeError, KeyError):
        raise WeightsError(f"{path}: its config ({CONFIG} in the metadata) is damaged") from None
    from sm_jax.training import rundir

    return ConfigDict(rundir.tuples(values))
