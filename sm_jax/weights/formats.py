"""Published weights, as `name -> array` dicts, into our naming: one strict rule set per format.

Every converter lists the exact tensors that it expects under the names of the file, so that a missing,
unexpected or misshapen one is reported in words that the person finds in the file. Names that a format is
known to carry and that have no use here (classifier heads, counters, the other network of a pair) are listed
as ignored, never guessed.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from sm_jax.errors import WeightsError
from sm_jax.weights import googlenet, mobilenet, structure, vgg
from sm_jax.weights.googlenet import GoogLeNet
from sm_jax.weights.io import check_finite, check_names, check_shapes, widen
from sm_jax.weights.mobilenet import MobileNet
from sm_jax.weights.structure import Architecture, Entry
from sm_jax.weights.vgg import VGG

Tensors = Mapping[str, np.ndarray]

OS2D_EXTRACTOR = "net_feature_maps."
OS2D_DUPLICATE = "net_label_features.net_class_features."
OS2D_TRANSFORM = "os2d_head_creator.aligner.parameter_regressor."
COUNTERS = r"(.*\.)?num_batches_tracked"


class Converted(NamedTuple):
    """`tensors` under our names (float32), the foreign names `ignored`, what it is, and its format."""

    tensors: dict[str, np.ndarray]
    ignored: tuple[str, ...]
    architecture: Architecture | MobileNet | VGG | GoogLeNet
    format: str


def _take(tensors: Tensors, expected: Mapping[str, Entry], ignored: str, where: str, what: str):
    """Check `tensors` strictly against `expected`, then permute: `(tensors of ours, ignored names)`."""
    pattern = re.compile(ignored)
    dropped = tuple(sorted(name for name in tensors if name not in expected and pattern.fullmatch(name)))
    kept = {name: array for name, array in tensors.items() if name not in set(dropped)}
    check_shapes(
        {name: np.shape(array) for name, array in kept.items()},
        {name: entry.shape for name, entry in expected.items()},
        where=where,
        what=what,
    )
    kept = {name: widen(np.asarray(array)) for name, array in kept.items()}
    check_finite(kept, where=where)
    ours = {entry.path: structure.to_ours(kept[name], entry.layout) for name, entry in expected.items()}
    return ours, dropped


def _resnet(tensors: Tensors, foreign: Callable[[str], str], *, deep, kind, ignored, where) -> Converted:
    """A bare ResNet with names `foreign(torchvision name)`; `deep` starts those that only ResNet-101 has."""
    depth = 101 if any(name.startswith(deep) for name in tensors) else 50
    norm = "batch_norm" if any(name.endswith(".running_mean") for name in tensors) else "group_norm"
    architecture = Architecture(depth, norm, None)
    expected = {foreign(name): entry for name, entry in structure.resnet_entries(depth, norm).items()}
    ours, dropped = _take(tensors, expected, ignored, where, f"{architecture} in {kind} names")
    return Converted(ours, dropped, architecture, kind)


def torchvision(tensors: Tensors, *, where: str = "these tensors") -> Converted:
    """torchvision's (and timm's) ResNet, under any one prefix; `layer4` and `fc` are ignored."""
    found = [re.fullmatch(r"(.*?)(?:conv1\.weight|layer1\.0\.conv1\.weight)", name) for name in tensors]
    prefix = min((match[1] for match in found if match), key=len, default="")
    return _resnet(
        tensors,
        lambda name: prefix + name,
        deep=f"{prefix}layer3.6.",
        kind="torchvision",
        ignored=rf"{COUNTERS}|{re.escape(prefix)}(layer4\..*|fc\.(weight|bias))",
        where=where,
    )


def cirtorch(tensors: Tensors, *, where: str = "these tensors") -> Converted:
    """cnnimageretrieval's Caffe-born or retrieval ResNet: 0 -> conv1, 1 -> bn1, 4..7 -> layer1..4.

    No channel flip and no rescaling: these nets already expect RGB with ImageNet's mean and deviation.
    Pooling and whitening of the retrieval files are ignored. Source: published OS2D code (OS2D specification,
    sec. 14).
    """
    prefix = "features." if any(name.startswith("features.") for name in tensors) else ""

    def foreign(name: str) -> str:
        first, rest = name.split(".", 1)
        return f"{prefix}{ {'conv1': 0, 'bn1': 1, 'layer1': 4, 'layer2': 5, 'layer3': 6}[first] }.{rest}"

    return _resnet(
        tensors,
        foreign,
        deep=f"{prefix}6.6.",
        kind="cirtorch",
        ignored=rf"{COUNTERS}|{re.escape(prefix)}7\..*|(pool|l?whiten)\..*",
        where=where,
    )


def fold_input(kernel: np.ndarray, *, pixel_std=(1.0, 1.0, 1.0), to_bgr255: bool = True) -> np.ndarray:
    """Fold another input convention into a first convolution (OIHW), so that it takes RGB/255, normalised.

    A net that was fed (255 * pixel - mean) / `pixel_std`, in BGR order when `to_bgr255`, gets its input
    channels scaled by 255 / pixel_std, flipped to RGB, and scaled by ImageNet's deviations. The mean is not
    compensated, as in the published conversions (the following norm layer was never adapted to it).
    """
    kernel = np.asarray(kernel, np.float32) * (255.0 / np.asarray(pixel_std, np.float32)).reshape(1, 3, 1, 1)
    if to_bgr255:
        kernel = kernel[:, ::-1]
    return np.ascontiguousarray(kernel * np.asarray(mobilenet.STD, np.float32).reshape(1, 3, 1, 1))


def _with_folded_input(converted: Converted, **options) -> Converted:
    tensors = dict(converted.tensors)
    name = "params/backbone/conv1/kernel"
    oihw = structure.to_torch(tensors[name], "oihw")
    tensors[name] = structure.to_ours(fold_input(oihw, **options), "oihw")
    return converted._replace(tensors=tensors)


def detectron(tensors: Tensors, *, where: str = "these tensors") -> Converted:
    """Detectron's group-norm ResNet (`res2_0_branch2a_w`, `_gn_s`, `_gn_b`); its BGR input is folded in."""

    def foreign(name: str) -> str:
        parts = name.split(".")
        stem = parts[0] if len(parts) == 2 else ""
        if not stem:
            unit = {"downsample": "branch1"}.get(parts[2]) or f"branch2{'abc'[int(parts[2][-1]) - 1]}"
            stem = f"res{int(parts[0][-1]) + 1}_{parts[1]}_{unit}"
        is_norm = parts[-2].startswith("bn") or parts[-3:-1] == ["downsample", "1"]
        if not is_norm:
            return f"{stem}_w"
        return f"{stem.replace('bn1', 'conv1')}_gn_{'s' if parts[-1] == 'weight' else 'b'}"

    converted = _resnet(
        tensors,
        foreign,
        deep="res4_6_",
        kind="detectron",
        ignored=r"res5_.*|(pred|fc1000)_[wb]|.*_momentum|lr|weight_order",
        where=where,
    )
    return _with_folded_input(converted)


