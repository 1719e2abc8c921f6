"""Find objects of trained classes, or any: a two-stage detector (Ren et al., NIPS 2015), a baseline."""

import functools

from sm_jax.systems.base import System
from sm_jax.systems.detector import model, objective, predict


def make(config) -> System:
    """The system of `config.model` and `config.objective` (see `ModelConfig` and `ObjectiveConfig`).

    Args:
      config: a config with those two sections, as mappings.

    Returns:
      `System`; `init` needs no batch, and there are no requests: `encode` returns {}.

    Raises:
      ConfigError: an unknown key, or a value that cannot be run.
    """
    model_config = model.ModelConfig.create(config.model)
    objective_config = objective.ObjectiveConfig.create(config.objective)
    return System(
        init=lambda key, batch=None: model.init(model_config, key),
        loss=functools.partial(objective.loss, model_config, objective_config),
        encode=lambda variables, requests=None: {},
        predict=functools.partial(predict.predict, model_config),
        trainable=functools.partial(model.trainable, model_config),
    )
