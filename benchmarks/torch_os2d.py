"""The peer to measure against: OS2D as PyTorch functions, written by us from the specification.

Eager mode in the style of the publication: NCHW, norms evaluated, one class per call, the full 225-point grid
built twice, resampling in float64 through one stacked map, batched 3x3 inverses. `torch_tuned.py` is the same
mathematics the way a PyTorch engineer would write it today. Weights are a dict of tensors under PyTorch's
names: torchvision's, and `transform.` + TransformNet's (`sm_jax.weights.formats.to_torch` gives them).
Channels are column-major here.

Source of the operations: OS2D (ECCV 2020); no published code is copied.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F

TEMPLATE, STRIDE, BORDER = 15, 16, 2
ANCHOR = STRIDE * TEMPLATE
INVERSE_CHUNK = 65_535
EXP_CAP = float(np.log(1000 / 16))
Weights = dict[str, torch.Tensor]


def as_tensors(arrays: Mapping[str, np.ndarray], device: str = "cpu", dtype=torch.float32) -> Weights:
    """NumPy arrays to tensors; counters are left out."""
    return {
        name: torch.from_numpy(np.array(array)).to(device=device, dtype=dtype)
        for name, array in arrays.items()
        if not name.endswith("num_batches_tracked")
    }


def trainable(weights: Weights) -> Weights:
    """Mark everything but running statistics as parameters (in place) and return the parameters."""
    chosen = {name: w for name, w in weights.items() if not name.endswith(("running_mean", "running_var"))}
    for tensor in chosen.values():
        tensor.requires_grad_(True)
    return chosen


# --- features
# ----------------------------------------------------------------------------------------------------


def _norm(x, w: Weights, name: str):
    if f"{name}.running_mean" not in w:
        return F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)
    mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, w[f"{name}.weight"], w[f"{name}.bias"], False, 0.1, 1e-5)


def _bottleneck(x, w: Weights, name: str, stride: int):
    y = F.relu(_norm(F.conv2d(x, w[f"{name}.conv1.weight"]), w, f"{name}.bn1"))
    y = F.relu(_norm(F.conv2d(y, w[f"{name}.conv2.weight"], stride=stride, padding=1), w, f"{name}.bn2"))
    y = _norm(F.conv2d(y, w[f"{name}.conv3.weight"]), w, f"{name}.bn3")
    if f"{name}.downsample.0.weight" in w:
        x = _norm(F.conv2d(x, w[f"{name}.downsample.0.weight"], stride=stride), w, f"{name}.downsample.1")
    return F.relu(y + x)


def block_names(w: Weights) -> list[str]:
    """`layer1.0`, `layer1.1`, ... in order of execution."""
    names = {".".join(name.split(".")[:2]) for name in w if name.startswith("layer")}
    return sorted(names, key=lambda name: [int(part) for part in name.removeprefix("layer").split(".")])


def features(w: Weights, image):
    """ResNet to C4: (n, 3, h, w) normalised -> (n, 1024, ceil(h/16), ceil(w/16)), norms with stored
    statistics."""
    x = F.relu(_norm(F.conv2d(image, w["conv1.weight"], stride=2, padding=3), w, "bn1"))
    x = F.max_pool2d(x, 3, 2, 1)
    for name in block_names(w):
        x = _bottleneck(x, w, name, stride=2 if name in ("layer2.0", "layer3.0") else 1)
    return x


def template(class_features):
    """(1, d, h, w) -> (1, d, 15, 15): corner-aligned resize, then L2 over channels."""
    size = (class_features.shape[0], 1, TEMPLATE, TEMPLATE)
    identity = torch.eye(2, 3, device=class_features.device, dtype=class_features.dtype)
    grid = F.affine_grid(identity.expand(size[0], 2, 3), size, align_corners=True)
    return normalise(F.grid_sample(class_features, grid, align_corners=True), 1e-5)


def normalise(x, epsilon: float):
    """x / (|x| + epsilon) over the channel axis 1."""
    return x / (x.norm(dim=1, keepdim=True) + epsilon)


# --- head
# --------------------------------------------------------------------------------------------------------


def correlation(image_features, templates):
    """(n, d, H, W), (C, d, 15, 15) -> (n*C, 225, H, W); channel = column * 15 + row."""
    n, d, height, width = image_features.shape
    bank = templates.permute(0, 3, 2, 1).reshape(-1, d)
    corr = torch.matmul(bank, image_features.reshape(n, d, height * width))
    return corr.reshape(-1, TEMPLATE * TEMPLATE, height, width)


def transform_parameters(w: Weights, corr, *, train_norm: bool = False):
    """TransformNet: (B, 225, H, W) -> (B, 4 or 6, H, W). `train_norm` uses and updates batch statistics."""
    x = normalise(F.relu(corr), 1e-6)
    for conv, bn, padding in (("conv.0", "conv.1", 3), ("conv.3", "conv.4", 2)):
        x = F.conv2d(x, w[f"transform.{conv}.weight"], w[f"transform.{conv}.bias"], padding=padding)
        mean, var = w[f"transform.{bn}.running_mean"], w[f"transform.{bn}.running_var"]
        scale, bias = w[f"transform.{bn}.weight"], w[f"transform.{bn}.bias"]
        x = F.relu(F.batch_norm(x, mean, var, scale, bias, train_norm, 0.1, 1e-5))
    return F.conv2d(x, w["transform.linear.weight"], w["transform.linear.bias"], padding=2)


def transforms(parameters, inverse: bool):
    """(B, P, H, W) -> (B*H*W, 2, 3) in the order batch, y, x."""
    p = parameters.permute(0, 2, 3, 1).reshape(-1, parameters.shape[1])
    if p.shape[1] == 4:
        zero = torch.zeros_like(p[:, 0])
        p = torch.stack([p[:, 0], zero, p[:, 1], zero, p[:, 2], p[:, 3]], 1)
    theta = p.reshape(-1, 2, 3)
    if not inverse:
        return theta
    last = torch.tensor([0.0, 0.0, 1.0], device=p.device, dtype=p.dtype).expand(len(theta), 1, 3)
    chunks = torch.cat([theta, last], 1).split(INVERSE_CHUNK)
    return torch.cat([_inverse(chunk)[:, :2] for chunk in chunks])


def _inverse(matrices):
    try:
        return torch.inverse(matrices)
    except RuntimeError:  # one singular matrix: the publication nudges the whole chunk
        return torch.inverse(matrices + 1e-5 * torch.eye(3, device=matrices.device, dtype=matrices.dtype))


def centres(height: int, width: int, like):
    """Cell centres (y, x), each (H, W), in cells."""
    y = torch.arange(height, device=like.device, dtype=like.dtype) + 0.5
    x = torch.arange(width, device=like.device, dtype=like.dtype) + 0.5
    return torch.meshgrid(y, x, indexing="ij")


def resample(corr, grid):
    """Sample channel j*15+i of (B, 225, H, W) at `grid` (B, H, W, 15, 15, 2) (local): (B, H, W, 15, 15).

    The 225 maps are stacked into one tall float64 map and the channel is folded into the row coordinate.
    """
    batch, channels, height, width = corr.shape
    y, x = centres(height, width, grid)
    column = (7.5 * grid[..., 0] + x[None, :, :, None, None]).double().clamp(0, width - 1)
    row = (7.5 * grid[..., 1] + y[None, :, :, None, None]).double().clamp(0, height - 1)
    steps = torch.arange(TEMPLATE, device=corr.device, dtype=torch.float64)
    channel = steps[None, :] * TEMPLATE + steps[:, None]
    row = row + channel * height
    unit = torch.stack([column / (width - 1), row / (channels * height - 1)], -1) * 2 - 1
    stacked = corr.double().reshape(batch, 1, channels * height, width)
    unit = unit.reshape(batch, height * width, TEMPLATE * TEMPLATE, 2)
    sampled = F.grid_sample(stacked, unit, padding_mode="border", align_corners=True)
    return sampled.reshape(batch, height, width, TEMPLATE, TEMPLATE).to(corr.dtype)


def pool(resampled):
    """Mean over the inner 11 x 11 points by a mask that sums to 1: (..., 15, 15) -> (...)."""
    mask = torch.zeros(TEMPLATE, TEMPLATE, device=resampled.device, dtype=resampled.dtype)
    mask[BORDER:-BORDER, BORDER:-BORDER] = 1
    return (resampled * (mask / mask.sum())).sum((-2, -1))


def anchors(height: int, width: int, like):
    """Centre x, centre y (H, W) of the 240 x 240 boxes, in pixels."""
    y, x = centres(height, width, like)
    return STRIDE * x, STRIDE * y


def encode(boxes, height: int, width: int):
    """Boxes (..., H, W, 4) pixels -> codes (..., 4, H, W) after the minimal-size rule (no gradient where it
    acts)."""
    x1, y1, x2, y2 = boxes.unbind(-1)

    def at_least_one(low, high):
        small = low + 1 > high
        low = torch.where(small, low.detach(), low)
        return low, torch.where(small, low + 1, high)

    (x1, x2), (y1, y2) = at_least_one(x1, x2), at_least_one(y1, y2)
    cx, cy = anchors(height, width, boxes)
    dx, dy = 10 * ((x1 + x2) / 2 - cx) / ANCHOR, 10 * ((y1 + y2) / 2 - cy) / ANCHOR
    return torch.stack([dx, dy, 5 * torch.log((x2 - x1) / ANCHOR), 5 * torch.log((y2 - y1) / ANCHOR)], -3)


def decode(codes):
    """Codes (..., 4, H, W) -> boxes (..., H*W, 4) in pixels."""
    dx, dy, dw, dh = codes.unbind(-3)
    cx, cy = anchors(*codes.shape[-2:], codes)
    cx, cy = cx + dx / 10 * ANCHOR, cy + dy / 10 * ANCHOR
    half_w, half_h = (ANCHOR / 2 * torch.exp((d / 5).clamp(max=EXP_CAP)) for d in (dw, dh))
    return torch.stack([cx - half_w, cy - half_h, cx + half_w, cy + half_h], -1).flatten(-3, -2)


def head(w: Weights, image_features, templates, *, inverse: bool, detached=False, train_norm=False) -> dict:
    """Scores (n, C, H, W), codes `loc` (n, C, 4, H, W), `boxes` before the size rule, `corners` (n, C, 8, H,
    W).

    `detached` adds `scores_detached`, the same score without a gradient through the grid, computed a second
    time as in the publication.
    """
    n, _, height, width = image_features.shape
    classes = len(templates)
    corr = correlation(normalise(image_features, 1e-5), templates)
    parameters = transform_parameters(w, corr, train_norm=train_norm)
    theta = transforms(parameters, inverse)
    grid = F.affine_grid(theta, (len(theta), 1, TEMPLATE, TEMPLATE), align_corners=True)
    grid = grid.reshape(n * classes, height, width, TEMPLATE, TEMPLATE, 2)
    out = {"scores": pool(resample(corr, grid)).reshape(n, classes, height, width)}
    if detached:
        out["scores_detached"] = pool(resample(corr, grid.detach())).reshape(n, classes, height, width)
    y, x = centres(height, width, grid)
    cells = torch.stack([x, y], -1)[None, :, :, None, None]
    points = ANCHOR / 2 * grid + STRIDE * cells
    flat = points.flatten(-3, -2)
    boxes = torch.cat([flat.amin(-2), flat.amax(-2)], -1)
    out["boxes"] = boxes.reshape(n, classes, height, width, 4)
    out["loc"] = encode(out["boxes"], height, width)
    corners = points[..., [0, 0, -1, -1], [0, -1, 0, -1], :].detach().flatten(-2, -1)
    out["corners"] = corners.permute(0, 3, 1, 2).reshape(n, classes, 8, height, width)
    return out


def head_per_class(w: Weights, image_features, templates, *, inverse: bool) -> dict:
    """As published at evaluation: one call per class, nothing shared between classes."""
    parts = [head(w, image_features, one[None], inverse=inverse) for one in templates]
    return {key: torch.cat([part[key] for part in parts], 1) for key in parts[0]}


# --- training
# ----------------------------------------------------------------------------------------------------


def iou(a, b):
    """(n, 4), (m, 4) -> (n, m)."""
    low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    inner = (high - low).clamp(min=0).prod(-1)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(-1), (b[:, 2:] - b[:, :2]).prod(-1)
    return inner / (area_a[:, None] + area_b - inner)


def remap(loc, boxes: list, labels: list, difficult: list):
    """Class targets from the predicted boxes: >= 0.8 positive, < 0.4 negative, between or difficult ignored
    (-1).

    A Python loop over images and classes, as published. `loc` (n, C, 4, H, W) -> (n, C, H*W).
    """
    predicted = decode(loc.detach())
    n, classes, cells, _ = predicted.shape
    targets = torch.zeros(n, classes, cells, dtype=torch.long, device=loc.device)
    for image in range(n):
        for label in range(classes):
            mine = labels[image] == label
            if not mine.any():
                continue
            best, which = iou(predicted[image, label], boxes[image][mine]).max(1)
            positive = (best >= 0.8) & ~difficult[image][mine][which]
            targets[image, label] = torch.where(positive, 1, torch.where(best < 0.4, 0, -1))
    return targets


def ranked_list_loss(scores, detached, targets, *, negative_margin, positive_margin, ratio=0.001):
    """Recognition loss, `(positive part, negative part)`; scores and targets (n, C, N)."""
    positive, negative = targets == 1, targets == 0
    count = positive.sum()
    zero = torch.zeros_like(scores)
    up = torch.where(positive, 0.5 * (positive_margin - scores).clamp(min=0), zero)
    down = torch.where(negative, 0.5 * (detached - negative_margin).clamp(min=0), zero)
    with torch.no_grad():
        hardest = down.amax((0, 2), keepdim=True)
        active = hardest > 1e-5
        sharpness = -np.log(ratio) / torch.where(active, hardest, 1.0)
        weight = torch.where((down > 0) & active, torch.exp((down - hardest) * sharpness), zero)
        weight = weight / weight.sum((0, 2), keepdim=True).clamp(min=1e-8) / active.sum().clamp(min=1)
        weight = weight * (count > 0)
    return up.sum() / (up > 0).sum().clamp(min=1), (weight * down).sum()


def optimizer(weights: Weights, lr: float = 1e-4):
    """The published SGD over every parameter."""
    return torch.optim.SGD(list(trainable(weights).values()), lr=lr, momentum=0.9, weight_decay=1e-4)


def train_step(
    w: Weights, sgd, batch: dict, *, inverse: bool, train_norm: bool, margins=(0.5, 0.6), loc_weight=0.2
) -> dict:
    """One published step, forward, backward, clipping, SGD.

    `batch`: `images` (n, 3, h, w); `classes`, a list of (1, 3, h, w); per image the lists `boxes`, `labels`,
    `difficult`; `cls_targets` (n, C, N) and `loc_targets` (n, C, 4, N) of the anchors. `margins` are
    (negative, positive).
    """
    maps = features(w, batch["images"])
    templates = torch.cat([template(features(w, picture)) for picture in batch["classes"]])
    out = head(w, maps, templates, inverse=inverse, detached=True, train_norm=train_norm)
    targets = remap(out["loc"], batch["boxes"], batch["labels"], batch["difficult"])
    plus, minus = ranked_list_loss(
        out["scores"].flatten(2),
        out["scores_detached"].flatten(2),
        targets,
        negative_margin=margins[0],
        positive_margin=margins[1],
    )
    matched = (batch["cls_targets"] == 1)[:, :, None].expand_as(batch["loc_targets"])
    error = F.smooth_l1_loss(out["loc"].flatten(3), batch["loc_targets"], reduction="none")
    count = (batch["cls_targets"] == 1).sum().clamp(min=1)
    loc = torch.where(matched, error, torch.zeros_like(error)).sum() / count
    loss = plus + minus + loc_weight * loc
    sgd.zero_grad()
    loss.backward()
    parameters = [p for group in sgd.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(parameters, 100.0)
    sgd.step()
    return {
        "loss": loss.detach(),
        "positive": plus.detach(),
        "negative": minus.detach(),
        "loc": loc.detach(),
        "grad_norm": norm,
        "targets": targets,
    }


# --- suppression
# -------------------------------------------------------------------------------------------------


def greedy_nms(boxes, scores, threshold: float):
    """Indices kept by greedy suppression (IoU > threshold), descending score: torchvision's op where
    installed."""
    try:
        from torchvision.ops import nms

        return nms(boxes, scores, threshold)
    except (ImportError, RuntimeError):
        order = torch.sort(scores, descending=True, stable=True).indices
        kept = []
        while len(order):
            kept.append(order[0])
            order = order[1:][iou(boxes[order[:1]], boxes[order[1:]])[0] <= threshold]
        return torch.stack(kept) if kept else order


def blocked_nms(boxes, scores, threshold: float, block: int = 10_000):
    """The published scheme: greedy within blocks in input order, repeated until one block is left or nothing
    fell."""
    alive = torch.arange(len(boxes), device=boxes.device)
    while True:
        before = len(alive)
        parts = [part[greedy_nms(boxes[part], scores[part], threshold)] for part in alive.split(block)]
        alive = torch.cat(parts) if parts else alive
        if before <= block or len(alive) == before:
            return alive
