"""Hard patches of one image: losses of every anchor and class on a pyramid level, and the crops they ask for.

`level_losses` is the device part; the rest is NumPy. Source: OS2D (ECCV 2020), published code (hard patch
mining; spec sec. 10).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import boxes as box_ops
from sm_jax.data.patches import ROLES
from sm_jax.ops.nms import nms_chunked
from sm_jax.systems.os2d import objective
from sm_jax.systems.os2d.level import BOX, STRIDE


class Hardest(NamedTuple):
    """The class with which each anchor does worst, per role (in the order of `data.patches.ROLES`).

    Attributes (3 roles, n anchors):
      losses: f32 (3, n), -inf where no class counts.
      labels: i32 (3, n), which class: a row of the templates on the device, a class index afterwards.
    """

    losses: Any
    labels: Any


def level_losses(
    config: objective.ObjectiveConfig,
    output: Any,
    batch: dict[str, jax.Array],
    features_size: jax.Array,
    factor: jax.Array,
) -> Hardest:
    """Losses in mining mode on one level of one image, reduced over the classes.

    The reduction loses nothing: a crop belongs to its anchor whatever the class, so that of several classes
    only the one with the largest loss would outlive suppression (the first of equals).

    Args:
      config: margins and thresholds.
      output: `HeadOutput` of that image, scores (1, c, h, w).
      batch: as in `objective.loss`, of one image: `boxes` in pixels of the stored image, `labels`,
        `difficult`, `boxes_valid`, `valid`; `query_valid` (c,).
      features_size: i32 (1, 2) valid cells.
      factor: f32 (2,) stored pixels per level pixel in x and y; anchors are matched in the stored image.

    Returns:
      `Hardest` of jax arrays.
    """
    _, classes, *shape = output.scores.shape
    scores = output.scores.astype(jnp.float32).reshape(1, classes, -1)
    codes = output.offsets.astype(jnp.float32).reshape(1, classes, -1, 4)
    anchors = box_ops.anchor_grid(tuple(shape), stride=STRIDE, box_size=(BOX, BOX))
    anchors = box_ops.scale(jnp.asarray(anchors), factor)
    targets = objective.assign_targets(config, batch, anchors, num_classes=classes)
    terms = objective.criterion(
        config,
        scores,
        codes,
        targets.labels,
        targets.codes,
        labels_remapped=objective.remap_labels(config, batch, codes, anchors) if config.remap else None,
        where=objective.real_anchors(batch, features_size, tuple(shape)),
        mining=True,
    )
    counted = jnp.concatenate([terms.negative, terms.positive, terms.loc_positive])
    losses = jnp.concatenate([terms.cls_elements, terms.cls_elements, terms.loc_elements])
    losses = jnp.where(counted & jnp.isfinite(losses), losses, -jnp.inf)
    return Hardest(jnp.max(losses, axis=1), jnp.argmax(losses, axis=1).astype(jnp.int32))


def worse(one: Hardest, other: Hardest) -> Hardest:
    """Of two chunks of classes the larger loss of each anchor, that of `one` where they are equal."""
    first = np.asarray(one.losses) >= np.asarray(other.losses)
    return Hardest(np.where(first, one.losses, other.losses), np.where(first, one.labels, other.labels))


def level_crops(
    shape: tuple[int, int], *, size: tuple[int, int], image_size: tuple[int, int], crop: tuple[int, int]
) -> np.ndarray:
    """The crop of each anchor in the stored image: f32 (h * w, 4).

    Args:
      shape: (height, width) of the level's feature map.
      size: (height, width) of the level in pixels.
      image_size: (height, width) of the stored image.
      crop: (height, width) of a training crop, on the level.
    """
    anchors = box_ops.anchor_grid(shape, stride=STRIDE, box_size=(BOX, BOX))
    return box_ops.scale(
        box_ops.mining_crops(anchors, size=size, crop_size=crop, stride=STRIDE),
        level_factor(size, image_size),
    )


def level_factor(size: tuple[int, int], image_size: tuple[int, int]) -> np.ndarray:
    """f32 (x, y): pixels of the stored image per pixel of a level of `size` (height, width)."""
    return (np.float32(image_size) / np.float32(size))[::-1]


def select(
    crops: Sequence[np.ndarray], found: Sequence[Hardest], *, count: int, iou: float
) -> Mapping[str, np.ndarray]:
    """The hardest crops of an image over all its levels.

    Per role, crops (not anchors) are suppressed greedily by descending loss where they overlap by more than
    `iou`; the first `count` remain. As published, loss 0 is a loss too: every image has patches of the roles
    that occur in it.

    Args:
      crops: per level f32 (n, 4), pixels of the stored image.
      found: per level `Hardest` over the same anchors, labels being class indices.
      count: patches per role.
      iou: see above.

    Returns:
      `labels` i32 (3, count), -1 where nothing is left; `crops` i32 (3, count, 4), truncated, at least a
      pixel wide and high; `losses` f32 (3, count).
    """
    boxes = np.concatenate(crops)
    losses = np.concatenate([np.asarray(level.losses) for level in found], axis=1)
    labels = np.concatenate([np.asarray(level.labels) for level in found], axis=1)
    result = {
        "labels": np.full((len(ROLES), count), -1, np.int32),
        "crops": np.zeros((len(ROLES), count, 4), np.int32),
        "losses": np.zeros((len(ROLES), count), np.float32),
    }
    for role in range(len(ROLES)):
        kept = nms_chunked(boxes, losses[role], iou=iou, chunk=max(len(boxes), 1))[:count]
        whole = boxes[kept].astype(np.int32)
        whole[:, 2:] = np.maximum(whole[:, 2:], whole[:, :2] + 1)
        result["labels"][role, : len(kept)] = labels[role, kept]
        result["crops"][role, : len(kept)] = whole
        result["losses"][role, : len(kept)] = losses[role, kept]
    return result
