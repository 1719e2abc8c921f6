"""The frozen stages of SSM's two branches, and the files of their features; see `trunk`.

There are two lists of pictures, the fixed windows and the fixed request crops of `data.fixed_crops`, and a
file for each.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import data
from sm_jax.backbones import googlenet
from sm_jax.data import ssm, stored, transforms
from sm_jax.errors import ConfigError
from sm_jax.systems.ssm import model
from sm_jax.training import trunk
from sm_jax.training.feature_file import FeatureFile, Say
from sm_jax.weights.io import flatten

NAMES = {"image": "windows", "request": "requests"}


class Trunk:
    """See `trunk.Trunk`.

    Attributes:
      pairs: the sampler, with the lists of windows and crops.
      files: of the features, by branch ("image", "request").
    """

    def __init__(self, config: Any):
        self._model = model.ModelConfig.create(config.model)
        if model.cut(self._model) == googlenet.STAGES[0]:
            raise ConfigError(
                "data.cache_trunk: nothing of the branches is frozen (model.trainable=all), so their "
                "features change with every step; set data.cache_trunk=False or model.trainable=5a"
            )
        source = data.make_ssm_source(config)
        options = ssm.batch_options(config, data.image_scale(config.data, source))
        if not options.fixed_crops:
            raise ConfigError(
                "data.cache_trunk: crops that are drawn anew in every step have no stored features; set "
                "data.fixed_crops=True or data.cache_trunk=False"
            )
        shapes = flatten(jax.eval_shape(lambda: model.init(self._model, jax.random.key(0))))
        if not config.init.get("model", ""):
            shapes = {name: leaf for name, leaf in shapes.items() if name.split("/")[1] != "head"}
        self.variables, name = trunk.load(shapes, config.get("init", {}), backbone="googlenet-bvlc")
        self.weights_hash = self.hash_of(self.variables)
        self.pairs = ssm.BatchBuilder(source, options, seed=config.seed).pairs
        lists = {"image": self.pairs.windows, "request": self.pairs.crops}
        drawn = dataclasses.asdict(options) | {"batch_size": 0, "positive_share": 0, "seed": config.seed}
        pictures = trunk.data_hash(config.data, source, drawn)
        sizes = {"image": options.image_size, "request": options.request_size}
        self.files = {
            branch: FeatureFile(
                trunk.file_path(config, NAMES[branch], self.weights_hash, pictures),
                (len(members), *self._shape(branch, sizes[branch])),
                picture=lambda row, members=members: transforms.bgr_minus_mean(members.picture(row)),
                size=sizes[branch],
                compute=lambda images, branch=branch: self._compute(branch, images),
                what=NAMES[branch],
                of=name,
            )
            for branch, members in lists.items()
        }

    def hash_of(self, variables: Any) -> str:
        """Of the frozen stages of both branches among `variables`, and how they compute."""
        how = f"{model.cut(self._model)} {self._model.dtype}"
        return trunk.weights_hash(variables, lambda path: not model.trainable(self._model, path), how)

    def fill(self, say: Say) -> ssm.Trunk:
        """Compute what is not there yet; returns the features by window and by request."""
        self.variables = jax.device_put(self.variables, jax.local_devices()[0])
        found = {branch: stored.StoredFeatures(file.fill(say)) for branch, file in self.files.items()}
        return ssm.Trunk(**found)

    def _shape(self, branch: str, size: tuple[int, int]) -> tuple[int, ...]:
        picture = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
        run = functools.partial(model.trunk, self._model, of=branch)
        return jax.eval_shape(run, self.variables, picture).shape[1:]

    def _compute(self, branch: str, images: np.ndarray) -> jax.Array:
        return _features(self._model, branch, self.variables, images)


@jax.jit(static_argnums=(0, 1))
def _features(config: model.ModelConfig, branch: str, variables: Any, images: jax.Array) -> jax.Array:
    return model.trunk(config, variables, images, of=branch).astype(jnp.float16)
