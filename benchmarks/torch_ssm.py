"""The peer to measure against: the single-shot semantic matcher as PyTorch modules, written by us.

`SSM` is the network in the style of the publication: NCHW, PyTorch's own response normalisation, one
convolution after another, the head not collapsed. `tuned` makes of it what a PyTorch engineer would run:
channels last, the three 1x1 convolutions that read the same map of an inception as one, a response
normalisation without powers, and `match_collapsed` for the head. Names of the trunks are Caffe's.

Source: Single-Shot Semantic Matcher 2018, released deploy file (see `sm_jax.systems.ssm`).
"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sm_jax.weights import googlenet
from sm_jax.weights.io import flatten

STRIDE = 16
CHANNELS = 1024
# 1x1 | 3x3 reduce, 3x3 | 5x5 reduce, 5x5 | pool projection
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
POOL_BEFORE = {"4a": "pool3", "5a": "pool4"}
SHARED = ("1x1", "3x3_reduce", "5x5_reduce")  # of an inception: read the same map
FEW = 4  # so many aligned requests are faster one by one (CPU)


# --- trunk
# ----------------------------------------------------------------------------------------------------


class Convolution(nn.Conv2d):
    """Convolution with k // 2 padding, then ReLU."""

    def __init__(self, cin: int, cout: int, kernel: int = 1, stride: int = 1):
        super().__init__(cin, cout, kernel, stride, kernel // 2)

    def forward(self, x):
        return F.relu_(super().forward(x))


class Inception(nn.ModuleDict):
    """Four branches, concatenated: 1x1; 3x3; 5x5; 3x3 maximum and projection."""

    def __init__(self, cin: int, one: int, reduce3: int, three: int, reduce5: int, five: int, pool: int):
        super().__init__(
            {
                "1x1": Convolution(cin, one),
                "3x3_reduce": Convolution(cin, reduce3),
                "3x3": Convolution(reduce3, three, 3),
                "5x5_reduce": Convolution(cin, reduce5),
                "5x5": Convolution(reduce5, five, 5),
                "pool_proj": Convolution(cin, pool),
            }
        )

    def forward(self, x):
        three, five = self["3x3"](self["3x3_reduce"](x)), self["5x5"](self["5x5_reduce"](x))
        return torch.cat([self["1x1"](x), three, five, self["pool_proj"](F.max_pool2d(x, 3, 1, 1))], 1)


class GoogLeNet(nn.Module):
    """(n, 3, h, w) BGR - 127 -> (n, 1024, h/s, w/s); s is `stride` times 2 per pooling of `pools`.

    The BVLC form: local response normalisation, pooling that rounds up. The test branch is the default; the
    request branch has `stride=1, pools=("pool1", "pool2")`.
    """

    def __init__(self, *, stride: int = 2, pools: tuple[str, ...] = ("pool1", "pool2", "pool3")):
        super().__init__()
        self.conv1_7x7_s2 = Convolution(3, 64, 7, stride)
        self.conv2_3x3_reduce = Convolution(64, 64)
        self.conv2_3x3 = Convolution(64, 192, 3)
        self.norm1, self.norm2 = (nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0) for _ in range(2))
        for name in ("pool1", "pool2", "pool3", "pool4"):
            kept = nn.MaxPool2d(3, 2, ceil_mode=True) if name in pools else nn.Identity()
            self.add_module(name, kept)
        cin = 192
        for name, widths in INCEPTIONS.items():
            self.add_module(f"inception_{name}", Inception(cin, *widths))
            cin = widths[0] + widths[2] + widths[4] + widths[5]

    def forward(self, x):
        x = self.norm1(self.pool1(self.conv1_7x7_s2(x)))
        x = self.pool2(self.norm2(self.conv2_3x3(self.conv2_3x3_reduce(x))))
        for name in INCEPTIONS:
            if name in POOL_BEFORE:
                x = getattr(self, POOL_BEFORE[name])(x)
            x = getattr(self, f"inception_{name}")(x)
        return x


# --- matcher
# ----------------------------------------------------------------------------------------------------


