"""What the tensors of each network are called, here and in PyTorch, with their shapes.

Names of ours are paths such as `"params/backbone/layer1_0/conv1/kernel"`. One `Entry` per foreign tensor says
which of ours it becomes and how its axes are permuted; every axis permutation for foreign weights happens in
`to_ours`.
"""

from typing import NamedTuple

import numpy as np

BLOCKS = {50: (3, 4, 6), 101: (3, 4, 23)}
TEMPLATE = 15
NORM_FIELDS = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}


AXES = {"oihw": (2, 3, 1, 0), "ohwi": (1, 2, 3, 0), "1hwc": (1, 2, 0, 3), "oi": (1, 0)}
"""Layouts that one permutation turns into ours; "1hwc" is a depthwise kernel of TensorFlow."""


class Entry(NamedTuple):
    """One foreign tensor: our `path`, its `shape` and its `layout`.

    Layouts: "vector", those of `AXES`, "o11i" (a dense layer stored as a 1x1 convolution) and "corr_oihw".
    """

    path: str
    shape: tuple[int, ...]
    layout: str = "vector"

    @property
    def our_shape(self) -> tuple[int, ...]:
        """The shape after `to_ours`: convolution kernels are HWIO, dense ones (in, out)."""
        if self.layout == "vector":
            return self.shape
        if self.layout == "o11i":
            return (self.shape[3], self.shape[0])
        return tuple(self.shape[axis] for axis in AXES[self.layout.removeprefix("corr_")])


def to_ours(array: np.ndarray, layout: str) -> np.ndarray:
    """Permute the axes of a foreign tensor into ours.

    Convolution kernels become HWIO, dense ones (in, out). "corr_oihw" is the first layer of TransformNet,
    whose input channels are the template positions: column-major in every published file (channel j*15 + i,
    row i, column j), row-major here (i*15 + j). Source: OS2D (ECCV 2020), published OS2D and weakalign code.
    """
    if layout == "vector":
        return array
    if layout == "o11i":
        return np.ascontiguousarray(array[:, 0, 0].T)
    if layout == "corr_oihw":
        out, _, height, width = array.shape
        array = array.reshape(out, TEMPLATE, TEMPLATE, height, width).swapaxes(1, 2)
        array = array.reshape(out, TEMPLATE * TEMPLATE, height, width)
    return np.ascontiguousarray(array.transpose(AXES[layout.removeprefix("corr_")]))


def to_torch(array: np.ndarray, layout: str) -> np.ndarray:
    """The inverse of `to_ours`."""
    if layout == "vector":
        return array
    if layout == "o11i":
        return np.ascontiguousarray(array.T[:, None, None])
    array = array.transpose(np.argsort(AXES[layout.removeprefix("corr_")]))
    if layout == "corr_oihw":
        out, _, height, width = array.shape
        array = array.reshape(out, TEMPLATE, TEMPLATE, height, width).swapaxes(1, 2)
        array = array.reshape(out, TEMPLATE * TEMPLATE, height, width)
    return np.ascontiguousarray(array)


def norm_entries(foreign: str, ours: str, channels: int, norm: str) -> dict[str, Entry]:
    """The vectors of one norm layer: `foreign` + ".weight" ... become `ours` + "/scale" ..."""
    fields = ("weight", "bias") if norm == "group_norm" else tuple(NORM_FIELDS)
    return {
        f"{foreign}.{field}": Entry(f"{NORM_FIELDS[field][0]}/{ours}/{NORM_FIELDS[field][1]}", (channels,))
        for field in fields
    }


