"""The deterministic weights of the golden files, and their way into our variables.

The rule (golden/os2d/README.md) makes every value from (seed, torch name, index) alone, so files need not
carry network weights. Torch keeps convolutions as OIHW and the 225 correlation channels column-major; ours
are HWIO and row-major.
"""

from collections.abc import Mapping

import numpy as np

GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)
BLOCKS = {50: (3, 4, 6), 101: (3, 4, 23)}
TEMPLATE = 15
IDENTITY = {4: (1.0, 0.0, 1.0, 0.0), 6: (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)}
NORM_LEAF = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
TRANSFORM_LAYERS = {
    "conv.0": "conv1",
    "conv.1": "bn1",
    "conv.3": "conv2",
    "conv.4": "bn2",
    "linear": "linear",
}


def uniform(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """u(seed, name, i) in (-1, 1), float64, C order."""
    with np.errstate(over="ignore"):
        key = np.uint64(0xCBF29CE484222325)
        for byte in name.encode():
            key = (key ^ np.uint64(byte)) * np.uint64(0x100000001B3)
        key = key ^ (np.uint64(seed) * GOLDEN_RATIO)
        z = key + np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * GOLDEN_RATIO
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    integers = (z >> np.uint64(40)).astype(np.float64)
    return ((2.0 * integers + 1.0) / 2.0**24 - 1.0).reshape(shape)


def value(
    name: str, shape: tuple[int, ...], seed: int, *, sparse_last=False, linear_scale=0.008
) -> np.ndarray:
    """The rule's float32 array for one torch name; `transform.` names get the TransformNet's scales."""
    u = uniform(name, shape, seed)
    leaf = name.rsplit(".", 1)[-1]
    layer = name.rsplit(".", 1)[0]
    if layer == "transform.linear":
        v = linear_scale * u if leaf == "weight" else np.asarray(IDENTITY[shape[0]]) + 0.02 * u
    elif layer in ("transform.conv.0", "transform.conv.3") and leaf == "bias":
        v = 0.05 * u
    elif len(shape) == 4:
        v = np.sqrt(6.0 / np.prod(shape[1:])) * u
    elif leaf == "weight":
        v = 0.3 + 0.1 * u if name.endswith("bn3.weight") else 1.0 + 0.25 * u
    elif leaf == "running_var":
        v = 1.0 + 0.3 * u
    elif sparse_last and name == "layer3.5.bn3.bias":
        v = -4.0 + 0.5 * u
    else:  # norm bias and running_mean
        v = 0.1 * u
    return v.astype(np.float16).astype(np.float32)


def _norm_shapes(name: str, width: int, norm: str) -> dict[str, tuple[int, ...]]:
    leaves = ("weight", "bias") if norm == "group_norm" else tuple(NORM_LEAF)
    return {f"{name}.{leaf}": (width,) for leaf in leaves}


def backbone_shapes(depth: int, norm: str = "frozen_bn") -> dict[str, tuple[int, ...]]:
    """Torch name -> torch shape of a ResNet cut after layer3 (without `num_batches_tracked`)."""
    shapes = {"conv1.weight": (64, 3, 7, 7), **_norm_shapes("bn1", 64, norm)}
    channels = 64
    for stage, blocks in enumerate(BLOCKS[depth], start=1):
        width = 32 * 2**stage
        for block in range(blocks):
            prefix = f"layer{stage}.{block}"
            convs = ((width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1))
            for i, shape in enumerate(convs, start=1):
                shapes[f"{prefix}.conv{i}.weight"] = shape
                shapes |= _norm_shapes(f"{prefix}.bn{i}", shape[0], norm)
            if block == 0:
                shapes[f"{prefix}.downsample.0.weight"] = (4 * width, channels, 1, 1)
                shapes |= _norm_shapes(f"{prefix}.downsample.1", 4 * width, norm)
            channels = 4 * width
    return shapes


def transform_shapes(parameters: int) -> dict[str, tuple[int, ...]]:
    """Torch name (state dict, without prefix) -> torch shape of a TransformNet with 4 or 6 outputs."""
    return {
        "conv.0.weight": (128, TEMPLATE**2, 7, 7), "conv.0.bias": (128,), **_norm_shapes("conv.1", 128, "bn"),
        "conv.3.weight": (64, 128, 5, 5), "conv.3.bias": (64,), **_norm_shapes("conv.4", 64, "bn"),
        "linear.weight": (parameters, 64, 5, 5), "linear.bias": (parameters,),
    }  # fmt: skip


def transform_arrays(parameters: int, seed: int, *, linear_scale: float) -> dict[str, np.ndarray]:
    """The rule's TransformNet under state-dict names; V1 has 4 `parameters`, V2 has 6."""
    return {
        name: value(f"transform.{name}", shape, seed, linear_scale=linear_scale)
        for name, shape in transform_shapes(parameters).items()
    }


def backbone_path(name: str) -> tuple[str, ...]:
    """Path in our variables of a torch name of the extractor, for example `layer1.0.downsample.1.bias`."""
    *layers, leaf = name.split(".")
    if layers[0].startswith("layer"):
        stage, block, *rest = layers
        kind = {"0": "downsample_conv", "1": "downsample_bn"}[rest[1]] if rest[0] == "downsample" else rest[0]
        layers = [f"{stage}_{block}", kind]
    return _path("backbone", layers, leaf)


def transform_path(name: str) -> tuple[str, ...]:
    """Path in our variables of a state-dict name of the TransformNet, for example `conv.4.running_var`."""
    layer, leaf = name.rsplit(".", 1)
    return _path("transform", [TRANSFORM_LAYERS[layer]], leaf)


def _path(part: str, layers: list[str], leaf: str) -> tuple[str, ...]:
    if "bn" not in layers[-1]:
        return ("params", part, *layers, "kernel" if leaf == "weight" else leaf)
    collection = "batch_stats" if leaf.startswith("running") else "params"
    return (collection, part, *layers, NORM_LEAF[leaf])


def to_ours(name: str, array: np.ndarray) -> np.ndarray:
    """Torch layout -> ours: OIHW -> HWIO; the TransformNet's first layer also column-major -> row-major."""
    if array.ndim != 4:
        return array
    if name.endswith("conv.0.weight"):
        o, _, h, w = array.shape
        array = array.reshape(o, TEMPLATE, TEMPLATE, h, w).transpose(0, 2, 1, 3, 4).reshape(array.shape)
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0))


