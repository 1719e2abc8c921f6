"""Published MobileNetV2 weights: the tensors of each form under its own names, and what they are here."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from sm_jax.weights.structure import Entry, norm_entries

BLOCKS = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
"""Expansion, output channels and repeats of the stages of inverted residuals."""
WIDTH = 1280
CLASSIFIER = ("params/classifier/kernel", "params/classifier/bias")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EPSILON = 1e-5


class Layer(NamedTuple):
    """One convolution with its norm: unit, stage and place in it, name here, OIHW shape."""

    unit: int
    stage: int
    place: int
    name: str
    shape: tuple[int, int, int, int]


def layers() -> list[Layer]:
    """All convolutions in order; the stem is stage -1, the last one stage 7."""
    result = [Layer(0, -1, 0, "conv", (32, 3, 3, 3))]
    unit, inner = 1, 32
    for stage, (expansion, out, repeats) in enumerate(BLOCKS):
        for place in range(repeats):
            wide = expansion * inner
            if expansion != 1:
                result.append(Layer(unit, stage, place, "expand", (wide, inner, 1, 1)))
            result.append(Layer(unit, stage, place, "depthwise", (wide, 1, 3, 3)))
            result.append(Layer(unit, stage, place, "project", (out, wide, 1, 1)))
            unit, inner = unit + 1, out
    result.append(Layer(unit, len(BLOCKS), 0, "conv", (WIDTH, inner, 1, 1)))
    return result


def _ours(layer: Layer) -> tuple[str, str]:
    """Paths of the convolution and its norm below `params/`."""
    unit = f"backbone/features_{layer.unit}"
    return f"{unit}/{layer.name}", f"{unit}/bn" if layer.name == "conv" else f"{unit}/{layer.name}_bn"


def _torchvision_names(layer: Layer) -> tuple[str, str]:
    unit = f"features.{layer.unit}"
    if layer.name == "conv":
        return f"{unit}.0", f"{unit}.1"
    first = 0 if layer.unit == 1 else 1
    if layer.name == "project":
        return f"{unit}.conv.{first + 1}", f"{unit}.conv.{first + 2}"
    place = 0 if layer.name == "expand" else first
    return f"{unit}.conv.{place}.0", f"{unit}.conv.{place}.1"


def _timm_names(layer: Layer) -> tuple[str, str]:
    if layer.name == "conv":
        return ("conv_stem", "bn1") if layer.unit == 0 else ("conv_head", "bn2")
    block = f"blocks.{layer.stage}.{layer.place}"
    if layer.unit == 1:  # no expansion: "conv_pw" is the projection
        names = {"depthwise": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")}
    else:
        names = {
            "expand": ("conv_pw", "bn1"),
            "depthwise": ("conv_dw", "bn2"),
            "project": ("conv_pwl", "bn3"),
        }
    conv, bn = names[layer.name]
    return f"{block}.{conv}", f"{block}.{bn}"


def _tensorflow_name(layer: Layer) -> str:
    if layer.name == "conv":
        return "Conv" if layer.unit == 0 else "Conv_1"
    block = "expanded_conv" if layer.unit == 1 else f"expanded_conv_{layer.unit - 1}"
    return f"{block}/{layer.name}"


def _normed(names: Callable[[Layer], tuple[str, str]], classifier: str, classes: int | None):
    result: dict[str, Entry] = {}
    for layer in layers():
        (conv, bn), (our_conv, our_bn) = names(layer), _ours(layer)
        result[f"{conv}.weight"] = Entry(f"params/{our_conv}/kernel", layer.shape, "oihw")
        result.update(norm_entries(bn, our_bn, layer.shape[0], "batch_norm"))
    if classes is not None:
        result[f"{classifier}.weight"] = Entry(CLASSIFIER[0], (classes, WIDTH), "oi")
        result[f"{classifier}.bias"] = Entry(CLASSIFIER[1], (classes,))
    return result


def entries(classes: int | None = None) -> dict[str, Entry]:
    """The tensors under torchvision's names (`features.0.0.weight`, ...), with a classifier of `classes`."""
    return _normed(_torchvision_names, "classifier.1", classes)


