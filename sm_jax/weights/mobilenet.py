"""Published MobileNetV2 weights: the tensors of each form under its own names, and what they are here."""

from collections.abc import Mapping
from typing import NamedTuple

from sm_jax.weights.structure import Entry, norm_entries

BLOCKS = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
"""Expansion, output channels and repeats of the stages of inverted residuals."""
UNITS = 19


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
    result.append(Layer(unit, len(BLOCKS), 0, "conv", (1280, inner, 1, 1)))
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


def entries(classes: int | None = None) -> dict[str, Entry]:
    """The tensors under torchvision's names (`features.0.0.weight`, ...), with a classifier of `classes`."""
    result: dict[str, Entry] = {}
    for layer in layers():
        (conv, bn), (our_conv, our_bn) = _torchvision_names(layer), _ours(layer)
        result[f"{conv}.weight"] = Entry(f"params/{our_conv}/kernel", layer.shape, "oihw")
        result.update(norm_entries(bn, our_bn, layer.shape[0], "batch_norm"))
    if classes is not None:
        result["classifier.1.weight"] = Entry("params/classifier/kernel", (classes, 1280), "oi")
        result["classifier.1.bias"] = Entry("params/classifier/bias", (classes,))
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