def maskrcnn(
    tensors: Tensors, *, where: str = "these tensors", pixel_std=(1.0, 1.0, 1.0), to_bgr255: bool = True
) -> Converted:
    """maskrcnn-benchmark's detector: its body (`backbone.body.stem`, `layerN`); FPN and heads are ignored.

    `pixel_std` and `to_bgr255` are INPUT.PIXEL_STD and INPUT.TO_BGR255 of the model's config.
    """
    prefix = "module." if any(name.startswith("module.") for name in tensors) else ""

    def foreign(name: str) -> str:
        return f"{prefix}backbone.body.{'' if name.startswith('layer') else 'stem.'}{name}"

    converted = _resnet(
        tensors,
        foreign,
        deep=foreign("layer3.6."),
        kind="maskrcnn",
        ignored=rf"{COUNTERS}|{re.escape(prefix)}(backbone\.(fpn|body\.layer4)|rpn|roi_heads)\..*",
        where=where,
    )
    return _with_folded_input(converted, pixel_std=pixel_std, to_bgr255=to_bgr255)


def transformnet(tensors: Tensors, *, where: str = "these tensors") -> Converted:
    """A bare TransformNet state dict (`conv.0.weight` ... `linear.bias`), 4 or 6 parameters."""
    parameters = 4 if np.shape(tensors.get("linear.bias")) == (4,) else 6
    architecture = Architecture(None, None, parameters)
    expected = structure.transform_entries(parameters)
    ours, dropped = _take(tensors, expected, COUNTERS, where, str(architecture))
    return Converted(ours, dropped, architecture, "transformnet")


