"""Match the regions of two images of one class by appearance and geometry: SCNet (ICCV 2017)."""

import functools

from sm_jax.errors import ConfigError
from sm_jax.systems.base import System
from sm_jax.systems.scnet import model


def make(config) -> System:
    """The system of `config.model` and `config.objective` (see `ModelConfig` and `ObjectiveConfig`).

    Args:
      config: a config with those two sections, as mappings; of `optim`, if it is there, is read who takes
        turns.

    Returns:
      `System`; `init` needs no batch. `encode` takes the source side, `predict` the target side.

    Raises:
      ConfigError: an unknown key, or a value that cannot be run.
    """
    from sm_jax.systems.scnet import objective  # who only matches needs no losses

    model_config = model.ModelConfig.create(config.model)
    objective_config = objective.ObjectiveConfig.create(config.objective)
    _check_turns(model_config, getattr(config, "optim", {}))
    return System(
        init=lambda key, batch=None: model.init(model_config, key),
        loss=functools.partial(objective.loss, model_config, objective_config),
        encode=functools.partial(model.encode, model_config),
        predict=functools.partial(model.predict, model_config),
        trainable=functools.partial(model.trainable, model_config),
    )


def _check_turns(model_config: model.ModelConfig, optim) -> None:
    """Refuse a schedule of AG+ that the optimizer does not follow: the parts would train together, or not."""
    if model_config.variant != "AG+" or "alternate" not in optim:
        return
    wanted = model_config.agplus_schedule
    if (wanted == "alternate") != bool(optim["alternate"]):
        raise ConfigError(
            f"model.agplus_schedule={wanted!r} does not go with optim.alternate={tuple(optim['alternate'])}; "
            f"configs/scnet.py:schedule={wanted} sets both"
        )
