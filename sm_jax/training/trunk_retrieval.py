"""The frozen backbone of the retrieval system, the file of its features, and the whitening to start from.

A feature map per planned picture (`data.retrieval.Crops`) is stored; the learned pooling needs whole maps.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import data
from sm_jax.backbones import resnet
from sm_jax.data import stored
from sm_jax.data.retrieval import BatchBuilder
from sm_jax.errors import ConfigError, DataError
from sm_jax.systems.retrieval import model, whitening
from sm_jax.training import hard_negatives, trunk
from sm_jax.training.feature_file import FeatureFile, Say
from sm_jax.weights.io import flatten

SAMPLE = 4000  # pictures that a whitening is computed from


class Trunk:
    """See `trunk.Trunk`.

    Attributes:
      file: of the features of every picture.
    """

    def __init__(self, config: Any):
        self._model = model.ModelConfig.create(config.model)
        if self._model.train_features:
            raise ConfigError(
                "data.cache_trunk: the backbone trains (model.train_features), so its features change with "
                "every step; set model.train_features=False or data.cache_trunk=False"
            )
        self._config = config
        shapes = flatten(jax.eval_shape(lambda: model.init(self._model, jax.random.key(0))))
        if not config.init.get("model", ""):
            shapes = {name: leaf for name, leaf in shapes.items() if name.split("/")[1] == "backbone"}
        self.variables, name = trunk.load(shapes, config.get("init", {}), backbone="resnet50-caffe-c4")
        self.weights_hash = self.hash_of(self.variables)
        builder = data.make_retrieval_builder(config)
        self.crops = builder.crops
        drawn = dataclasses.asdict(builder.options) | dict.fromkeys(
            ("batch_size", "negatives", "queries", "pool")
        )
        pictures = trunk.data_hash(config.data, self.crops.source, drawn, config.seed, _plan_hash(self.crops))
        side = self._model.image_size
        cells = resnet.feature_size(side)
        self.file = FeatureFile(
            trunk.file_path(config, "crops", self.weights_hash, pictures),
            (len(self.crops), cells, cells, model.FEATURES),
            picture=self.crops.canvas,
            size=(side, side),
            compute=lambda images: _features(self._model, self.variables, images),
            what="pictures",
            of=name,
        )

    def hash_of(self, variables: Any) -> str:
        """Of the backbone among `variables`, and of how it computes."""
        how = f"{self._model.depth} {self._model.norm} {self._model.dtype} {self._model.image_size}"
        return trunk.weights_hash(variables, lambda path: path.split("/")[0] == "backbone", how)

    def fill(self, say: Say) -> stored.StoredFeatures:
        """Compute what is not there yet; returns the features by picture."""
        self.variables = jax.device_put(self.variables, jax.local_devices()[0])
        return stored.StoredFeatures(self.file.fill(say))

    def complete(self, variables: Any) -> Any:
        """See `whitened`."""

        def make_builder() -> BatchBuilder:
            return data.make_retrieval_builder(self._config, trunk=stored.StoredFeatures(self.file.path))

        return whitened(self._config, variables, make_builder)


class Starting:
    """A training iterator on pictures, whose run starts from a whitening that is computed from them."""

    def __init__(self, config: Any, iterator: Any):
        self._config, self._iterator = config, iterator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._iterator)

    def complete(self, variables: Any) -> Any:
        """See `whitened`."""
        return whitened(self._config, variables, lambda: data.make_retrieval_builder(self._config))


def make_miner(config: Any) -> hard_negatives.NegativeMiner:
    """What chooses the negatives of a run."""

    def make_builder() -> BatchBuilder:
        features = None
        if config.data.get("cache_trunk", False):
            features = stored.StoredFeatures(Trunk(config).file.path)  # filled when the iterator was made
        return data.make_retrieval_builder(config, trunk=features)

    return hard_negatives.NegativeMiner(config, make_builder)


def whitened(config: Any, variables: Any, make_builder: Callable[[], BatchBuilder]) -> Any:
    """The variables of a new run with the whitening that `data.whitening` computes from training pictures.

    "random" leaves it as it is, and so does one that `config.init` loads.

    Raises:
      ConfigError: an unknown `data.whitening`; DataError: pictures it cannot be computed from.
    """
    settings, how = model.ModelConfig.create(config.model), config.data.get("whitening", "random")
    init = config.get("init", {})
    if how not in whitening.STARTS:
        raise ConfigError(f"data.whitening: {how!r} is none of {', '.join(whitening.STARTS)}")
    if not settings.whiten or how == "random" or init.get("model", "") or init.get("whiten", ""):
        return variables
    builder = make_builder()
    labels = builder.crops.labels
    rows = np.flatnonzero(labels >= 0)
    rows = rows[np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).round().astype(int)]
    pooled, valid = hard_negatives.describe(settings, variables, builder, rows, whiten=False)
    rows, pooled = rows[valid], pooled[valid]
    if how == "pca":
        kernel, bias = whitening.pca(pooled, dim=settings.width)
    else:
        ranked = np.argsort(labels[rows], kind="stable")
        first, second = ranked[1:], ranked[:-1]
        same = labels[rows][first] == labels[rows][second]
        if not same.any():
            raise DataError("data.whitening=pairs: no class has two pictures that can be read")
        kernel, bias = whitening.pairs(pooled, first[same], second[same], dim=settings.width)
    trunk.print_line(f"whiten: starts from the {how} of {len(rows)} training pictures")
    return variables | {"params": variables["params"] | {"whiten": {"kernel": kernel, "bias": bias}}}


def _plan_hash(crops: Any) -> str:
    digest = hashlib.sha256()
    for array in (crops.image, crops.labels, crops.boxes, crops.sizes):
        digest.update(array.tobytes())
    return digest.hexdigest()


@jax.jit(static_argnums=0)
def _features(config: model.ModelConfig, variables: Any, images: jax.Array) -> jax.Array:
    """Features f16 of canvases (`Crops.canvas`), whose valid part is what is not 0."""
    shown = jnp.any(images != 0, axis=-1)
    size = jnp.stack([jnp.sum(jnp.any(shown, axis=axis), axis=1) for axis in (2, 1)], axis=-1)
    return model.extract(config, variables, images, size).astype(jnp.float16)