def os2d(tensors: Tensors, *, where: str = "these tensors") -> Converted:
    """The `net` of an official OS2D checkpoint.

    It has 532 entries (ResNet-50) or 1144 (ResNet-101), with group norm 274 or 580. The extractor is stored
    twice; the copies must be equal. Source: published OS2D code.
    """
    depth = 101 if any(name.startswith(f"{OS2D_EXTRACTOR}layer3.6.") for name in tensors) else 50
    statistics = (name.startswith(OS2D_EXTRACTOR) and name.endswith(".running_mean") for name in tensors)
    norm = "batch_norm" if any(statistics) else "group_norm"
    parameters = 4 if np.shape(tensors.get(f"{OS2D_TRANSFORM}linear.bias")) == (4,) else 6
    architecture = Architecture(depth, norm, parameters)
    resnet, transform = structure.resnet_entries(depth, norm), structure.transform_entries(parameters)
    expected = {OS2D_EXTRACTOR + name: entry for name, entry in resnet.items()}
    expected |= {OS2D_TRANSFORM + name: entry for name, entry in transform.items()}
    copies = {OS2D_DUPLICATE + name: entry for name, entry in resnet.items()}
    ours, dropped = _take(tensors, expected | copies, COUNTERS, where, f"an OS2D checkpoint ({architecture})")
    differing = [
        name
        for name in resnet
        if not np.array_equal(tensors[OS2D_EXTRACTOR + name], tensors[OS2D_DUPLICATE + name])
    ]
    if differing:
        raise WeightsError(
            f"{where}: the two copies of the feature extractor differ in {len(differing)} tensors (first: "
            f"{differing[0]}); only checkpoints with one shared extractor (merge_branch_parameters) "
            "can be converted"
        )
    return Converted(ours, dropped, architecture, "os2d")


def weakalign(tensors: Tensors, *, where: str = "these tensors") -> Converted:
    """weakalign's affine net, with its ResNet-101 where the file has one; the TPS net is ignored.

    `FeatureExtraction.model.{0,1,4,5,6}` is the backbone, `FeatureRegression.` TransformNet, whose
    `linear.weight` 6 x 1600 is the 5x5 convolution 6 x 64 x 5 x 5. Source: published OS2D code (OS2D
    specification, sec. 14).
    """
    model, regression = "FeatureExtraction.model.", "FeatureRegression."
    index = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6"}
    has_backbone = any(name.startswith(model) for name in tensors)
    depth = None
    if has_backbone:
        depth = 101 if any(name.startswith(f"{model}6.6.") for name in tensors) else 50
    architecture = Architecture(depth, "batch_norm" if has_backbone else None, 6)
    expected = {}
    for name, entry in structure.resnet_entries(depth).items() if depth else ():
        first, rest = name.split(".", 1)
        expected[f"{model}{index[first]}.{rest}"] = entry
    expected |= {regression + name: entry for name, entry in structure.transform_entries(6).items()}
    linear = f"{regression}linear.weight"
    if np.shape(tensors.get(linear)) == (6, 1600):
        tensors = {**tensors, linear: np.asarray(tensors[linear]).reshape(6, 64, 5, 5)}
    ignored = rf"{COUNTERS}|FeatureRegression2\..*"
    ours, dropped = _take(tensors, expected, ignored, where, f"a weakalign file ({architecture})")
    return Converted(ours, dropped, architecture, "weakalign")


def mobilenetv2(tensors: Tensors, *, where: str = "these tensors") -> Converted:
    """torchvision's MobileNetV2 (`features.0.0.weight`, ...), with or without its classifier."""
    return _mobilenet(tensors, mobilenet.entries, "classifier.1.bias", "mobilenetv2", where)


