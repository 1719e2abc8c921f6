"""Fixed-shape inference: padded pyramid levels and chunks of classes; few programs serve any picture."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax import boxes as box_ops
from sm_jax.systems.chunks import counted
from sm_jax.systems.os2d.decode import PUBLISHED_SCALES, decode_pyramid, merge, pyramid_sizes
from sm_jax.systems.os2d.level import (
    BOX,
    STRIDE,
    Parts,
    bucket_size,
    flatten_output,
    pad_to,
    parts,
    predict_level,
)
from sm_jax.systems.os2d.views import View, query_views, views

__all__ = [
    "BOX",
    "PUBLISHED_SCALES",
    "SMALLEST_LEVEL",
    "STRIDE",
    "Parts",
    "Predictor",
    "View",
    "bucket_size",
    "decode_pyramid",
    "pad_to",
    "parts",
    "predict_level",
    "pyramid_sizes",
    "query_views",
    "views",
]

SMALLEST_LEVEL = STRIDE + 1  # pixels; below, the feature map has a single row or column
DEVICE_ROWS = 262_144  # classes x locations that fill an accelerator (150k to 400k do)


class _Level(NamedTuple):
    """One level on the device."""

    features: jax.Array
    features_size: jax.Array
    size: jax.Array
    pixels: tuple[int, int]
    anchors: np.ndarray


class Predictor:
    """Runs a model over pyramids with a bounded number of compiled programs.

    A level is padded to the next multiple of `step` on each side, and masked so that padding changes nothing;
    templates go through in chunks whose sizes are powers of two. So the programs are at most one `extract`
    and log2(chunk) + 1 `head`s per padded shape, and one `encode` per padded query shape.

    Attributes:
      compiles: how often each of "encode", "extract", "head" was traced, so compiled or read from the cache.
    """

    def __init__(
        self, model_parts: Parts, *, step: int = 128, chunk: int | None = None, top_k: int | None = 1000
    ):
        """Make a predictor.

        Args:
          model_parts: the model, from `parts`.
          step: bucket step in pixels, a multiple of 16.
          chunk: templates per call of the head, a power of two; None chooses 4 on a CPU and enough to fill an
            accelerator elsewhere.
          top_k: candidates per level and template that leave the device; None takes all. Results are the
            same: where a cut could show, the full level is fetched.
        """
        if step < STRIDE or step % STRIDE:
            raise ValueError(f"step must be a multiple of {STRIDE}, is {step}")
        if chunk is not None and (chunk < 1 or chunk & (chunk - 1)):
            raise ValueError(f"chunk must be a power of two, is {chunk}")
        self.compiles: Counter[str] = Counter()
        self._step, self._chunk, self._top_k = step, chunk, top_k
        self._encode = jax.jit(counted(self.compiles, "encode", model_parts.encode))
        self._extract = jax.jit(counted(self.compiles, "extract", model_parts.extract))
        self._layout = model_parts.layout

        def head(variables, features, features_size, size, template, layout):
            arrays = variables, features, features_size, template
            windows = model_parts.window
            output = model_parts.head(*arrays) if windows is None else windows(*arrays, layout)
            full = {key: value[0] for key, value in flatten_output(output, features_size, size).items()}
            n = full["scores"].shape[1]
            if top_k is None or top_k >= n:
                return full, None
            scores, index = jax.lax.top_k(full["scores"], top_k)
            best = {key: jax.vmap(lambda a, i: a[i])(full[key], index) for key in ("boxes", "corners")}
            some_left = jnp.sum(full["scores"] > -jnp.inf, axis=1) > top_k
            cut = jnp.where(some_left, scores[:, -1], -jnp.inf)
            return full, best | {"scores": scores, "index": index, "cut": cut}

        self._head = jax.jit(counted(self.compiles, "head", head))

    def encode(self, variables, query: np.ndarray) -> np.ndarray:
        """The template (t, t, d) of one normalised query picture (h, w, 3)."""
        size = query.shape[:2]
        padded = pad_to(query, bucket_size(size, self._step))
        request = {"image": jnp.asarray(padded[None]), "size": jnp.asarray([size], jnp.int32)}
        return np.asarray(self._encode(variables, request)["template"][0])

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
          levels: normalised pictures (h, w, 3), one per level; one with a side under 17 pixels is skipped.
          templates: (c, t, t, d), or whatever the model's `encode` gives; those of one class are its views.
          class_ids: (c,) class of each template.
          image_size: (height, width) that the results are in.
          shapes: (c,) pairs (height, width) of what each template was made of; default squares. A model with
            `window` gives its undeformed templates that shape; other models do not use it.
          progress: called after each step as `progress("levels", done, 0)`, their number not being known,
            then as `progress("matches", done, all)`, counted in templates x locations; each call waits for
            the device.
          **options: of `decode_pyramid`.

        Returns:
          What `decode_pyramid` returns, without `exact`: results never depend on `top_k`. `best` is (c,).
        """
        ready = []
        for number, level in enumerate(levels, 1):
            if min(level.shape[:2]) >= SMALLEST_LEVEL:
                ready.append(self._prepare(variables, level))
            if progress is not None:
                jax.block_until_ready([level.features for level in ready[-1:]])
                progress("levels", number, 0)
        all_matches = len(class_ids) * sum(len(level.anchors) for level in ready)
        done = 0

        def advance(level, output, count):
            nonlocal done
            if progress is not None:
                jax.block_until_ready(output)
                done += count * len(level.anchors)
                progress("matches", done, all_matches)

        joint = options.pop("across_classes", False)
        limit = options.pop("max_detections", None)
        per_class = options | {"max_detections": None if joint else limit, "image_size": image_size}
        class_ids = np.asarray(class_ids, np.int64)
        thresholds = np.broadcast_to(per_class.get("score_threshold", -math.inf), class_ids.shape)
        layout = self._layout([(1, 1)] * len(class_ids) if shapes is None else shapes)
        found, best = [], np.full(len(class_ids), -np.inf, np.float32)
        for group in _groups(class_ids, self._largest_chunk(ready)):
            outputs = [
                self._run(variables, level, templates[group], layout[group], advance) for level in ready
            ]
            ids = class_ids[group]
            per_class["score_threshold"] = thresholds[group]
            result = {"exact": False}
            if per_class.get("nms") != "chunked":  # whose blocks depend on every candidate
                result = decode_pyramid([_best(*output) for output in outputs], class_ids=ids, **per_class)
            if not result["exact"]:
                result = decode_pyramid([_full(*output) for output in outputs], class_ids=ids, **per_class)
            found.append(result | {"template": group[result["template"]]})
            best[group] = result["best"]
        merged = merge(found, across_classes=joint, max_detections=limit, **_only(options, "iou", "nms"))
        return merged | {"best": best}

    def _prepare(self, variables, picture):
        size = picture.shape[:2]
        padded = pad_to(picture, bucket_size(size, self._step))
        valid = jnp.asarray([size], jnp.int32)
        features, features_size = self._extract(variables, jnp.asarray(padded[None]), valid)
        anchors = box_ops.anchor_grid(features.shape[1:3], stride=STRIDE, box_size=(BOX, BOX))
        return _Level(features, features_size, valid, size, anchors)

    def _chunk_of(self, level) -> int:
        if self._chunk is not None:
            return self._chunk
        if jax.default_backend() == "cpu":
            return 4
        rows = DEVICE_ROWS // (level.features.shape[1] * level.features.shape[2])
        return min(128, 1 << max(2, rows.bit_length() - 1))

    def _largest_chunk(self, levels) -> int:
        return max((self._chunk_of(level) for level in levels), default=1)

    def _run(self, variables, level, templates, layout, advance):
        """(level, [(full, best, used)]) per chunk; the last, smaller chunk is padded to a power of two."""
        chunk, outputs = self._chunk_of(level), []
        for start in range(0, len(templates), chunk):
            part = templates[start : start + chunk]
            count = 1 << (len(part) - 1).bit_length()
            padded, shape = np.zeros((count, *part.shape[1:]), part.dtype), np.ones((count, 2), np.float32)
            padded[: len(part)], shape[: len(part)] = part, layout[start : start + chunk]
            level_arrays = level.features, level.features_size, level.size
            full, best = self._head(variables, *level_arrays, jnp.asarray(padded), jnp.asarray(shape))
            outputs.append((full, best, len(part)))
            advance(level, full, len(part))
        return level, outputs


