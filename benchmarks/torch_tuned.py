"""The same network as `torch_os2d.py`, the way it runs fast in PyTorch.

Channels-last, norms folded into the convolutions, classes in batches, image features normalised once,
closed-form inverse and box, only the 121 pooled points sampled (four flat gathers, no grid), and any dtype:
float16 or bfloat16 on a GPU, with norms and coordinates in float32.
"""

import torch
import torch.nn.functional as F

from benchmarks.torch_os2d import ANCHOR, BORDER, STRIDE, TEMPLATE, Weights, block_names, centres, normalise

POOLED = TEMPLATE - 2 * BORDER


def _fold(weight, bias, w: Weights, norm: str, dtype) -> tuple[torch.Tensor, torch.Tensor]:
    scale = w[f"{norm}.weight"] / torch.sqrt(w[f"{norm}.running_var"] + 1e-5)
    shift = w[f"{norm}.bias"] + (bias - w[f"{norm}.running_mean"]) * scale
    folded = (weight * scale[:, None, None, None]).to(dtype).to(memory_format=torch.channels_last)
    return folded, shift.to(dtype)


def prepare(
    w: Weights, *, dtype=torch.float32, head_dtype=None
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Fold every batch norm: layer name -> (kernel, bias). `head_dtype` is TransformNet's (default:
    `dtype`)."""
    head_dtype = head_dtype or dtype
    layers = {"conv1": _fold(w["conv1.weight"], 0, w, "bn1", dtype)}
    for block in block_names(w):
        for i in (1, 2, 3):
            layers[f"{block}.conv{i}"] = _fold(w[f"{block}.conv{i}.weight"], 0, w, f"{block}.bn{i}", dtype)
        if f"{block}.downsample.0.weight" in w:
            kernel = w[f"{block}.downsample.0.weight"]
            layers[f"{block}.downsample"] = _fold(kernel, 0, w, f"{block}.downsample.1", dtype)
    for conv, norm in (("transform.conv.0", "transform.conv.1"), ("transform.conv.3", "transform.conv.4")):
        if f"{conv}.weight" in w:
            layers[conv] = _fold(w[f"{conv}.weight"], w[f"{conv}.bias"], w, norm, head_dtype)
    if "transform.linear.weight" in w:
        kernel = w["transform.linear.weight"].to(head_dtype).to(memory_format=torch.channels_last)
        layers["transform.linear"] = (kernel, w["transform.linear.bias"].to(head_dtype))
    return layers


def features(layers, image):
    """ResNet to C4, (n, 3, h, w) -> (n, 1024, H, W), channels-last, in the dtype of the prepared layers."""

    def conv(x, name, **options):
        return F.conv2d(x, *layers[name], **options)

    x = image.to(layers["conv1"][0].dtype).contiguous(memory_format=torch.channels_last)
    x = F.max_pool2d(F.relu_(conv(x, "conv1", stride=2, padding=3)), 3, 2, 1)
    for block in (name.removesuffix(".conv1") for name in layers if name.endswith(".conv1")):
        stride = 2 if block in ("layer2.0", "layer3.0") else 1
        y = F.relu_(conv(x, f"{block}.conv1"))
        y = F.relu_(conv(y, f"{block}.conv2", stride=stride, padding=1))
        y = conv(y, f"{block}.conv3")
        if f"{block}.downsample" in layers:
            x = conv(x, f"{block}.downsample", stride=stride)
        x = F.relu_(y.add_(x))
    return x


def bank(templates, dtype=torch.float32):
    """Normalised templates (C, d, 15, 15) -> 1x1 convolution kernels (C*225, d, 1, 1), computed once per
    class."""
    kernels = templates.permute(0, 3, 2, 1).reshape(-1, templates.shape[1], 1, 1)
    return kernels.to(dtype).to(memory_format=torch.channels_last)


def transform_planes(parameters, inverse: bool):
    """(B, P, H, W) -> the six planes a, b, tx, c, d, ty, each (B, H, W), float32; closed-form inverse."""
    p = parameters.float().unbind(1)
    if len(p) == 4:
        zero = torch.zeros_like(p[0])
        a, b, tx, c, d, ty = p[0], zero, p[1], zero, p[2], p[3]
    else:
        a, b, tx, c, d, ty = p
    if not inverse:
        return a, b, tx, c, d, ty
    det = a * d - b * c
    det = torch.where(det.abs() < 1e-10, torch.full_like(det, 1e-10), det)
    a, b, c, d = d / det, -b / det, -c / det, a / det
    return a, b, -(a * tx + b * ty), c, d, -(c * tx + d * ty)


def pooled_scores(corr, planes):
    """Mean of the 121 inner samples: (B, 225, H, W), six (B, H, W) -> (B, H, W)."""
    batch, _, height, width = corr.shape
    a, b, tx, c, d, ty = (plane[:, None] for plane in planes)
    y, x = centres(height, width, a)
    steps = torch.arange(BORDER, TEMPLATE - BORDER, device=corr.device)
    column, row = steps.repeat_interleave(POOLED), steps.repeat(POOLED)
    u, v = ((index * (2 / (TEMPLATE - 1)) - 1)[None, :, None, None] for index in (column, row))
    px = (7.5 * (a * u + b * v + tx) + x).clamp(0, width - 1)
    py = (7.5 * (c * u + d * v + ty) + y).clamp(0, height - 1)
    x0, y0 = px.floor().clamp(max=width - 2), py.floor().clamp(max=height - 2)
    fx, fy = (px - x0).flatten(2), (py - y0).flatten(2)
    first = (y0.long() * width + x0.long()).flatten(2)
    chosen = corr.flatten(2)[:, column * TEMPLATE + row]

    def tap(offset):
        return chosen.gather(2, first + offset).float()

    top, bottom = torch.lerp(tap(0), tap(1), fx), torch.lerp(tap(width), tap(width + 1), fx)
    return torch.lerp(top, bottom, fy).mean(1).reshape(batch, height, width)


def head(layers, image_features, kernels, *, inverse: bool, chunk: int = 8) -> dict:
    """`scores` (n, C, H, W) and `boxes` (n, C, H, W, 4), float32; `chunk` classes at a time.

    `kernels` come from `bank`; features and kernels set the dtype of the correlation.
    """
    n, _, height, width = image_features.shape
    maps = normalise(image_features.float(), 1e-5).to(kernels.dtype)
    maps = maps.contiguous(memory_format=torch.channels_last)
    channels = TEMPLATE * TEMPLATE
    scores, boxes = [], []
    y, x = centres(height, width, torch.zeros((), device=maps.device))
    for part in kernels.split(chunk * channels):
        classes = len(part) // channels
        corr = F.conv2d(maps, part).reshape(n * classes, channels, height, width)
        net = normalise(F.relu(corr).float(), 1e-6).to(layers["transform.conv.0"][0].dtype)
        net = net.contiguous(memory_format=torch.channels_last)
        net = F.relu_(F.conv2d(net, *layers["transform.conv.0"], padding=3))
        net = F.relu_(F.conv2d(net, *layers["transform.conv.3"], padding=2))
        planes = transform_planes(F.conv2d(net, *layers["transform.linear"], padding=2), inverse)
        scores.append(pooled_scores(corr.contiguous(), planes).reshape(n, classes, height, width))
        a, b, tx, c, d, ty = planes
        cx, cy = ANCHOR / 2 * tx + STRIDE * x, ANCHOR / 2 * ty + STRIDE * y
        rx, ry = ANCHOR / 2 * (a.abs() + b.abs()), ANCHOR / 2 * (c.abs() + d.abs())
        box = torch.stack([cx - rx, cy - ry, cx + rx, cy + ry], -1)
        boxes.append(box.reshape(n, classes, height, width, 4))
    return {"scores": torch.cat(scores, 1), "boxes": torch.cat(boxes, 1)}
