"""Published VGG16 weights: the tensors of each form under its own names, and what they are here."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sm_jax import matlab
from sm_jax.errors import WeightsError
from sm_jax.weights.structure import Entry

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AVERAGE = "meta/averageImage"  # of a MatConvNet file, as `read_mat` names it
MAX_MAT_BYTES = 2 << 30


def layers() -> list[tuple[str, int, tuple[int, int]]]:
    """Our name of each convolution to conv4_3, its index in torchvision's `features`, (in, out) channels."""
    result, index, inner = [], 0, 3
    for stage, widths in enumerate(STAGES, start=1):
        for place, width in enumerate(widths, start=1):
            result.append((f"conv{stage}_{place}", index, (inner, width)))
            index, inner = index + 2, width  # each convolution is followed by its ReLU
        index += 1  # the pooling
    return result


def entries() -> dict[str, Entry]:
    """The tensors under torchvision's and timm's names (`features.0.weight`, ...)."""
    result: dict[str, Entry] = {}
    for name, index, (inner, width) in layers():
        ours = f"params/backbone/{name}"
        result[f"features.{index}.weight"] = Entry(f"{ours}/kernel", (width, inner, 3, 3), "oihw")
        result[f"features.{index}.bias"] = Entry(f"{ours}/bias", (width,))
    return result


def matconvnet_entries() -> dict[str, Entry]:
    """The tensors under MatConvNet's names (`conv1_1/filters`, ...; kernels are HWIO as ours)."""
    result: dict[str, Entry] = {}
    for name, _, (inner, width) in layers():
        result[f"{name}/filters"] = Entry(f"params/backbone/{name}/kernel", (3, 3, inner, width))
        result[f"{name}/biases"] = Entry(f"params/backbone/{name}/bias", (width,))
    return result


def fold_average(tensors: Mapping[str, np.ndarray], average: np.ndarray) -> dict[str, np.ndarray]:
    """Tensors (our names) of a net fed RGB 0..255 minus `average` (3,) as of one fed what everything is here.

    The difference of scale goes into the first kernel, that of the means (below 0.01) into its bias; the
    latter is exact but for the outermost pixels.
    """
    result = dict(tensors)
    first = "params/backbone/conv1_1"
    kernel = np.asarray(tensors[f"{first}/kernel"], np.float64)
    offset = (kernel * (255.0 * np.asarray(MEAN) - average)[:, None]).sum((0, 1, 2))
    result[f"{first}/kernel"] = (kernel * (255.0 * np.asarray(STD))[:, None]).astype(np.float32)
    result[f"{first}/bias"] = (tensors[f"{first}/bias"] + offset).astype(np.float32)
    return result


def average_colour(average: np.ndarray, *, where: str) -> np.ndarray:
    """The mean colour (3,) RGB 0..255 of MatConvNet's `averageImage`, a colour or a whole picture.

    Raises:
      WeightsError: neither.
    """
    average = np.asarray(average, np.float64)
    if average.ndim == 3 and average.shape[2] == 3:
        average = average.mean((0, 1))
    if average.size != 3 or not np.isfinite(average).all():
        raise WeightsError(
            f"{where}: averageImage of shape {average.shape} is neither a colour nor a picture"
        )
    return average.reshape(3)


def read_mat(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a MatConvNet `.mat` file as `{"conv1_1/filters": ..., "meta/averageImage": ...}`.

    Both published forms are read: `layers{i}.weights = {filters, biases}`, and the older separate fields.

    Raises:
      WeightsError: no such file, not a MATLAB file of version 5 to 7, or no MatConvNet net.
    """
    path = Path(path)
    content = matlab.load(path, max_bytes=MAX_MAT_BYTES, error=WeightsError)
    net = content.get("net", None)
    found = getattr(net, "layers", content.get("layers"))
    if not isinstance(found, np.ndarray) or found.dtype != object:
        raise WeightsError(f"{path}: holds no MatConvNet net (a cell array 'layers')")
    tensors: dict[str, np.ndarray] = {}
    for layer in found.ravel():
        if getattr(layer, "type", "") != "conv":
            continue
        weights = getattr(layer, "weights", None)
        pair = [getattr(layer, "filters", None), getattr(layer, "biases", None)]
        pair = pair if weights is None or len(weights) != 2 else list(weights)
        for field, value in zip(("filters", "biases"), pair, strict=True):
            value = np.asarray(value)
            if value.dtype.kind != "f":
                raise WeightsError(f"{path}: layer {layer.name!r} has no numbers in {field}")
            tensors[f"{layer.name}/{field}"] = value.ravel() if field == "biases" else value
    meta = getattr(net, "meta", content.get("meta"))
    normalization = getattr(meta, "normalization", content.get("normalization"))
    average = getattr(normalization, "averageImage", None)
    if average is not None:
        tensors[AVERAGE] = np.asarray(average)
    if not tensors:
        raise WeightsError(f"{path}: the net has no convolutions")
    return tensors


class VGG(NamedTuple):
    """A set of tensors that holds VGG16 to conv4_3, and the other `parts` of the system it belongs to."""

    parts: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " + ".join(("vgg16-conv4_3", *self.parts))

    @property
    def depth(self) -> None:
        """No ResNet."""
        return None

    def entries(self) -> dict[str, Entry]:
        """Every tensor of the backbone under torchvision's names."""
        return entries()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Our names and shapes of every tensor of the backbone."""
        return {entry.path: entry.our_shape for entry in self.entries().values()}


def recognise(shapes: Mapping[str, tuple[int, ...]]) -> VGG | None:
    """The VGG16 that a set of our names and shapes is, or nearly is; None when it is none."""
    if not any(re.match(r"params/backbone/conv\d_\d/", name) for name in shapes):
        return None
    return VGG(tuple(sorted({name.split("/")[1] for name in shapes} - {"backbone"})))
