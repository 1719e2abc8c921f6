"""Fixed-shape inference: trunk features once per image, templates once per query, pairs in blocks."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import two_stage
from sm_jax.systems.chunks import counted, padded
from sm_jax.systems.coae import model
from sm_jax.systems.coae.parts import STRIDE
from sm_jax.systems.os2d.decode import decode_pyramid
from sm_jax.systems.os2d.level import bucket_size, pad_to

Array = jax.Array

SMALLEST_LEVEL = STRIDE
"""Pixels of the shorter side below which a level is skipped."""
MAX_DETECTIONS = 100
"""Of an image and a class, as published."""


def pair(
    config: model.ModelConfig,
    variables: dict[str, Any],
    image: Mapping[str, Array],
    cells: Array,
    size: Array,
    query: Array,
) -> dict[str, Array]:
    """Candidates of one image for one query.

    Args:
      config: the model.
      variables: `params` and `batch_stats`.
      image: of `model.embed`.
      cells: i32 "2" valid cells.
      size: i32 "2" valid (height, width) in pixels.
      query: "k k c" of `model.encode`.

    Returns:
      `boxes` f32 "p 4" pixels, clipped to the image, `scores` f32 "p" within 0..1 (-inf where there is none)
      and `proposals` f32 "p 4", the boxes that were compared.
    """
    attended, features, query = model.match(config, variables, image, cells, query)
    anchors = jnp.asarray(model.anchors(config, features.shape[:2]))
    found = model.first_stage(config, variables, attended)
    proposals = model.propose(config, found, anchors, size)
    rois = proposals["boxes"]
    logits, codes = model.second_stage(config, variables, features, cells, query, rois)
    boxes, scores = two_stage.decode_rois(logits, codes, rois, image_size=(size[0], size[1]))
    scores = jnp.where(proposals["valid"], scores[:, 0], -jnp.inf)
    return {"boxes": boxes, "scores": scores, "proposals": rois}


def predict(
    config: model.ModelConfig,
    variables: dict[str, Any],
    images: Mapping[str, Array],
    encoded: Mapping[str, Array],
) -> dict[str, Array]:
    """Candidates of images for queries, all pairs at once.

    Args:
      config: the model.
      variables: `params` and `batch_stats`.
      images: `image` "b h w 3" normalised and zero padded, `size` i32 "b 2" valid (height, width).
      encoded: `query` "q k k c" of `model.encode`.

    Returns:
      As `pair`, with leading axes "b q".
    """
    features, cells = model.extract(config, variables, images["image"], images["size"])
    embed = functools.partial(model.embed, config, variables)
    one = functools.partial(pair, config, variables)
    each_query = jax.vmap(one, in_axes=(None, None, None, 0))
    each_image = jax.vmap(each_query, in_axes=(0, 0, 0, None))
    return each_image(jax.vmap(embed)(features), cells, images["size"], encoded["query"])


class _Level(NamedTuple):
    """One picture on the device: of `model.embed`, valid cells and pixels "2", and its (height, width)."""

    image: dict[str, Array]
    cells: Array
    size: Array
    pixels: tuple[int, int]


class Predictor:
    """Runs a model with a bounded number of compiled programs; it stands where OS2D's predictor does.

    A picture is padded to the next multiple of `step` on each side, and masked so that padding changes
    nothing. Queries go through in blocks of at most `block`, the last one padded to a power of two. So the
    programs are one "extract" and log2(block) + 1 "match" per padded shape, and one "encode" per padded query
    shape.

    Attributes:
      compiles: how often each of "encode", "extract", "match" was traced, so compiled or read from the cache.
    """

    def __init__(self, config: model.ModelConfig, *, step: int = 128, block: int | None = None):
        """Make a predictor.

        Args:
          config: the model.
          step: bucket step in pixels, a multiple of 16.
          block: queries per call, a power of two; None chooses 4 on a CPU and 16 elsewhere.
        """
        block = block or (4 if jax.default_backend() == "cpu" else 16)
        if step < STRIDE or step % STRIDE:
            raise ValueError(f"step must be a multiple of {STRIDE}, is {step}")
        if block < 1 or block & (block - 1):
            raise ValueError(f"block must be a power of two, is {block}")
        self.compiles: Counter[str] = Counter()
        self._step, self._block = step, block

        def extract(variables, image, size):
            features, cells = model.extract(config, variables, image, size)
            return model.embed(config, variables, features[0]), cells[0]

        one = functools.partial(pair, config)
        each = jax.vmap(one, in_axes=(None, None, None, None, 0))
        self._encode = jax.jit(counted(self.compiles, "encode", functools.partial(model.encode, config)))
        self._extract = jax.jit(counted(self.compiles, "extract", extract))
        self._match = jax.jit(counted(self.compiles, "match", each))

    def encode(self, variables, query: np.ndarray) -> np.ndarray:
        """The map "k k c" of one normalised query picture (h, w, 3)."""
        size = query.shape[:2]
        image = pad_to(query, bucket_size(size, self._step))
        request = {"image": jnp.asarray(image[None]), "size": jnp.asarray([size], jnp.int32)}
        return np.asarray(self._encode(variables, request)["query"][0])

    def detect(
        self,
        variables,
        levels: Iterable[np.ndarray],
        templates: np.ndarray,
        *,
        class_ids: Sequence[int],
        image_size: tuple[int, int],
        shapes: Sequence[tuple[float, float]] | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        **options,
    ) -> dict[str, np.ndarray]:
        """Detections of one image.

        Args:
          levels: normalised pictures (h, w, 3), one per scale; one with a side under 16 pixels is skipped.
          templates: (c, k, k, d) of `encode`; templates of one class are views of it.
          class_ids: (c,) class of each template.
          image_size: (height, width) that the results are in.
          shapes: not used: the shape of an object comes from its proposal.
          progress: called after each level as `progress("levels", done, 0)`, then after each block of queries
            as `progress("matches", done, all)`, counted in templates x levels; each call waits for the
            device.
          **options: of `decode_pyramid`; `max_detections` is 100 where it is not given.

        Returns:
          What `decode_pyramid` returns, without `exact`; `anchors` are the proposals, `corners` those of the
          boxes.
        """
        del shapes
        ready = []
        for number, picture in enumerate(levels, 1):
            if min(picture.shape[:2]) >= SMALLEST_LEVEL:
                ready.append(self._prepare(variables, picture))
            if progress is not None:
                jax.block_until_ready([level.cells for level in ready[-1:]])
                progress("levels", number, 0)
        outputs, done = [], 0
        for level in ready:
            parts = []
            for start in range(0, len(templates), self._block):
                block, used = padded(np.asarray(templates[start : start + self._block]), self._block)
                out = self._match(variables, level.image, level.cells, level.size, jnp.asarray(block))
                parts.append({name: np.asarray(value)[:used] for name, value in out.items()})
                done += used
                if progress is not None:
                    progress("matches", done, len(templates) * len(ready))
            outputs.append({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
        found = [
            {
                "boxes": out["boxes"],
                "scores": out["scores"],
                "corners": _corners(out["boxes"]),
                "anchors": out["proposals"],
                "size": level.pixels,
            }
            for level, out in zip(ready, outputs, strict=True)
        ]
        options.setdefault("max_detections", MAX_DETECTIONS)
        result = decode_pyramid(found, class_ids=class_ids, image_size=image_size, **options)
        return {name: value for name, value in result.items() if name != "exact"}

    def _prepare(self, variables, picture: np.ndarray) -> _Level:
        size = picture.shape[:2]
        image = pad_to(picture, bucket_size(size, self._step))
        valid = jnp.asarray([size], jnp.int32)
        return _Level(*self._extract(variables, jnp.asarray(image[None]), valid), valid[0], size)


def _corners(boxes: np.ndarray) -> np.ndarray:
    """Boxes "... 4" -> their corners "... 4 2", clockwise from the top left one."""
    return np.stack([boxes[..., [0, 1]], boxes[..., [2, 1]], boxes[..., [2, 3]], boxes[..., [0, 3]]], axis=-2)
