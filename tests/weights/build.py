"""Published files of the documented form, built from a rule instead of being carried along."""

import numpy as np

from sm_jax.weights import structure

EXTRACTOR, DUPLICATE = "net_feature_maps.", "net_label_features.net_class_features."
TRANSFORM = "os2d_head_creator.aligner.parameter_regressor."


def random_entries(entries, seed=0) -> dict[str, np.ndarray]:
    """Small random tensors, positive variances, one counter per batch norm."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, entry in entries.items():
        value = rng.standard_normal(entry.shape, dtype=np.float32) * np.float32(0.05)
        tensors[name] = np.abs(value) + 1 if name.endswith("running_var") else value
        if name.endswith("running_mean"):
            tensors[name.replace("running_mean", "num_batches_tracked")] = np.asarray(7, np.int64)
    return tensors


def resnet(depth=50, norm="batch_norm", seed=0) -> dict[str, np.ndarray]:
    """A torchvision ResNet state dict, cut after layer3."""
    return random_entries(structure.resnet_entries(depth, norm), seed)


def transformnet(parameters=6, seed=1) -> dict[str, np.ndarray]:
    """A TransformNet state dict."""
    return random_entries(structure.transform_entries(parameters), seed)


def os2d(depth=50, norm="batch_norm", parameters=6) -> dict[str, np.ndarray]:
    """The `net` of an official OS2D checkpoint: extractor, TransformNet, extractor again."""
    extractor = resnet(depth, norm)
    net = {EXTRACTOR + name: value for name, value in extractor.items()}
    net |= {TRANSFORM + name: value for name, value in transformnet(parameters).items()}
    return net | {DUPLICATE + name: value for name, value in extractor.items()}


def weakalign(depth=101) -> dict[str, np.ndarray]:
    """A weakalign state dict: ResNet, affine net, TPS net."""
    index = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6"}
    state = {}
    for name, value in resnet(depth).items() if depth else ():
        first, rest = name.split(".", 1)
        state[f"FeatureExtraction.model.{index[first]}.{rest}"] = value
    affine = transformnet(6)
    affine["linear.weight"] = affine["linear.weight"].reshape(6, 1600)
    state |= {f"FeatureRegression.{name}": value for name, value in affine.items()}
    return state | {f"FeatureRegression2.{name}": value for name, value in affine.items()}


def cirtorch(depth=50, retrieval=False) -> dict[str, np.ndarray]:
    """A cnnimageretrieval file: stages 0, 1, 4..7; `features.` and pooling in the retrieval models."""
    index = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6"}
    prefix = "features." if retrieval else ""
    state = {f"{prefix}7.0.conv1.weight": np.zeros((512, 1024, 1, 1), np.float32)}
    for name, value in resnet(depth).items():
        first, rest = name.split(".", 1)
        state[f"{prefix}{index[first]}.{rest}"] = value
    if retrieval:
        state |= {"pool.p": np.ones(1, np.float32), "whiten.weight": np.zeros((8, 8), np.float32)}
    return state


def detectron(depth=50) -> dict[str, np.ndarray]:
    """The blobs of Detectron's group-norm ResNet, written out name by name."""
    torch = resnet(depth, "group_norm")
    blobs = {
        "conv1_w": torch["conv1.weight"],
        "conv1_gn_s": torch["bn1.weight"],
        "conv1_gn_b": torch["bn1.bias"],
    }
    blobs |= {
        "pred_w": np.zeros((1000, 2048), np.float32),
        "res5_0_branch1_w": np.zeros((2, 2, 1, 1), np.float32),
    }
    for stage, count in enumerate(structure.BLOCKS[depth], start=1):
        for block in range(count):
            theirs, ours = f"res{stage + 1}_{block}", f"layer{stage}.{block}"
            for i, letter in enumerate("abc", start=1):
                blobs[f"{theirs}_branch2{letter}_w"] = torch[f"{ours}.conv{i}.weight"]
                blobs[f"{theirs}_branch2{letter}_gn_s"] = torch[f"{ours}.bn{i}.weight"]
                blobs[f"{theirs}_branch2{letter}_gn_b"] = torch[f"{ours}.bn{i}.bias"]
        theirs, ours = f"res{stage + 1}_0_branch1", f"layer{stage}.0.downsample"
        blobs[f"{theirs}_w"] = torch[f"{ours}.0.weight"]
        blobs[f"{theirs}_gn_s"] = torch[f"{ours}.1.weight"]
        blobs[f"{theirs}_gn_b"] = torch[f"{ours}.1.bias"]
    return blobs


def maskrcnn(depth=50) -> dict[str, np.ndarray]:
    """A maskrcnn-benchmark detector: body with a stem, FPN and heads beside it."""
    state = {
        "module.backbone.fpn.fpn_inner1.weight": np.zeros((4, 4, 1, 1), np.float32),
        "module.backbone.body.layer4.0.bn1.bias": np.zeros(512, np.float32),
        "module.rpn.head.conv.bias": np.zeros(4, np.float32),
        "module.roi_heads.box.predictor.cls_score.bias": np.zeros(4, np.float32),
    }
    for name, value in resnet(depth).items():
        stem = "" if name.startswith("layer") else "stem."
        state[f"module.backbone.body.{stem}{name}"] = value
    return state
