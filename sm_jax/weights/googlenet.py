"""Published GoogLeNet weights (Caffe's BVLC model): tensors under Caffe's names, and what they are here."""

from collections.abc import Mapping
from typing import NamedTuple

from sm_jax.weights.structure import Entry

MODULES = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}
"""Channels in, of the 1x1 branch, of the 3x3 reduction and branch, of the 5x5 ones, of the pooled branch."""
CHANNELS = 1024
CLASSIFIER = ("params/classifier/kernel", "params/classifier/bias")
BRANCHES = ("backbone", "image_branch", "request_branch")
"""Parts that are this network: alone, or the two of the single-shot semantic matcher."""
INPUT = "BGR 0..255 minus a mean (104 117 123; the matcher: 127), not scaled"


def layers() -> dict[str, tuple[str, tuple[int, int, int, int]]]:
    """Caffe's name of every convolution: its name here and its OIHW shape, in order."""
    result = {
        "conv1_7x7_s2": ("conv1", (64, 3, 7, 7)),
        "conv2_3x3_reduce": ("conv2_reduce", (64, 64, 1, 1)),
        "conv2_3x3": ("conv2", (192, 64, 3, 3)),
    }
    for stage, (inner, one, reduce_three, three, reduce_five, five, pool) in MODULES.items():
        for foreign, ours, shape in (
            ("1x1", "one", (one, inner, 1, 1)),
            ("3x3_reduce", "reduce_three", (reduce_three, inner, 1, 1)),
            ("3x3", "three", (three, reduce_three, 3, 3)),
            ("5x5_reduce", "reduce_five", (reduce_five, inner, 1, 1)),
            ("5x5", "five", (five, reduce_five, 5, 5)),
            ("pool_proj", "pool", (pool, inner, 1, 1)),
        ):
            result[f"inception_{stage}/{foreign}"] = (f"inception_{stage}/{ours}", shape)
    return result


def entries(classes: int | None = None, part: str = "backbone") -> dict[str, Entry]:
    """The tensors under Caffe's names (`inception_3a/1x1/weight`, ...), with a classifier of `classes`.

    No channel flip: the network here takes BGR, as Caffe's.
    """
    result: dict[str, Entry] = {}
    for foreign, (ours, shape) in layers().items():
        result[f"{foreign}/weight"] = Entry(f"params/{part}/{ours}/kernel", shape, "oihw")
        result[f"{foreign}/bias"] = Entry(f"params/{part}/{ours}/bias", shape[:1])
    if classes is not None:
        result["loss3_classifier/weight"] = Entry(CLASSIFIER[0], (classes, CHANNELS), "oi")
        result["loss3_classifier/bias"] = Entry(CLASSIFIER[1], (classes,))
    return result


class GoogLeNet(NamedTuple):
    """A set of tensors that holds a GoogLeNet.

    `classes` of its classifier (None: it has none), the `branches` that are this network, and the other
    `parts` of the system that it belongs to, whose tensors only that system knows.
    """

    classes: int | None = None
    branches: tuple[str, ...] = ("backbone",)
    parts: tuple[str, ...] = ()

    def __str__(self) -> str:
        classifier = () if self.classes is None else (f"classifier of {self.classes} classes",)
        branches = () if self.branches == ("backbone",) else self.branches
        return " + ".join(("googlenet", *classifier, *branches, *self.parts))

    @property
    def depth(self) -> None:
        """No ResNet."""
        return None

    def entries(self) -> dict[str, Entry]:
        """Every tensor of one branch and the classifier under Caffe's names."""
        return entries(self.classes, self.branches[0])

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Our names and shapes of every tensor of the branches and the classifier."""
        found = [entry for part in self.branches for entry in entries(self.classes, part).values()]
        return {entry.path: entry.our_shape for entry in found}


def recognise(shapes: Mapping[str, tuple[int, ...]]) -> GoogLeNet | None:
    """The GoogLeNet that a set of our names and shapes is, or nearly is; None when it is none."""
    parts = {name.split("/")[1] for name in shapes}
    branches = [part for part in BRANCHES if any(f"params/{part}/inception_" in name for name in shapes)]
    if not branches:
        return None
    classifier = shapes.get("params/classifier/bias")
    others = tuple(sorted(parts - {*branches, "classifier"}))
    return GoogLeNet(None if classifier is None else classifier[0], tuple(branches), others)