def resnet_entries(depth: int, norm: str = "batch_norm") -> dict[str, Entry]:
    """The tensors of a ResNet to C4 under torchvision's names (`conv1.weight`, `layer1.0.bn1.weight`, ...).

    `norm` is "batch_norm" (also for frozen statistics) or "group_norm", which has no running statistics.
    """
    entries: dict[str, Entry] = {}

    def conv(foreign: str, ours: str, shape: tuple[int, ...]) -> None:
        entries[f"{foreign}.weight"] = Entry(f"params/backbone/{ours}/kernel", shape, "oihw")

    def normalise(foreign: str, ours: str, channels: int) -> None:
        entries.update(norm_entries(foreign, f"backbone/{ours}", channels, norm))

    conv("conv1", "conv1", (64, 3, 7, 7))
    normalise("bn1", "bn1", 64)
    inner = 64
    for stage, blocks in enumerate(BLOCKS[depth], start=1):
        width = 32 * 2**stage
        for block in range(blocks):
            foreign, ours = f"layer{stage}.{block}", f"layer{stage}_{block}"
            shapes = ((width, inner, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1))
            for i, shape in enumerate(shapes, start=1):
                conv(f"{foreign}.conv{i}", f"{ours}/conv{i}", shape)
                normalise(f"{foreign}.bn{i}", f"{ours}/bn{i}", shape[0])
            if block == 0:
                conv(f"{foreign}.downsample.0", f"{ours}/downsample_conv", (4 * width, inner, 1, 1))
                normalise(f"{foreign}.downsample.1", f"{ours}/downsample_bn", 4 * width)
            inner = 4 * width
    return entries


def transform_entries(parameters: int) -> dict[str, Entry]:
    """The tensors of TransformNet with 4 (V1) or 6 (V2) outputs under the published names."""
    entries: dict[str, Entry] = {}
    for foreign, ours, shape, layout in (
        ("conv.0", "conv1", (128, TEMPLATE * TEMPLATE, 7, 7), "corr_oihw"),
        ("conv.3", "conv2", (64, 128, 5, 5), "oihw"),
        ("linear", "linear", (parameters, 64, 5, 5), "oihw"),
    ):
        entries[f"{foreign}.weight"] = Entry(f"params/transform/{ours}/kernel", shape, layout)
        entries[f"{foreign}.bias"] = Entry(f"params/transform/{ours}/bias", shape[:1])
    entries.update(norm_entries("conv.1", "transform/bn1", 128, "batch_norm"))
    entries.update(norm_entries("conv.4", "transform/bn2", 64, "batch_norm"))
    return entries


class Architecture(NamedTuple):
    """What a set of tensors is: `depth` 50 | 101 | None (no backbone), `norm`, `parameters` 4 | 6 | None."""

    depth: int | None
    norm: str | None
    parameters: int | None

    def __str__(self) -> str:
        backbone = "" if self.depth is None else f"resnet{self.depth}-c4"
        if self.norm == "group_norm":
            backbone += " group norm"
        transform = "" if self.parameters is None else f"TransformNet {self.parameters} parameters"
        return " + ".join(part for part in (backbone, transform) if part)

    @property
    def parts(self) -> tuple[str, ...]:
        """No parts that only another system knows."""
        return ()

    def entries(self) -> dict[str, Entry]:
        """Every tensor under PyTorch names; TransformNet's carry the prefix `transform.`."""
        entries = {} if self.depth is None else resnet_entries(self.depth, self.norm or "batch_norm")
        if self.parameters is not None:
            transform = transform_entries(self.parameters)
            entries.update({f"transform.{name}": entry for name, entry in transform.items()})
        return entries

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Our names and shapes of every tensor."""
        return {entry.path: entry.our_shape for entry in self.entries().values()}


def recognise(shapes: dict[str, tuple[int, ...]]) -> Architecture:
    """The nearest architecture to a set of our names and shapes; the caller compares with it."""
    depth = norm = parameters = None
    if any(name.startswith("params/backbone/") for name in shapes):
        depth = 101 if any(name.startswith("params/backbone/layer3_6/") for name in shapes) else 50
        has_statistics = any(name.startswith("batch_stats/backbone/") for name in shapes)
        norm = "batch_norm" if has_statistics else "group_norm"
    if any(name.startswith("params/transform/") for name in shapes):
        parameters = 4 if shapes.get("params/transform/linear/bias") == (4,) else 6
    return Architecture(depth, norm, parameters)