def mobilenetv2_timm(tensors: Tensors, *, where: str = "these tensors") -> Converted:
    """timm's MobileNetV2, as on the Hugging Face hub (`conv_stem.weight`, `blocks.0.0.conv_dw.weight`)."""
    return _mobilenet(tensors, mobilenet.timm_entries, "classifier.bias", "mobilenetv2-timm", where)


def mobilenetv2_tf(tensors: Tensors, *, where: str = "these tensors") -> Converted:
    """TensorFlow's MobileNetV2 with folded norms (`Conv/weight`, `expanded_conv/depthwise/weight`, OHWI).

    The result takes what everything here takes, normalised pictures, and wants `padding="tf_same"`.
    """
    folded = _mobilenet(tensors, mobilenet.tensorflow_entries, "Logits/bias", "mobilenetv2-tf", where)
    return folded._replace(tensors=mobilenet.unfold(folded.tensors))


def _mobilenet(tensors: Tensors, entries, classifier: str, kind: str, where: str) -> Converted:
    """`entries(classes)` are the expected tensors; the shape of `classifier` says how many classes."""
    bias = np.shape(tensors.get(classifier))
    architecture = mobilenet.MobileNet(bias[0] if len(bias) == 1 else None)
    expected = entries(architecture.classes)
    ours, dropped = _take(tensors, expected, COUNTERS, where, f"{architecture} in {kind} names")
    return Converted(ours, dropped, architecture, kind)


def vgg16(tensors: Tensors, *, where: str = "these tensors") -> Converted:
    """torchvision's and timm's VGG16 (`features.0.weight`, ...) to conv4_3; what lies above is ignored."""
    ignored = r"features\.(24|26|28)\.(weight|bias)|(classifier|pre_logits|head)\..*"
    ours, dropped = _take(tensors, vgg.entries(), ignored, where, f"{VGG()} in vgg16 names")
    return Converted(ours, dropped, VGG(), "vgg16")


def vgg16_matconvnet(tensors: Tensors, *, where: str = "these tensors") -> Converted:
    """MatConvNet's imagenet-vgg-verydeep-16, as `vgg.read_mat` gives it; its mean colour is folded in."""
    if vgg.AVERAGE not in tensors:
        raise WeightsError(f"{where}: has no averageImage, without which its input is not known")
    average = vgg.average_colour(tensors[vgg.AVERAGE], where=where)
    ignored = rf"{vgg.AVERAGE}|(conv5_[123]|fc[678])/(filters|biases)"
    expected = vgg.matconvnet_entries()
    ours, dropped = _take(tensors, expected, ignored, where, f"{VGG()} in vgg16-matconvnet names")
    return Converted(vgg.fold_average(ours, average), dropped, VGG(), "vgg16-matconvnet")


def caffe_googlenet(tensors: Tensors, *, where: str = "these tensors") -> Converted:
    """Caffe's GoogLeNet (`inception_3a/1x1/weight`, ..., OIHW), with or without its last classifier.

    It keeps taking BGR minus a mean. The two auxiliary classifiers are ignored.
    """
    bias = np.shape(tensors.get("loss3_classifier/bias"))
    architecture = GoogLeNet(bias[0] if len(bias) == 1 else None)
    what = f"{architecture} in caffe-googlenet names"
    ours, dropped = _take(tensors, architecture.entries(), r"loss[12]_.*", where, what)
    return Converted(ours, dropped, architecture, "caffe-googlenet")


def recognise(shapes: Mapping[str, tuple[int, ...]]) -> Architecture | MobileNet | VGG | GoogLeNet:
    """The nearest architecture to a set of our names and shapes; the caller compares with it."""
    for module in (googlenet, mobilenet, vgg):
        if found := module.recognise(shapes):
            return found
    return structure.recognise(dict(shapes))


def native(tensors: Tensors, *, where: str = "these tensors") -> Converted:
    """Our own naming: checked against the nearest architecture, nothing permuted."""
    check_names(tensors, where=where)
    shapes = {name: tuple(np.shape(array)) for name, array in tensors.items()}
    architecture = recognise(shapes)
    known = {name: shape for name, shape in shapes.items() if name.split("/")[1] not in architecture.parts}
    check_shapes(known, architecture.shapes(), where=where, what=str(architecture) or "any known network")
    check_finite(tensors, where=where)
    return Converted(dict(tensors), (), architecture, "sm_jax")


