"""The peer to measure against: the cross-modal detector as PyTorch modules, written by us.

NCHW, torchvision's names for MobileNetV2 (`features.i...`), one phrase per image in training. The text
encoder is PyTorch's own encoder layer. `RPN.at` and `MobileNetV2(..., start=, stop=)` let it do no more work
than the JAX system does: objectness only at the sampled anchors, training from cached features of the frozen
units.

Source: Ferreira et al. 2023 (no published code); RoIAlign and greedy suppression follow torchvision's rules
without needing torchvision.
"""

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sm_jax.weights import formats
from sm_jax.weights.io import flatten

STRIDE = 32
EXP_CAP = math.log(1000 / 16)
# expansion, channels, repeats, first stride
BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
UNITS = 19


# --- backbone
# ----------------------------------------------------------------------------------------------------


def _conv_norm(cin: int, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1 without activation; the input is added where shapes allow."""

    def __init__(self, cin: int, cout: int, stride: int, expansion: int):
        super().__init__()
        hidden = cin * expansion
        layers = [_conv_norm(cin, hidden, kernel=1)] if expansion > 1 else []
        layers += [
            _conv_norm(hidden, hidden, stride=stride, groups=hidden),
            nn.Conv2d(hidden, cout, 1, bias=False),
            nn.BatchNorm2d(cout),
        ]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and cin == cout

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """(n, 3, h, w) normalised -> (n, 1280, h/32, w/32).

    The first `frozen` of the 19 units keep their weights and running statistics.
    """

    def __init__(self, *, frozen: int = 0, freeze_bn: bool = False):
        super().__init__()
        units, cin = [_conv_norm(3, 32, stride=2)], 32
        for expansion, cout, repeats, stride in BLOCKS:
            for i in range(repeats):
                units.append(InvertedResidual(cin, cout, stride if i == 0 else 1, expansion))
                cin = cout
        self.features = nn.Sequential(*units, _conv_norm(cin, 1280, kernel=1))
        self.frozen, self.freeze_bn = frozen, freeze_bn
        self.features[:frozen].requires_grad_(False)

    def train(self, mode: bool = True):
        super().train(mode)
        self.features[: UNITS if self.freeze_bn else self.frozen].eval()
        return self

    def forward(self, x, *, start: int = 0, stop: int = UNITS):
        for unit in self.features[start:stop]:
            x = unit(x)
        return x


# --- boxes
# ----------------------------------------------------------------------------------------------------


def grid_anchors(height: int, width: int, *, size: float = 64.0, device=None):
    """One square per cell, row by row: (height*width, 4) corners."""
    y = STRIDE * (torch.arange(height, device=device) + 0.5)
    x = STRIDE * (torch.arange(width, device=device) + 0.5)
    y, x = (grid.flatten() for grid in torch.meshgrid(y, x, indexing="ij"))
    return torch.stack([x - size / 2, y - size / 2, x + size / 2, y + size / 2], -1)


def _centres(boxes):
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + size / 2, size


def encode(boxes, anchors):
    """Corners (..., 4) against anchors (..., 4) -> (dx, dy, dw, dh)."""
    (centre, size), (anchor, side) = _centres(boxes), _centres(anchors)
    return torch.cat([(centre - anchor) / side, torch.log(size / side)], -1)


def decode(codes, anchors):
    """The inverse of `encode`; growth is capped."""
    anchor, side = _centres(anchors)
    centre = anchor + codes[..., :2] * side
    half = side * torch.exp(codes[..., 2:].clamp(max=EXP_CAP)) / 2
    return torch.cat([centre - half, centre + half], -1)


def iou(a, b):
    """(..., n, 4), (..., m, 4) -> (..., n, m); empty boxes give 0."""
    low = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    high = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    inner = (high - low).clamp(min=0).prod(-1)
    area_a = (a[..., 2:] - a[..., :2]).prod(-1)[..., :, None]
    area_b = (b[..., 2:] - b[..., :2]).prod(-1)[..., None, :]
    return inner / (area_a + area_b - inner).clamp(min=1e-9)


def greedy_nms(boxes, scores, threshold: float):
    """Indices kept, by descending score."""
    order = torch.sort(scores, descending=True, stable=True).indices
    overlaps = iou(boxes[order], boxes[order]) > threshold
    alive = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    for i in range(len(order)):
        if alive[i]:
            alive[i + 1 :] &= ~overlaps[i, i + 1 :]
    return order[alive]


def roi_align(features, boxes, *, output: int = 2, samples: int = 2):
    """(n, c, h, w), (n, k, 4) pixels -> (n, k, c, output, output), aligned=True.

    One product with the bilinear weights, which are separable.
    """

    def weights(low, high, length):
        steps = (torch.arange(output * samples, device=boxes.device) + 0.5) / (output * samples)
        at = (low[..., None] + steps * (high - low)[..., None]) / STRIDE - 0.5
        inside = (at >= -1) & (at <= length)
        cells = torch.arange(length, device=boxes.device, dtype=at.dtype)
        hat = (1 - (at.clamp(0, length - 1)[..., None] - cells).abs()).clamp(min=0) * inside[..., None]
        return hat.unflatten(-2, (output, samples)).mean(-2)

    n, c, h, w = features.shape
    rows = weights(boxes[..., 1], boxes[..., 3], h)
    columns = weights(boxes[..., 0], boxes[..., 2], w)
    mix = torch.einsum("nkih,nkjw->nkijhw", rows, columns).flatten(1, 3).flatten(2)
    pooled = mix.to(features.dtype) @ features.flatten(2).transpose(1, 2)
    return pooled.reshape(n, -1, output, output, c).permute(0, 1, 4, 2, 3)


# --- heads
# ----------------------------------------------------------------------------------------------------


class RPN(nn.Module):
    """Objectness and box codes of one anchor per cell."""

    def __init__(self, channels: int = 1280, width: int = 256):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.objectness, self.codes = nn.Conv2d(width, 1, 1), nn.Conv2d(width, 4, 1)
        for layer in (self.conv, self.objectness, self.codes):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, features):
        """-> logits (n, h*w), codes (n, h*w, 4)."""
        x = F.relu(self.conv(features))
        return self.objectness(x).flatten(1), self.codes(x).flatten(2).transpose(1, 2)

    def at(self, features, anchors):
        """The same at chosen anchors (n, s) only."""
        width = features.shape[-1]
        padded = F.pad(features.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).flatten(1, 2)
        steps = torch.arange(3, device=anchors.device)
        window = (steps[:, None] * (width + 2) + steps).flatten()
        index = (anchors // width * (width + 2) + anchors % width)[..., None] + window
        batch = torch.arange(len(features), device=anchors.device)[:, None, None]
        patches = padded[batch, index].flatten(2)
        kernel = self.conv.weight.permute(0, 2, 3, 1).flatten(1)
        x = F.relu(F.linear(patches, kernel, self.conv.bias))
        logits = F.linear(x, self.objectness.weight.flatten(1), self.objectness.bias)
        return logits[..., 0], F.linear(x, self.codes.weight.flatten(1), self.codes.bias)


class ProposalEncoder(nn.Module):
    """Boxes on the feature map -> unit vectors."""

    def __init__(self, channels: int = 1280, width: int = 256, hidden: int = 256, embed: int = 64):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.hidden, self.out = nn.Linear(4 * width, hidden), nn.Linear(hidden, embed)

    def forward(self, features, boxes, real=None):
        """(n, c, h, w), (n, k, 4) -> (n, k, embed); with `real` (n, k) only those: (real.sum(), embed)."""
        pooled = roi_align(features, boxes)
        batch = pooled.shape[:2]
        pooled = pooled.flatten(0, 1) if real is None else pooled[real]
        x = F.relu(self._conv(pooled))
        x = self.out(F.relu(self.hidden(x)))
        x = F.normalize(x.float(), dim=-1, eps=1e-6)
        return x.unflatten(0, batch) if real is None else x

    def _conv(self, pooled):
        """The padded 3x3 convolution of a 2x2 map as one dense layer, 16 of 36 products: (k, 4 * width)."""
        steps = torch.arange(2, device=pooled.device)
        tap = 1 + steps[None] - steps[:, None]
        kernel = self.conv.weight[:, :, tap[:, None, :, None], tap[None, :, None, :]]
        kernel = kernel.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
        return F.linear(pooled.flatten(1), kernel, self.conv.bias.repeat_interleave(4))


class TextEncoder(nn.Module):
    """Tokens (q, length), 0 = padding, first token ENC -> unit vectors (q, width)."""

    def __init__(self, vocabulary: int, *, width=64, heads=2, layers=1, ffn=256, length=16, dropout=0.1):
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(length, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, heads, ffn, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, tokens):
        x = self.words(tokens) + self.positions[: tokens.shape[1]]
        x = self.encoder(x, src_key_padding_mask=tokens == 0)
        return F.normalize(x[:, 0].float(), dim=-1, eps=1e-6)


class Align(nn.Module):
    """Every pair of (k, d) proposals and (q, t) phrases -> logits (q, k).

    Both inputs have length 1, so the first layer starts at standard deviation 1/sqrt(2): from PyTorch's
    default SGD stays at the base rate for more than 1000 steps.
    """

    def __init__(self, embed: int = 64, text: int = 64, hidden: int = 64):
        super().__init__()
        self.hidden, self.out = nn.Linear(embed + text, hidden), nn.Linear(hidden, 1)
        nn.init.normal_(self.hidden.weight, std=0.5**0.5)
        nn.init.normal_(self.out.weight, std=(2 / hidden) ** 0.5)
        nn.init.zeros_(self.hidden.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, proposals, texts):
        left, right = self.hidden.weight.split([proposals.shape[-1], texts.shape[-1]], 1)
        x = (
            F.linear(texts, right, self.hidden.bias)[..., :, None, :]
            + F.linear(proposals, left)[..., None, :, :]
        )
        return self.out(F.relu(x))[..., 0]


class CrossModal(nn.Module):
    """The whole detector. `widths` are those of the RPN's and of the proposal encoder's 3x3 convolution."""

    def __init__(
        self, vocabulary: int, *, widths=(256, 256), frozen: int = 0, freeze_bn: bool = False, dropout=0.1
    ):
        super().__init__()
        self.backbone = MobileNetV2(frozen=frozen, freeze_bn=freeze_bn)
        self.rpn = RPN(width=widths[0])
        self.proposal = ProposalEncoder(width=widths[1])
        self.text = TextEncoder(vocabulary, dropout=dropout)
        self.align = Align()


# --- weights
# ----------------------------------------------------------------------------------------------------


def state(tree) -> dict[str, torch.Tensor]:
    """Our variables (`params` and `batch_stats`, or gradients in place of `params`) under the names here."""
    flat = {name: np.asarray(leaf, np.float32) for name, leaf in flatten(tree).items()}
    found = {name: leaf for name, leaf in flat.items() if name.split("/")[1] == "backbone"}
    result = {f"backbone.{name}": array for name, array in formats.to_torch(found).items()}

    def put(name, path, *, norm=False, bias="bias"):
        result[f"{name}.weight"] = flat[f"params/{path}/scale"] if norm else flat[f"params/{path}/kernel"].T
        result[f"{name}.bias"] = flat[f"params/{path}/{bias}"]

    for name in ("rpn.conv", "proposal.conv"):
        path = f"params/{name.replace('.', '/')}"
        result[f"{name}.weight"] = flat[f"{path}/kernel"].transpose(3, 2, 0, 1)
    result["rpn.conv.bias"] = flat["params/rpn/conv/bias"]
    result["proposal.conv.bias"] = flat["params/proposal/conv_bias"]
    for name in ("rpn.objectness", "rpn.codes"):
        put(name, name.replace(".", "/"))
        result[f"{name}.weight"] = result[f"{name}.weight"][..., None, None]
    put("proposal.hidden", "proposal/hidden")
    hidden, width = result["proposal.hidden.weight"], flat["params/proposal/conv_bias"].size
    # Pooled cells come (channel, row, column) here, (row, column, channel) there.
    result["proposal.hidden.weight"] = (
        hidden.reshape(-1, 2, 2, width).transpose(0, 3, 1, 2).reshape(hidden.shape)
    )
    put("proposal.out", "proposal/embed")
    result["align.hidden.weight"] = flat["params/align/hidden_kernel"].T
    result["align.hidden.bias"] = flat["params/align/hidden_bias"]
    put("align.out", "align/out")
    result["text.words.weight"] = flat["params/text/words"]
    result["text.positions"] = flat["params/text/positions"]
    for i in range(sum(name.endswith("/query/bias") for name in flat)):
        layer, path = f"text.encoder.layers.{i}", f"text/layer_{i}"
        for end, kind in (("weight", "kernel"), ("bias", "bias")):
            parts = [flat[f"params/{path}/{part}/{kind}"].T for part in ("query", "key", "value")]
            result[f"{layer}.self_attn.in_proj_{end}"] = np.concatenate(parts)
        put(f"{layer}.self_attn.out_proj", f"{path}/out")
        for k in (1, 2):
            put(f"{layer}.linear{k}", f"{path}/ffn{k}")
            put(f"{layer}.norm{k}", f"{path}/norm{k}", norm=True)
    return {name: torch.from_numpy(np.array(array)) for name, array in result.items()}


def load(variables, *, frozen: int = 0, freeze_bn: bool = False, dropout=0.1) -> CrossModal:
    """The detector with our variables; sizes follow from them where `CrossModal` has a choice."""
    weights = state(variables)
    widths = tuple(len(weights[f"{name}.conv.bias"]) for name in ("rpn", "proposal"))
    words = len(weights["text.words.weight"])
    model = CrossModal(words, widths=widths, frozen=frozen, freeze_bn=freeze_bn, dropout=dropout)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    return model


def tuned(model: CrossModal) -> CrossModal:
    """A copy for inference as it would be deployed: norms folded into the convolutions, channels last."""
    model = copy.deepcopy(model).eval()
    for layers in [part for part in model.backbone.modules() if isinstance(part, nn.Sequential)]:
        for i in range(len(layers) - 1):
            if isinstance(layers[i], nn.Conv2d) and isinstance(layers[i + 1], nn.BatchNorm2d):
                layers[i], layers[i + 1] = fuse_conv_bn_eval(layers[i], layers[i + 1]), nn.Identity()
    return model.to(memory_format=torch.channels_last)


# --- training
# ----------------------------------------------------------------------------------------------------


def targets(
    boxes,
    valid,
    anchors,
    *,
    positive_iou=0.6,
    negative_iou=0.1,
    force="per_gt",
    max_positives=32,
    generator=None,
):
    """Matched ground truth and sample of a batch: boxes (n, m, 4), valid (n, m).

    -> dict of (n, 2 * max_positives) `anchors`, `labels`, `used`, `matched`; the first half is positive.
    """
    overlaps = iou(anchors, boxes) * valid[:, None]
    best, matched = overlaps.max(2)
    positive = best > positive_iou
    if force != "none":
        top, anchor = overlaps.max(1)
        forced = valid & (top > 0)
        if force == "per_image":
            forced &= ~positive.any(1, keepdim=True)
        rows = torch.arange(len(boxes), device=boxes.device)[:, None].expand_as(anchor)
        for truth in torch.argsort(top, 1).unbind(1):
            row = rows[:, 0]
            chosen = forced[row, truth]
            cell = anchor[row, truth]
            positive[row[chosen], cell[chosen]] = True
            matched[row[chosen], cell[chosen]] = truth[chosen]
    negative = ~positive & (best < negative_iou)

    def pick(mask):
        keys = torch.rand(mask.shape, generator=generator, device=mask.device).masked_fill(~mask, 2.0)
        keys, index = keys.topk(max_positives, 1, largest=False)
        return index, keys < 2.0

    chosen, real = pick(positive)
    others, usable = pick(negative)
    usable &= torch.arange(max_positives, device=boxes.device) < real.sum(1, keepdim=True)
    return {
        "anchors": torch.cat([chosen, others], 1),
        "labels": torch.cat([real, torch.zeros_like(usable)], 1).float(),
        "used": torch.cat([real, usable], 1),
        "matched": torch.cat([matched.gather(1, chosen), torch.zeros_like(others)], 1),
    }


def loss(
    model: CrossModal,
    batch: dict,
    *,
    start: int = 0,
    loc_weight=1.0,
    force="per_gt",
    ground_truth=False,
    sample=None,
    generator=None,
) -> dict:
    """The three losses of a batch, their sum and what to watch.

    `batch`: `images` (n, 3, h, w), or features of the units before `start`; `boxes`, `valid`, `aligned`,
    `tokens`. `ground_truth` pools half of the positives from the annotated boxes. `sample`: what `targets`
    returns, where it is not to be drawn.
    """
    maps = model.backbone(batch["images"], start=start)
    anchors = grid_anchors(*maps.shape[-2:], device=maps.device)
    if sample is None:
        sample = targets(batch["boxes"], batch["valid"], anchors, force=force, generator=generator)
    logits, codes = (x.float() for x in model.rpn.at(maps, sample["anchors"]))
    used, labels = sample["used"], sample["labels"]
    objectness = F.binary_cross_entropy_with_logits(logits[used], labels[used])

    half = used.shape[1] // 2
    real, chosen = used[:, :half], anchors[sample["anchors"][:, :half]]
    matched = sample["matched"][:, :half]
    truth = batch["boxes"].gather(1, matched[..., None].expand(-1, -1, 4))
    codes, goal = codes[:, :half], encode(torch.where(real[..., None], truth, chosen), chosen)
    count = real.sum().clamp(min=1)
    box = F.smooth_l1_loss(codes[real], goal[real], reduction="sum") / count

    height, width = (STRIDE * side for side in maps.shape[-2:])
    limit = torch.tensor([width, height, width, height], device=maps.device, dtype=chosen.dtype)
    proposals = decode(codes.detach(), chosen).clamp(min=0).minimum(limit)
    if ground_truth:
        coin = torch.rand(real.shape, generator=generator, device=real.device) < 0.5
        proposals = torch.where((coin & real)[..., None], truth, proposals)
    vectors = model.proposal(maps, proposals, real)
    phrases = model.text(batch["tokens"])[real.nonzero()[:, 0]]
    align = model.align(vectors[:, None], phrases[:, None])[:, 0, 0].float()
    wanted = batch["aligned"].gather(1, matched)[real]
    alignment = F.binary_cross_entropy_with_logits(align, wanted.float())
    return {
        "loss": objectness + loc_weight * box + alignment,
        "objectness": objectness.detach(),
        "box": box.detach(),
        "alignment": alignment.detach(),
        "align_accuracy": ((align > 0) == wanted).float().mean().detach(),
        "positives": count,
    }


# --- use
# ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def propose(logits, codes, anchors, *, image_size, min_conf=0.5, threshold=0.5, size=100, min_side=4.0):
    """One image: logits (n,), codes (n, 4) -> boxes (k, 4), conf (k,), by descending confidence."""
    conf = logits.float().sigmoid()
    height, width = image_size
    limit = torch.tensor([width, height, width, height], device=conf.device, dtype=torch.float32)
    boxes = decode(codes.float(), anchors).clamp(min=0).minimum(limit)
    keep = (conf > min_conf) & ((boxes[:, 2:] - boxes[:, :2]).amin(1) >= min_side)
    boxes, conf = boxes[keep], conf[keep]
    kept = greedy_nms(boxes, conf, threshold)[:size]
    return boxes[kept], conf[kept]


@torch.no_grad()
def detect(model: CrossModal, images, tokens, *, start: int = 0) -> list[dict]:
    """Every image against every phrase: per image `boxes` (k, 4), `conf` (k,), `align` (q, k)."""
    maps = model.backbone(images, start=start)
    anchors = grid_anchors(*maps.shape[-2:], device=maps.device)
    size = tuple(STRIDE * side for side in maps.shape[-2:])
    texts = model.text(tokens)
    found = []
    for i, (logits, codes) in enumerate(zip(*model.rpn(maps), strict=True)):
        boxes, conf = propose(logits, codes, anchors, image_size=size)
        vectors = model.proposal(maps[i : i + 1], boxes[None])[0]
        found.append({"boxes": boxes, "conf": conf, "align": model.align(vectors, texts).sigmoid()})
    return found
