"""What the benchmark of SCNet compares: boxes and similarities from a seed, our programs, references."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import material
from benchmarks.measure import Call, Program, Times, compiled, once
from sm_jax.ops import hough, matching, matching_reference
from sm_jax.ops.roi import roi_max, roi_max_matconvnet
from sm_jax.systems.scnet import model, predict

METHODS = ("nam", "phm", "lom", "ag+")


class Matches(NamedTuple):
    """All matches of two sets of boxes.

    Attributes:
      boxes: two of (n, 4) float64 integer xyxy pixels of the frame.
      size: (height, width) of the frame.
      appearance, geometry: (n, n) float32, similarities.
    """

    boxes: tuple[np.ndarray, np.ndarray]
    size: tuple[int, int]
    appearance: np.ndarray
    geometry: np.ndarray

    @property
    def bins(self) -> np.ndarray:
        """(n, n) int32 of SCNet's grid."""
        return hough.bins(*self.boxes, self.size, self.size)


class Compared(NamedTuple):
    """The calls that are compared, how they agree, our program and its result."""

    calls: dict[str, Call]
    agreement: dict[str, Any]
    program: Program
    result: Any


def boxes(rng: np.random.Generator, count: int, size: tuple[int, int]) -> np.ndarray:
    """(count, 4) float64 integer boxes inside a picture of `size`, with sides from 1/14 of it to all."""
    extent = np.array(size[::-1])
    sides = np.exp(rng.uniform(np.log(1 / 14), 0, (count, 2))) * extent
    low = np.floor(rng.uniform(0, 1, (count, 2)) * (extent - sides))
    return np.concatenate([low, np.ceil(low + sides)], axis=1)


def matches(count: int, side: int) -> Matches:
    """`count` boxes of either picture in a frame of `side` pixels, and their similarities in 0..1."""
    rng = np.random.default_rng(0)
    size = (side, side)
    sets = boxes(rng, count, size), boxes(rng, count, size)
    return Matches(sets, size, *rng.random((2, count, count), np.float32))


def bins(given: Matches) -> dict[str, Call]:
    """The bins of all matches, in NumPy."""
    return {"ours": _host(lambda: given.bins)}


def voting(given: Matches) -> dict[str, Compared]:
    """The vote, and the vote with its gradient, against NumPy's `bincount` and a gather, by name of row.

    The vote is its own transpose: NumPy's gradient is the vote of the upstream one.
    """
    table, size = given.bins, hough.grid(given.size).size
    weights, upstream = given.geometry, given.appearance

    def vote(weights, table):
        return {"votes": hough.vote(weights, table, size)}

    def both(weights, table, upstream):
        votes, pull = jax.vjp(lambda weights: hough.vote(weights, table, size), weights)
        return {"votes": votes, "gradient": pull(upstream)[0]}

    def numpy_vote():
        return {"votes": _bincount(weights, table, size)}

    def numpy_both():
        return numpy_vote() | {"gradient": _bincount(upstream, table, size)}

    return {
        "vote": _compare(vote, (weights, table), "numpy", numpy_vote),
        "vote and gradient": _compare(both, (weights, table, upstream), "numpy", numpy_both),
    }


def scores(given: Matches, method: str) -> tuple[Compared, Times]:
    """Ours alone, held to the float64 reference, and the times of one call of that.

    Args:
      given: of `matches`.
      method: one of `METHODS`; "lom" takes the scores of "nam".
    """
    first = given.appearance
    if method == "ag+":
        arguments = first, given.bins, given.geometry
        size = hough.grid(given.size).size

        def ours(first, table, geometry):
            return matching.scnet_scores(first, table, size=size, geometry=geometry)

        def reference():
            return matching_reference.scnet_scores(first, arguments[1], geometry=given.geometry)

    elif method == "phm":
        grid = hough.grid(given.size, kind="phm")
        arguments = first, hough.bins(*given.boxes, given.size, given.size, kind="phm")
        ours = functools.partial(matching.phm, grid=grid)
        reference = functools.partial(matching_reference.phm, *arguments, grid)
    else:
        arguments = first, hough.aspect_gate(*given.boxes)
        ours, reference = matching.nam, functools.partial(matching_reference.nam, *arguments)
        if method == "lom":
            arguments = reference(), *given.boxes
            ours, reference = matching.lom, functools.partial(matching_reference.lom, *arguments)
    program, call = _program(ours, arguments)
    expected, times = once(_host(reference))
    result = np.asarray(call())
    agreement = {
        "reference": {"score": _apart(result, expected)},
        "same best matches": _same_best(result, expected),
    }
    if method == "lom":  # badly conditioned: how far the reference is from itself says what rounding does
        order = np.random.default_rng(1).permutation(len(first))
        moved = np.empty_like(expected)
        moved[order] = matching_reference.lom(arguments[0][order], arguments[1][order], arguments[2])
        agreement["reference against itself, source boxes in another order"] = (
            f"score {_apart(moved, expected):.1e}, same best matches {_same_best(moved, expected)}"
        )
    return Compared({"ours": call}, agreement, program, result), times


