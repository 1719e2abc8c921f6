"""CoAE: a two-stage detector of what one picture shows, by co-attention and co-excitation (NeurIPS 2019)."""

import functools

from sm_jax.systems.base import System
from sm_jax.systems.coae import model, objective, predict


def make(config) -> System:
    """The system of `config.model` and `config.objective` (see `ModelConfig` and `ObjectiveConfig`).

    Args:
      config: a config with those two sections, as mappings.

    Returns:
      `System`; `init` needs no batch.

    Raises:
      ConfigError: an unknown key, or a value that cannot be run.
    """
    model_config = model.ModelConfig.create(config.model)
    objective_config = objective.ObjectiveConfig.create(config.objective)
    return System(
        init=lambda key, batch=None: model.init(model_config, key),
        loss=functools.partial(objective.loss, model_config, objective_config),
        encode=functools.partial(model.encode, model_config),
        predict=functools.partial(predict.predict, model_config),
        trainable=functools.partial(model.trainable, model_config),
    )