def to_torch(name: str, array: np.ndarray) -> np.ndarray:
    """Inverse of `to_ours`."""
    if array.ndim != 4:
        return array
    array = array.transpose(3, 2, 0, 1)
    if name.endswith("conv.0.weight"):
        o, _, h, w = array.shape
        array = array.reshape(o, TEMPLATE, TEMPLATE, h, w).transpose(0, 2, 1, 3, 4).reshape(array.shape)
    return np.ascontiguousarray(array)


def lookup(tree: Mapping, path: tuple[str, ...]):
    """The leaf (or sub-tree) of a nested dictionary at `path`."""
    for key in path:
        tree = tree[key]
    return tree


def _nest(arrays: Mapping[str, np.ndarray], path_of) -> dict:
    tree: dict = {"params": {}, "batch_stats": {}}
    for name, array in arrays.items():
        if name.endswith("num_batches_tracked"):
            continue
        *parents, leaf = path_of(name)
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = to_ours(name, np.asarray(array))
    return tree


def backbone_variables(depth: int, norm: str, seed: int, sparse_last: bool = False) -> dict:
    """`{"params": {"backbone": ...}, "batch_stats": {"backbone": ...}}` by the rule (NumPy arrays)."""
    shapes = backbone_shapes(depth, norm)
    arrays = {name: value(name, shape, seed, sparse_last=sparse_last) for name, shape in shapes.items()}
    return _nest(arrays, backbone_path)


def transform_variables(arrays: Mapping[str, np.ndarray]) -> dict:
    """`{"params": {"transform": ...}, "batch_stats": {"transform": ...}}` from torch-named arrays."""
    return _nest({name: arrays[name] for name in arrays if "." in name}, transform_path)


def merge(*trees: Mapping) -> dict:
    """Join variables of different parts: `merge(backbone_variables(...), transform_variables(...))`."""
    return {key: {k: v for tree in trees for k, v in tree[key].items()} for key in ("params", "batch_stats")}
