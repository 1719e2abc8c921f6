"""The same network, weights and pictures for ours and for PyTorch, and the calls that are compared."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from PIL import Image

from benchmarks import material
from benchmarks import torch_os2d as eager
from benchmarks import torch_tuned as tuned
from benchmarks.measure import Call, Program, compiled
from benchmarks.peers import TORCH_TYPES, OnDevice, jax_call
from sm_jax.data.transforms import normalize
from sm_jax.systems.os2d import model, predict
from sm_jax.weights import formats
from sm_jax.weights.io import flatten


class Level(NamedTuple):
    """One pyramid level.

    Attributes:
      size: (height, width) in pixels.
      cells: (height, width) of the feature map.
      image: (1, h, w, 3) normalised, on our device.
      image_torch: (1, 3, h, w), on PyTorch's.
      extract: our compiled features.
    """

    size: tuple[int, int]
    cells: tuple[int, int]
    image: jax.Array
    image_torch: torch.Tensor
    extract: Program

    @property
    def locations(self) -> int:
        return self.cells[0] * self.cells[1]


@dataclasses.dataclass
class Peers(OnDevice):
    """One set of weights in all implementations.

    Attributes:
      config: our model, with the dtypes that "ours" and "tuned" use; "eager" is float32 as published.
      device: "cpu" or "cuda".
      variables: our weights.
      weights: PyTorch's.
      layers: the tuned implementation's folded weights.
      templates: (c, 15, 15, d), the normalised class templates.
    """

    config: model.ModelConfig
    device: str
    variables: Any
    weights: eager.Weights
    layers: dict[str, tuple[torch.Tensor, torch.Tensor]]
    templates: jax.Array
    picture: np.ndarray

    @property
    def head_type(self) -> torch.dtype:
        return TORCH_TYPES[self.config.head_dtype]


def make(
    config: model.ModelConfig, *, device: str, backbone: str, transform: str, size, classes: int
) -> Peers:
    """Weights, a picture of `size` (height, width), and `classes` templates cut out of it.

    `backbone` and `transform` are registry names or paths; an empty `transform` draws one near the identity.
    """
    rng = np.random.default_rng(0)
    variables = material.variables(config, rng, backbone=backbone, transform=transform)
    theirs = eager.as_tensors(formats.to_torch(flatten(variables)), device=device)
    types = {"dtype": TORCH_TYPES[config.dtype], "head_dtype": TORCH_TYPES[config.head_dtype]}
    variables = jax.device_put(variables)
    picture = material.make_picture(rng, size)
    queries = np.stack([material.cut_out(rng, picture, config.query_size) for _ in range(classes)])
    encode = jax.jit(lambda image: model.encode(config, variables, {"image": image})["template"])
    templates = jnp.concatenate([encode(queries[i : i + 1]) for i in range(classes)])
    layers = tuned.prepare(theirs, **types)
    return Peers(config, device, variables, theirs, layers, templates, picture)


def make_level(peers: Peers, size: tuple[int, int]) -> Level:
    """The picture at `size` and our program for it."""
    resized = Image.fromarray(peers.picture).resize(size[::-1], Image.Resampling.BILINEAR)
    pixels = normalize(np.asarray(resized))[None]
    image = jnp.asarray(pixels)
    config = peers.config
    program = compiled(lambda v, x: model.extract(config, v, x)[0], peers.variables, image)
    cells = model.resnet.feature_size(size[0]), model.resnet.feature_size(size[1])
    return Level(size, cells, image, peers.to_torch(pixels), program)


def features(peers: Peers, level: Level) -> dict[str, Call]:
    """Features of one level."""
    return {
        "ours": jax_call(lambda: level.extract.call(peers.variables, level.image)),
        "eager": peers.torch_call(lambda: eager.features(peers.weights, level.image_torch)),
        "tuned": peers.torch_call(lambda: tuned.features(peers.layers, level.image_torch)),
    }


def chunk_size(level: Level, classes: int, chunk: int) -> int:
    """Classes per call of our head: `chunk`, or where it is 0 the number that the detector would choose."""
    if not chunk and jax.default_backend() == "cpu":
        chunk = 4
    if not chunk:
        chunk = min(128, 1 << max(2, (predict.DEVICE_ROWS // level.locations).bit_length() - 1))
    return min(chunk, classes)


class Head(NamedTuple):
    """The head on one level: the calls, our programs (one per chunk size), and classes per call."""

    calls: dict[str, Call]
    programs: list[Program]
    chunk: int


def head(peers: Peers, level: Level, classes: int, chunk: int) -> Head:
    """The head on one level's features for the first `classes` templates; all three get the same features.

    "eager" takes class after class, as published; "tuned" takes as many at once as ours.
    """
    config, variables = peers.config, peers.variables
    maps = level.extract.call(variables, level.image)
    chunk = chunk_size(level, classes, chunk)
    parts = [peers.templates[i : min(i + chunk, classes)] for i in range(0, classes, chunk)]
    programs = {
        len(part): compiled(lambda v, f, t: model.head(config, v, f, None, t)[0], variables, maps, part)
        for part in {len(part): part for part in parts}.values()
    }
    theirs = peers.to_torch(peers.templates[:classes])
    maps_torch = peers.to_torch(maps)
    kernels = tuned.bank(theirs, peers.head_type)
    inverse = config.inverse
    calls = {
        "ours": jax_call(lambda: [programs[len(part)].call(variables, maps, part) for part in parts]),
        "eager": peers.torch_call(
            lambda: eager.head_per_class(peers.weights, maps_torch, theirs, inverse=inverse)
        ),
        "tuned": peers.torch_call(
            lambda: tuned.head(peers.layers, maps_torch, kernels, inverse=inverse, chunk=chunk)
        ),
    }
    return Head(calls, list(programs.values()), chunk)


def together(parts: list[dict[str, Call]], names: list[str]) -> dict[str, Call]:
    """One call per implementation that makes all its `parts`, and waits once."""

    def all_of(name):
        return Call(lambda: [part[name].run() for part in parts], parts[0][name].wait)

    return {name: all_of(name) for name in names}


def feature_difference(results: dict[str, Any], name: str) -> float:
    """Largest difference of ours to `name`, relative to the largest feature."""
    ours = np.moveaxis(np.asarray(results["ours"], np.float32), -1, 1)
    other = results[name].float().cpu().numpy()
    return float(np.abs(ours - other).max() / np.abs(other).max())


def head_difference(results: dict[str, Any], name: str) -> tuple[float, float]:
    """Largest difference of ours to `name`: of a score, and of a box coordinate in pixels.

    Boxes larger than 10,000 pixels (a transformation that is nearly singular) are left out.
    """
    other = {key: results[name][key].float().cpu().numpy() for key in ("scores", "boxes")}
    ours = {
        key: np.concatenate([np.asarray(getattr(part, key)) for part in results["ours"]], axis=1)
        for key in other
    }
    sane = np.abs(other["boxes"]) < 1e4
    boxes = np.abs(ours["boxes"] - other["boxes"])[sane]
    return float(np.abs(ours["scores"] - other["scores"]).max()), float(boxes.max(initial=0))
