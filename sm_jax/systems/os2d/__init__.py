"""OS2D: one-shot detection by dense correlation with an aligned template (ECCV 2020)."""

import functools

from sm_jax.errors import ConfigError
from sm_jax.systems.base import System
from sm_jax.systems.os2d import model, objective, predict


def make(config) -> System:
    """The system of `config.model` and `config.objective` (see `ModelConfig` and `ObjectiveConfig`).

    Args:
      config: a config with those two sections, as mappings.

    Returns:
      `System`; `init` needs no batch, `loss` no key.

    Raises:
      ConfigError: an unknown key, or a value that cannot be run.
    """
    model_config = model.ModelConfig.create(config.model)
    objective_config = objective.ObjectiveConfig.create(config.objective)
    loss = functools.partial(objective.loss, model_config, objective_config)
    return System(
        init=lambda key, batch=None: model.init(model_config, key),
        loss=_refuse if model_config.window else loss,
        encode=predict.parts(model_config).encode,
        predict=functools.partial(predict.predict_level, model_config),
        trainable=functools.partial(model.trainable, model_config),
    )


def _refuse(*_):
    raise ConfigError("model.window: a sliding window does not train; evaluate it, or set steps=0")
