"""Match the regions of two images of one class by appearance and geometry: SCNet (ICCV 2017)."""

import functools

from sm_jax.systems.base import System
from sm_jax.systems.scnet import model


def make(config) -> System:
    """The system of `config.model` and `config.objective` (see `ModelConfig` and `ObjectiveConfig`).

    Args:
      config: a config with those two sections, as mappings.

    Returns:
      `System`; `init` needs no batch. `encode` takes the source side, `predict` the target side.

    Raises:
      ConfigError: an unknown key, or a value that cannot be run.
    """
    from sm_jax.systems.scnet import objective  # who only matches needs no losses

    model_config = model.ModelConfig.create(config.model)
    objective_config = objective.ObjectiveConfig.create(config.objective)
    return System(
        init=lambda key, batch=None: model.init(model_config, key),
        loss=functools.partial(objective.loss, model_config, objective_config),
        encode=functools.partial(model.encode, model_config),
        predict=functools.partial(model.predict, model_config),
        trainable=functools.partial(model.trainable, model_config),
    )