class Head(nn.Module):
    """Two 1x1 convolutions without ReLU, then coverage and boxes: (n, 1024, h, w) -> (n, 5, h, w)."""

    def __init__(self):
        super().__init__()
        self.hidden1, self.hidden2 = (nn.Conv2d(CHANNELS, CHANNELS, 1) for _ in range(2))
        self.coverage, self.boxes = nn.Conv2d(CHANNELS, 1, 1), nn.Conv2d(CHANNELS, 4, 1)

    def forward(self, product):
        x = self.hidden2(self.hidden1(product))
        return torch.cat([self.coverage(x), self.boxes(x)], 1)

    def collapse(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole head as one linear map: weight (5, 1024), bias (5)."""
        last = torch.cat([self.coverage.weight, self.boxes.weight])[..., 0, 0]
        bias = torch.cat([self.coverage.bias, self.boxes.bias])
        for layer in (self.hidden2, self.hidden1):
            bias = bias + last @ layer.bias
            last = last @ layer.weight[..., 0, 0]
        return last, bias


class SSM(nn.Module):
    """Test branch, request branch and head; fusion "product_aligned", or "product_gap" where `gap`."""

    def __init__(self, *, gap: bool = False):
        super().__init__()
        self.image = GoogLeNet()
        self.request = GoogLeNet(stride=1, pools=("pool1", "pool2"))
        self.head, self.gap = Head(), gap

    def encode(self, crops):
        """Requests (n, 3, 128, 128) -> (n, 1024, 32, 32), or (n, 1024, 1, 1) where `gap`."""
        maps = self.request(crops)
        return maps.mean((2, 3), keepdim=True) if self.gap else maps

    def match(self, features, requests, *, chunk: int = 8):
        """Features (1, 1024, h, w) against n cached requests: logit and offsets (n, 5, h, w)."""
        return torch.cat([self.head(features * part) for part in requests.split(chunk)])

    def forward(self, images, crops):
        """Pairs: logit and offsets (n, 5, h, w)."""
        return self.head(self.image(images) * self.encode(crops))


def match_collapsed(weight, bias, features, requests):
    """What `SSM.match` computes, by the collapsed head.

    Args:
      weight: (5, 1024), of `Head.collapse`.
      bias: (5,).
      features: (1, 1024, h, w), channels last.
      requests: (n, 1024, h, w) channels last, or (n, 1024, 1, 1).

    Returns:
      (n, 5, h, w).
    """
    count, channels, height, width = len(requests), *features.shape[1:]
    if requests.shape[2:] == (1, 1):
        kernels = weight[None] * requests[:, None, :, 0, 0]
        out = kernels.reshape(-1, channels) @ features[0].permute(1, 2, 0).reshape(-1, channels).T
        return out.reshape(count, 5, height, width) + bias[:, None, None]
    if count <= FEW:
        layer = weight[..., None, None].contiguous(memory_format=torch.channels_last)
        return torch.cat([F.conv2d(features * one, layer, bias) for one in requests.split(1)])
    cells = features[0].permute(1, 2, 0).reshape(-1, channels)
    kernels = (cells[:, None] * weight).transpose(1, 2)  # (cells, 1024, 5)
    rows = requests.permute(2, 3, 0, 1).reshape(-1, count, channels)
    out = torch.bmm(rows, kernels).permute(1, 2, 0) + bias[:, None]
    return out.reshape(count, 5, height, width)


def decode(out):
    """(n, 5, h, w) -> coverage (n, h, w) and boxes (n, h, w, 4) in pixels."""
    y, x = (torch.arange(n, device=out.device, dtype=out.dtype) * STRIDE for n in out.shape[2:])
    y, x = torch.meshgrid(y, x, indexing="ij")
    return out[:, 0].sigmoid(), out[:, 1:].permute(0, 2, 3, 1) + torch.stack([x, y, x, y], -1)


def loss(out, targets: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Squared error of the coverage plus L1 of the offsets times K_norm: sums per image, mean over the batch.

    Args:
      out: (n, 5, h, w).
      targets: "coverage" (n, h, w), "offsets" (n, h, w, 4), "norm" (n, h, w), 0 in cells without an object.
    """
    coverage, offsets = out[:, 0].sigmoid(), out[:, 1:].permute(0, 2, 3, 1)
    semantic = (coverage - targets["coverage"]).square().sum((1, 2)).mean()
    rectangle = ((offsets - targets["offsets"]).abs().sum(-1) * targets["norm"]).sum((1, 2)).mean()
    return {"loss": semantic + rectangle, "semantic": semantic, "rectangle": rectangle}


# --- tuned
# ----------------------------------------------------------------------------------------------------


class MergedInception(nn.Module):
    """An `Inception` whose three convolutions of the same map are one; the same parameters and values."""

    def __init__(self, block: Inception):
        super().__init__()
        layers = [block[name] for name in SHARED]
        self.widths = [layer.out_channels for layer in layers]
        self.shared = Convolution(layers[0].in_channels, sum(self.widths))
        with torch.no_grad():
            self.shared.weight.copy_(torch.cat([layer.weight for layer in layers]))
            self.shared.bias.copy_(torch.cat([layer.bias for layer in layers]))
        self.three, self.five, self.pool = block["3x3"], block["5x5"], block["pool_proj"]

    def forward(self, x):
        one, three, five = self.shared(x).split(self.widths, 1)
        pooled = F.max_pool2d(x, 3, 1, 1)
        return torch.cat([one, self.three(three), self.five(five), self.pool(pooled)], 1)


class BandNorm(nn.Module):
    """The response normalisation on channels-last maps: the sum over neighbours as a 1x1 convolution with a
    banded matrix, and s^-0.75 by square roots."""

    def __init__(self, channels: int):
        super().__init__()
        near = (torch.arange(channels)[:, None] - torch.arange(channels)).abs() <= 2
        self.register_buffer("band", near[:, :, None, None] * (1e-4 / 5))
        self.register_buffer("one", torch.ones(channels))

    def forward(self, x):
        root = F.conv2d(x.square(), self.band, self.one).rsqrt()
        return x * root * root.sqrt()


def tuned(net: SSM) -> SSM:
    """A copy that computes the same faster; `match_collapsed` belongs to it."""
    net = copy.deepcopy(net)
    for trunk in (net.image, net.request):
        trunk.norm1, trunk.norm2 = BandNorm(64), BandNorm(192)
        for name in INCEPTIONS:
            setattr(trunk, f"inception_{name}", MergedInception(getattr(trunk, f"inception_{name}")))
    return net.to(memory_format=torch.channels_last)


# --- weights
# ----------------------------------------------------------------------------------------------------


def load(variables: Mapping[str, Any], *, gap: bool = False) -> SSM:
    """Our variables, in NumPy, as the PyTorch network.

    Raises:
      ValueError: a tensor is missing, left over or of another shape.
    """
    tensors = {}
    for ours, theirs in (("image_branch", "image"), ("request_branch", "request")):
        for name, entry in googlenet.entries(part=ours).items():
            tensors[f"{theirs}.{name.replace('/', '.')}"] = entry.path
    for ours, theirs in (("conv1", "hidden1"), ("conv2", "hidden2"), ("coverage",) * 2, ("boxes",) * 2):
        tensors[f"head.{theirs}.weight"] = f"params/head/{ours}/kernel"
        tensors[f"head.{theirs}.bias"] = f"params/head/{ours}/bias"
    flat = flatten(variables)
    missing, left = sorted(set(tensors.values()) - set(flat)), sorted(set(flat) - set(tensors.values()))
    if missing or left:
        raise ValueError(f"not the weights of this matcher; missing {missing[:3]}, left over {left[:3]}")
    net = SSM(gap=gap)
    net.load_state_dict({name: _oihw(flat[path]) for name, path in tensors.items()})
    return net


def _oihw(array: Any) -> torch.Tensor:
    array = np.asarray(array, np.float32)
    return torch.from_numpy(np.array(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array, order="C"))
