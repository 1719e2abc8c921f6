"""One pyramid level through the model: every cell of the feature map becomes a candidate."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import boxes as box_ops
from sm_jax.systems.os2d import head, model, sliding
from sm_jax.systems.os2d.head import STRIDE, TEMPLATE

BOX = TEMPLATE * STRIDE
"""Side of the object, in level pixels, that the untransformed template stands for."""


def stretch(shapes: Sequence[tuple[float, float]]) -> np.ndarray:
    """(c, 2) factors in x and y that give a square each of the `shapes` (height, width), at equal area."""
    height, width = np.asarray(shapes, np.float64).reshape(-1, 2).T
    factor = np.sqrt(width / height)
    return np.stack([factor, 1 / factor], axis=-1).astype(np.float32)


def squares(shapes: Sequence[tuple[float, float]]) -> np.ndarray:
    """(c, 2) ones: a square for each of the `shapes`, whatever it is."""
    return np.ones((len(shapes), 2), np.float32)


class Parts(NamedTuple):
    """The model as inference needs it; `model` and `sliding` have the shapes.

    Attributes:
      encode: (variables, {"image": (r, h, w, 3), "size": (r, 2)}) -> {"template": (r, t, t, d)}, and "layout"
        (r, 2) where `window` cannot do without.
      extract: (variables, image (b, h, w, 3), size (b, 2)) -> (features, features_size (b, 2))
      head: (variables, features, features_size, template (c, t, t, d)) -> HeadOutput; may be None if there is
        a `window`, which is used instead.
      window: (variables, features, features_size, template, layout (c, 2)) -> HeadOutput of undeformed
        templates; None where the transformation is trained.
      layout: (height, width) of each query -> (c, 2) float32, what `window` wants to know of them: factors
        (x, y) of the template's 240 pixels by default.
    """

    encode: Callable[..., dict[str, jax.Array]]
    extract: Callable[..., tuple[jax.Array, jax.Array]]
    head: Callable[..., Any] | None
    window: Callable[..., Any] | None = None
    layout: Callable[..., np.ndarray] = stretch


def parts(config: model.ModelConfig, *, window: bool = False) -> Parts:
    """The functions of the model of `config`.

    With `config.window` they are those of a sliding window, whatever its transformation network would say.
    `window=True`, for an untrained network: it is not run, and the samples of the square template are spread
    over the shape of their query (a cheap form of the sliding window of the target's aspect ratio).
    """
    extract = functools.partial(model.extract, config)
    if config.window == "target":

        def run_sliding(variables, features, features_size, template, layout):
            del variables
            dtype = jnp.dtype(config.head_dtype)
            return sliding.head(features, features_size, template, layout, dtype=dtype)

        layout = functools.partial(sliding.encoded_sizes, query_size=config.query_size)
        encode = functools.partial(sliding.encode, config)
        return Parts(encode, extract, None, run_sliding, layout)

    def run_head(variables, features, features_size, template):
        return model.head(config, variables, features, features_size, template)[0]

    def run_window(variables, features, features_size, template, layout):
        del variables
        x, y = 1 / layout.T if config.inverse else layout.T
        zero = jnp.zeros_like(x)
        columns = (x, zero, y, zero) if config.simplified else (x, zero, zero, zero, y, zero)
        parameters = jnp.stack(columns, axis=-1)

        def constant(rows, where, *, train):
            del where, train
            each = jnp.tile(parameters, (features.shape[0], 1))[:, None, None]
            return jnp.broadcast_to(each, (*rows.shape[:3], each.shape[-1]))

        return head.match(
            constant,
            features,
            features_size,
            template,
            dtype=jnp.dtype(config.head_dtype),
            inverse=config.inverse,
            train=False,
            batch_statistics=False,
            query_valid=None,
            image_valid=None,
        )[0]

    encode = functools.partial(model.encode, config)
    if config.window == "square":
        return Parts(encode, extract, None, run_window, squares)
    return Parts(encode, extract, run_head, run_window if window else None)


def bucket_size(size: tuple[int, int], step: int) -> tuple[int, int]:
    """`size` (height, width) with each side rounded up to a multiple of `step` pixels."""
    return (-(-size[0] // step) * step, -(-size[1] // step) * step)


def pad_to(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Zeros below and to the right of a normalised `image` (h, w, c), up to `size` (height, width)."""
    return np.pad(image, ((0, size[0] - image.shape[0]), (0, size[1] - image.shape[1]), (0, 0)))


def flatten_output(output, features_size: jax.Array, size: jax.Array) -> dict[str, jax.Array]:
    """Candidates of one level: one per feature-map location, a = y * w + x.

    Args:
      output: a `HeadOutput` (b, c, h, w, ...).
      features_size: (b, 2) valid rows and columns of the feature map.
      size: (b, 2) valid height and width of the level in pixels.

    Returns:
      scores (b, c, n), -inf outside the valid map and where not finite, or where the clipped box is empty;
      boxes (b, c, n, 4) clipped to the level, and corners (b, c, n, 4, 2), in level pixels.
    """
    batch, classes, height, width = output.scores.shape
    n = height * width
    anchors = jnp.asarray(box_ops.anchor_grid((height, width), stride=STRIDE, box_size=(BOX, BOX)))
    boxes = box_ops.decode(
        output.offsets.reshape(batch, classes, n, 4).astype(jnp.float32), anchors[None, None]
    )
    limit = size[:, None, None, :].astype(jnp.float32)
    boxes = box_ops.clip(boxes, (limit[..., 0], limit[..., 1]))
    cell = jnp.arange(n)
    inside = (cell // width)[None] < features_size[:, :1]
    inside &= (cell % width)[None] < features_size[:, 1:]
    scores = output.scores.reshape(batch, classes, n).astype(jnp.float32)
    keep = inside[:, None] & jnp.isfinite(scores) & box_ops.nonempty(boxes)
    return {
        "scores": jnp.where(keep, scores, -jnp.inf),
        "boxes": boxes,
        "corners": output.corners.reshape(batch, classes, n, 4, 2).astype(jnp.float32),
    }


def predict_level(
    config: model.ModelConfig,
    variables,
    images: dict[str, jax.Array],
    encoded: dict[str, jax.Array],
) -> dict[str, jax.Array]:
    """Every candidate of a batch of equally padded images: the `predict` function of the OS2D system.

    Args:
      images: `image` (b, h, w, 3) normalised and zero-padded, `size` (b, 2) valid (height, width).
      encoded: what `encode` gives: `template`, and `layout` with `config.window="target"`.

    Returns:
      `scores`, `boxes`, `corners` as `flatten_output` gives them, and `anchors` (n, 4).
    """
    model_parts = parts(config)
    features, features_size = model_parts.extract(variables, images["image"], images["size"])
    arrays = variables, features, features_size, encoded["template"]
    if model_parts.window is None:
        output = model_parts.head(*arrays)
    else:
        square = jnp.ones((len(encoded["template"]), 2))
        output = model_parts.window(*arrays, encoded.get("layout", square))
    anchors = box_ops.anchor_grid(features.shape[1:3], stride=STRIDE, box_size=(BOX, BOX))
    return flatten_output(output, features_size, images["size"]) | {"anchors": jnp.asarray(anchors)}
