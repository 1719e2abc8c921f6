"""SCNet's frozen trunk, and the file of its feature maps; see `trunk`.

A map of 14 x 14 x 512 in float16 is 0.2 MB; the pooled features of its 500 regions would be 25 MB. So the
maps are stored, and regions pooled from them in every step: the file serves every choice of regions.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import data
from sm_jax.data import scnet, scnet_pairs, stored
from sm_jax.errors import ConfigError
from sm_jax.systems.scnet import model
from sm_jax.training import trunk
from sm_jax.training.feature_file import FeatureFile, Say
from sm_jax.weights.io import flatten


def check(config: Any) -> None:
    """Refuse a config that SCNet cannot be trained with, before its data is opened; raises ConfigError."""
    net = model.ModelConfig.create(config.model)
    if not config.data.get("cache_trunk", False):
        raise ConfigError(
            "data.cache_trunk=False: SCNet trains on stored features of its frozen trunk; leave it on"
        )
    if net.trainable != "heads":
        raise ConfigError(
            f"model.trainable={net.trainable}: SCNet trains on stored features of its trunk, which therefore "
            "stays as it is; leave it at heads"
        )
    if tuple(net.image_size) != (scnet_pairs.SIDE, scnet_pairs.SIDE):
        raise ConfigError(
            f"model.image_size: training pictures have {scnet_pairs.SIDE} x {scnet_pairs.SIDE} pixels, "
            f"not {net.image_size}"
        )
    if not model.trainable(net, "fc/kernel") and not config.init.get("model", ""):
        raise ConfigError(
            "model.agplus_schedule=freeze_a keeps the appearance embedding, which would be random; "
            "start from a trained A (configs/scnet.py:start=RUN), or take schedule=alternate or joint"
        )


class Trunk:
    """See `trunk.Trunk`.

    Attributes:
      file: of the features: of every picture, and with `data.flips` then of every mirrored one.
    """

    def __init__(self, config: Any):
        check(config)
        self._model = model.ModelConfig.create(config.model)
        self._statistics = None
        shapes = flatten(jax.eval_shape(lambda: model.init(self._model, jax.random.key(0))))
        if not config.init.get("model", ""):
            shapes = {name: leaf for name, leaf in shapes.items() if name.split("/")[1] == "backbone"}
        wanted = model.BACKBONES[self._model.backbone].weights
        self.variables, name = trunk.load(shapes, config.get("init", {}), backbone=wanted, needed=True)
        source = data.make_training_pairs(config)
        pictures = source.pictures
        if self._model.input_norm == "dataset_pixel" and "input" not in self.variables.get("batch_stats", {}):
            self._statistics = scnet.pixel_statistics(source)  # a model to start from has its own
        self.variables = self.complete(self.variables)
        self.weights_hash = self.hash_of(self.variables)
        shape = jax.ShapeDtypeStruct((1, *self._model.image_size, 3), jnp.float32)
        maps = jax.eval_shape(lambda v, x: model.features(self._model, v, x), self.variables, shape)
        self.file = FeatureFile(
            trunk.file_path(
                config,
                self._model.backbone,
                self.weights_hash,
                trunk.data_hash(config.data, pictures, source.flips, [str(path) for path in pictures.paths]),
            ),
            ((1 + source.flips) * len(pictures), *maps.shape[1:]),
            picture=lambda row: scnet.network_input(pictures, row).astype(np.float32),
            size=self._model.image_size,
            compute=self._compute,
            what="pictures",
            of=name,
            needed=True,
        )

    def complete(self, variables: Any) -> Any:
        """`variables` with the statistics of the training pictures, where the model takes them."""
        if self._statistics is None:
            return variables
        statistics = variables.get("batch_stats", {}) | {"input": self._statistics}
        return variables | {"batch_stats": statistics}

    def hash_of(self, variables: Any) -> str:
        """Of the trunk and its input statistics among `variables`, and of how it computes."""
        how = f"{self._model.backbone} {self._model.dtype} {self._model.input_norm} {self._model.image_size}"
        return trunk.weights_hash(variables, lambda path: path.split("/")[0] in ("backbone", "input"), how)

    def fill(self, say: Say) -> stored.StoredFeatures:
        """Compute what is not there yet; returns the features by picture."""
        self.variables = jax.device_put(self.variables, jax.local_devices()[0])
        return stored.StoredFeatures(self.file.fill(say))

    def _compute(self, images: np.ndarray) -> jax.Array:
        return _features(self._model, self.variables, images)


@jax.jit(static_argnums=0)
def _features(config: model.ModelConfig, variables: Any, images: jax.Array) -> jax.Array:
    return model.features(config, variables, images).astype(jnp.float16)