def timm_entries(classes: int | None = None) -> dict[str, Entry]:
    """The same under timm's names (`conv_stem.weight`, `blocks.0.0.conv_dw.weight`, ...)."""
    return _normed(_timm_names, "classifier", classes)


def tensorflow_entries(classes: int | None = None) -> dict[str, Entry]:
    """The tensors of TensorFlow's net with its norms folded: `Conv/weight`, `Conv/bias`, ..., OHWI."""
    result: dict[str, Entry] = {}
    for layer in layers():
        name, (conv, bn) = _tensorflow_name(layer), _ours(layer)
        out, inner, height, width = layer.shape
        if layer.name == "depthwise":
            kernel = Entry(f"params/{conv}/kernel", (1, height, width, out), "1hwc")
        else:
            kernel = Entry(f"params/{conv}/kernel", (out, height, width, inner), "ohwi")
        result[f"{name}/weight"] = kernel
        result[f"{name}/bias"] = Entry(f"params/{bn}/bias", (out,))
    if classes is not None:
        result["Logits/weight"] = Entry(CLASSIFIER[0], (classes, 1, 1, WIDTH), "o11i")
        result["Logits/bias"] = Entry(CLASSIFIER[1], (classes,))
    return result


def unfold(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Folded tensors (our names) as those of a net with norms that takes normalised pictures.

    The norms get mean 0, variance 1 and the scale that makes their factor 1; the bias stays. TensorFlow's
    input is 2 p - 1 of a pixel p in 0..1, ours (p - mean) / std: the difference goes into the first kernel
    and bias. It is exact in the whole picture with `padding="tf_same"`.
    """
    result = dict(tensors)
    for layer in layers():
        bn, channels = _ours(layer)[1], layer.shape[0]
        result[f"params/{bn}/scale"] = np.full(channels, np.sqrt(1.0 + EPSILON), np.float32)
        result[f"batch_stats/{bn}/mean"] = np.zeros(channels, np.float32)
        result[f"batch_stats/{bn}/var"] = np.ones(channels, np.float32)
    conv, bn = (f"params/{name}" for name in _ours(layers()[0]))
    kernel = np.asarray(tensors[f"{conv}/kernel"], np.float64)
    offset = (kernel * (2.0 * np.asarray(MEAN) - 1.0)[:, None]).sum((0, 1, 2))
    result[f"{conv}/kernel"] = (kernel * (2.0 * np.asarray(STD))[:, None]).astype(np.float32)
    result[f"{bn}/bias"] = (tensors[f"{bn}/bias"] + offset).astype(np.float32)
    return result


class MobileNet(NamedTuple):
    """A set of tensors that holds a MobileNetV2.

    `classes` of its classifier (None: it has none), and the other `parts` of the system that it belongs to,
    whose tensors only that system knows.
    """

    classes: int | None = None
    parts: tuple[str, ...] = ()

    def __str__(self) -> str:
        classifier = () if self.classes is None else (f"classifier of {self.classes} classes",)
        return " + ".join(("mobilenetv2", *classifier, *self.parts))

    @property
    def depth(self) -> None:
        """No ResNet."""
        return None

    def entries(self) -> dict[str, Entry]:
        """Every tensor of backbone and classifier under torchvision's names."""
        return entries(self.classes)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Our names and shapes of every tensor of backbone and classifier."""
        return {entry.path: entry.our_shape for entry in self.entries().values()}


def recognise(shapes: Mapping[str, tuple[int, ...]]) -> MobileNet | None:
    """The MobileNetV2 that a set of our names and shapes is, or nearly is; None when it is none."""
    if not any(name.startswith("params/backbone/features_") for name in shapes):
        return None
    classifier = shapes.get("params/classifier/bias")
    parts = {name.split("/")[1] for name in shapes} - {"backbone", "classifier"}
    return MobileNet(None if classifier is None else classifier[0], tuple(sorted(parts)))