def to_torch(tensors: Tensors) -> dict[str, np.ndarray]:
    """Our flat tensors in PyTorch's layouts: torchvision's names and `transform.` + TransformNet's; GoogLeNet
    in Caffe's."""
    shapes = {name: tuple(np.shape(array)) for name, array in tensors.items()}
    architecture = recognise(shapes)
    check_shapes(shapes, architecture.shapes(), where="these tensors", what=str(architecture))
    entries = architecture.entries()
    return {
        name: structure.to_torch(np.asarray(tensors[entry.path]), entry.layout)
        for name, entry in entries.items()
    }


CONVERTERS: dict[str, Callable[..., Converted]] = {
    "sm_jax": native,
    "torchvision": torchvision,
    "os2d": os2d,
    "weakalign": weakalign,
    "cirtorch": cirtorch,
    "detectron": detectron,
    "maskrcnn": maskrcnn,
    "transformnet": transformnet,
    "mobilenetv2": mobilenetv2,
    "mobilenetv2-timm": mobilenetv2_timm,
    "mobilenetv2-tf": mobilenetv2_tf,
    "vgg16": vgg16,
    "vgg16-matconvnet": vgg16_matconvnet,
    "caffe-googlenet": caffe_googlenet,
}
INPUTS = {"caffe-googlenet": googlenet.INPUT}
"""What the networks of a format take, where it is not RGB/255 with ImageNet's mean and deviation."""
SIGNS = (
    ("sm_jax", r"(params|batch_stats)/.*"),
    ("os2d", r"net_feature_maps\..*|net_label_features\..*|os2d_head_creator\..*"),
    ("weakalign", r"Feature(Extraction|Regression)\..*"),
    ("maskrcnn", r"(module\.)?backbone\.body\..*"),
    ("detectron", r"res2_0_branch.*"),
    ("cirtorch", r"(features\.)?[4-6]\.\d+\.(conv|bn)\d\..*"),
    ("torchvision", r"(.*\.)?layer1\.0\.conv1\.weight"),
    ("mobilenetv2-timm", r"conv_stem\.weight|blocks\.\d+\.\d+\.conv_(pw|dw|pwl)\.weight"),
    ("mobilenetv2-tf", r"expanded_conv(_\d+)?/.*"),
    ("mobilenetv2", r"features\.\d+\.conv\..*"),
    ("vgg16", r"features\.\d+\.weight"),
    ("vgg16-matconvnet", r"conv\d_\d/(filters|biases)"),
    ("caffe-googlenet", r"inception_3a/(1x1|5x5_reduce|pool_proj)/(weight|bias)"),
    ("transformnet", r"conv\.[03]\.weight|linear\.weight"),
)


def detect(names, *, where: str = "these tensors") -> str:
    """Which published format the tensor names belong to; `WeightsError` when it is none of the known ones."""
    names = list(names)
    for kind, sign in SIGNS:
        if any(re.fullmatch(sign, name) for name in names):
            return kind
    some = ", ".join(sorted(names)[:3])
    raise WeightsError(
        f"{where}: the tensor names ({some}, ...) belong to no format known here; "
        f"known: {', '.join(CONVERTERS)}"
    )


def convert(
    tensors: Tensors, *, format: str = "auto", where: str = "these tensors", **options: Any
) -> Converted:
    """Convert loaded tensors of any published format (`CONVERTERS`) to ours; strict both ways.

    `options` are those of the format's converter (`maskrcnn` has some); others are a `WeightsError`.
    """
    kind = detect(tensors, where=where) if format == "auto" else format
    if kind not in CONVERTERS:
        raise WeightsError(f"format {format!r} is not known; known: auto, {', '.join(CONVERTERS)}")
    known = inspect.signature(CONVERTERS[kind]).parameters
    for name in options:
        if name not in known:
            raise WeightsError(f"{where}: is in {kind} names, for which there is no option {name}")
    return CONVERTERS[kind](tensors, where=where, **options)
