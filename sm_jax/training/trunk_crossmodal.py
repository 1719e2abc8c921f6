"""The frozen units of the cross-modal backbone, and the file of their features; see `trunk`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import data
from sm_jax.backbones import mobilenet
from sm_jax.data import stored
from sm_jax.data.crossmodal import prepare
from sm_jax.errors import ConfigError
from sm_jax.systems.crossmodal import model
from sm_jax.training import trunk
from sm_jax.training.feature_file import FeatureFile, Say
from sm_jax.weights.io import flatten


class Trunk:
    """See `trunk.Trunk`.

    Attributes:
      file: of the features.
    """

    def __init__(self, config: Any):
        self._model = model.ModelConfig.create(config.model)
        self._cut = cut = model.cut(self._model)
        if not cut:
            raise ConfigError(
                "data.cache_trunk: nothing of the backbone is frozen (model.trainable=all), so its features "
                "change with every step; set data.cache_trunk=False or model.trainable=last2"
            )
        if config.data.get("flips", False):
            raise ConfigError(
                "data.cache_trunk: stored features cannot be mirrored; set data.flips=False or "
                "data.cache_trunk=False"
            )
        shapes = flatten(jax.eval_shape(lambda: model.init(self._model, jax.random.key(0))))
        mine = {name: leaf for name, leaf in shapes.items() if name.split("/")[1] == "backbone"}
        self.variables, name = trunk.load(mine, config.get("init", {}), backbone="mobilenetv2-tv")
        self.weights_hash = self.hash_of(self.variables)
        source = data.make_phrase_source(config.data, "train")
        size = self._model.image_size
        self.file = FeatureFile(
            trunk.file_path(
                config, f"cut{cut}", self.weights_hash, trunk.data_hash(config.data, source, size)
            ),
            (len(source), *mobilenet.unit_output(cut - 1, size)),
            picture=lambda index: prepare(source.image(index), size)[0],
            size=size,
            compute=self._compute,
            what="pictures",
            of=name,
        )

    def hash_of(self, variables: Any) -> str:
        """Of the frozen units among `variables`, their number, and how they compute."""
        how = f"{self._cut} {self._model.dtype} {self._model.padding}"
        return trunk.weights_hash(variables, lambda path: not model.trainable(self._model, path), how)

    def fill(self, say: Say) -> stored.StoredFeatures:
        """Compute what is not there yet; returns the features by picture."""
        self.variables = jax.device_put(self.variables, jax.local_devices()[0])
        return stored.StoredFeatures(self.file.fill(say))

    def _compute(self, images: np.ndarray) -> jax.Array:
        return _features(self._model, self.variables, images)


@jax.jit(static_argnums=0)
def _features(config: model.ModelConfig, variables: Any, images: jax.Array) -> jax.Array:
    return model.trunk(config, variables, images).astype(jnp.float16)