def roi(count: int, side: int, dtype: str) -> Compared:
    """Max pooling to 7 x 7 of a map of VGG16, against a maximum over every bin's cells."""
    rng = np.random.default_rng(0)
    cells, channels = side // model.STRIDE, model.BACKBONES["vgg16"].channels
    features = rng.random((cells, cells, channels), np.float32).astype(dtype)
    arguments = features, boxes(rng, count, (side, side))
    output = (model.BINS, model.BINS)

    def ours(features, boxes):
        return roi_max_matconvnet(features, boxes, stride=model.STRIDE, output_size=output)

    def cells_of_bins(features, boxes):
        last = boxes - jnp.array([[0, 0, 1, 1]], boxes.dtype)
        return roi_max(features, last, stride=model.STRIDE, output_size=output)

    program, call = _program(ours, arguments)
    _, other = _program(cells_of_bins, arguments)
    result = np.asarray(call(), np.float32)
    agreement = {"cell by cell": {"feature": _apart(result, other())}}
    return Compared({"ours": call, "cell by cell": other}, agreement, program, result)


def predictor(side: int, embed: int, dtype: str, buckets: Sequence[int]) -> predict.Predictor:
    """The published AG+ on VGG16 with random weights."""
    config = model.ModelConfig(image_size=(side, side), embed=embed, dtype=dtype)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(functools.partial(model.init, config), jax.random.key(0))
    drawn = jax.tree.map_with_path(
        lambda path, leaf: material.random_leaf(rng, path[-1].key, leaf.shape), shapes
    )
    return predict.Predictor(config, jax.device_put(drawn), buckets=buckets)


def pair(predictor: predict.Predictor, count: int, size: tuple[int, int]) -> dict[str, Call]:
    """Calls by name: the whole pair by AG+ and by LOM, and its parts.

    Args:
      predictor: of `predictor`.
      count: proposals of either picture.
      size: (height, width) of the pictures.
    """
    rng = np.random.default_rng(1)
    pictures = [(material.make_picture(rng, size), boxes(rng, count, size)) for _ in range(2)]

    def describe():
        return jax.block_until_ready([predictor.describe(*picture) for picture in pictures])

    def whole(method):
        sides = [predictor.describe(*picture) for picture in pictures]
        return predict.dense_flow(*sides, predictor.match(*sides, method=method))

    sides = describe()
    matched = predictor.match(*sides, method="ag+")
    return {
        "whole, AG+": _host(functools.partial(whole, "ag+")),
        "whole, LOM": _host(functools.partial(whole, "lom")),
        "features, pooling, embedding": _host(describe),
        "scores, AG+": _host(functools.partial(predictor.match, *sides, method="ag+")),
        "scores, LOM": _host(functools.partial(predictor.match, *sides, method="lom")),
        "flow": _host(functools.partial(predict.dense_flow, *sides, matched)),
    }


def _compare(ours: Callable, arguments: tuple, name: str, other: Callable) -> Compared:
    """`ours`, compiled, and `other`, in NumPy: both return arrays by name."""
    program, call = _program(ours, arguments)
    result, expected = call(), other()
    agreement = {name: {key: _apart(result[key], value) for key, value in expected.items()}}
    return Compared({"ours": call, name: _host(other)}, agreement, program, result)


def _program(function: Callable, arguments: tuple) -> tuple[Program, Call]:
    """`function` compiled, and its call on arguments that lie on the device; floats are float32 or less."""
    arguments = jax.device_put([jnp.asarray(one) for one in arguments])
    program = compiled(function, *arguments)
    return program, Call(lambda: program.call(*arguments), jax.block_until_ready)


def _host(function: Callable) -> Call:
    return Call(function, lambda result: result)


def _bincount(weights: np.ndarray, table: np.ndarray, size: int) -> np.ndarray:
    total = np.bincount(table.ravel(), weights.ravel(), size + 1)
    total[0] = 0
    return total[table]


def _same_best(ours: np.ndarray, theirs: np.ndarray) -> str:
    """How many rows have their largest score in the same column."""
    return f"{100 * np.mean(ours.argmax(axis=1) == theirs.argmax(axis=1)):.1f} %"


def _apart(ours: Any, theirs: Any) -> float:
    """The largest difference as a share of the largest value."""
    ours, theirs = (np.asarray(one).astype(np.float64) for one in (ours, theirs))
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), np.finfo(float).tiny))