def _groups(class_ids, target):
    """Index arrays of whole classes, about `target` templates each, which bounds what is held at once."""
    order = np.argsort(class_ids, kind="stable")
    groups, current = [], []
    for members in np.split(order, np.flatnonzero(np.diff(class_ids[order])) + 1):
        current.extend(members.tolist())
        if len(current) >= target:
            groups, current = [*groups, current], []
    return [np.asarray(group, np.int64) for group in [*groups, current] if len(group)]


def _full(level, outputs):
    """Every candidate of a level as `decode_pyramid` takes it."""
    parts_ = [{key: np.asarray(value)[:used] for key, value in full.items()} for full, _, used in outputs]
    joined = {key: np.concatenate([part[key] for part in parts_]) for key in parts_[0]}
    return joined | {"anchors": level.anchors, "size": level.pixels}


def _best(level, outputs):
    """The best candidates of a level; all of them where there are no more than `top_k`."""
    if outputs[0][1] is None:
        return _full(level, outputs)
    parts_ = [{key: np.asarray(value)[:used] for key, value in best.items()} for _, best, used in outputs]
    joined = {key: np.concatenate([part[key] for part in parts_]) for key in parts_[0]}
    return joined | {"anchors": level.anchors[joined.pop("index")], "size": level.pixels}


def _only(options, *names):
    return {name: options[name] for name in names if name in options}
