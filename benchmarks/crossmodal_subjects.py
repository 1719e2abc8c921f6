"""One cross-modal detector, scenes and phrases for ours and for PyTorch, and the calls that are compared.

Three implementations: "ours"; "eager", the PyTorch modules as they are (NCHW); "tuned", channels last, and in
inference with norms folded into the convolutions. Scenes and phrases are those of the default data.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from ml_collections import ConfigDict

from benchmarks import torch_crossmodal as peer
from benchmarks.measure import Call, Program, compiled
from benchmarks.peers import NAMES, OnDevice, jax_call
from benchmarks.training import trainer_step
from configs.crossmodal import get_config
from sm_jax import data, weights
from sm_jax.systems.crossmodal import model, objective, predict


def make_config(*, images: int, side: int, width: int, trainable: str = "all", dtype: str) -> ConfigDict:
    """The published config at one width, without dropout and unknown words: the losses can be compared."""
    config = get_config("full")
    config.batch_size, config.data.workers = images, 0
    config.data.shapes.image_size = (side, side)
    if side < 512:
        config.data.shapes.count = (2, 4)
    config.model.update(
        rpn_width=width, proposal_width=width, image_size=(side, side), trainable=trainable, dtype=dtype
    )
    config.model.dropout = config.objective.unk_rate = 0.0
    return config


def make_variables(config: model.ModelConfig, backbone: str) -> Any:
    """Variables in NumPy: the named backbone ("": random), heads drawn as the model draws them."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(functools.partial(model.init, config), jax.random.key(0))

    def draw(path, leaf):
        names = [key.key for key in path]
        if names[-1] in ("scale", "var"):
            return np.ones(leaf.shape, np.float32)
        if len(leaf.shape) < 2:
            return np.zeros(leaf.shape, np.float32)
        std = 0.01 if names[1] == "rpn" else (2 / np.prod(leaf.shape[:-1])) ** 0.5
        return rng.normal(0, std, leaf.shape).astype(np.float32)

    drawn = jax.tree_util.tree_map_with_path(draw, shapes)
    return weights.initialize(drawn, {"backbone": backbone, "model": ""})[0]


@dataclasses.dataclass
class Peers(OnDevice):
    """One set of weights in all implementations, and pictures.

    Attributes:
      config: our model; `dtype` is that of all three (PyTorch's by autocast).
      device: "cpu" or "cuda".
      variables: our weights.
      eager, tuned: PyTorch's, in evaluation mode.
      images: f32 "b H W 3" normalised.
      tokens: i32 "q l", different phrases.
    """

    config: model.ModelConfig
    device: str
    variables: Any
    eager: peer.CrossModal
    tuned: peer.CrossModal
    images: np.ndarray
    tokens: np.ndarray

    @property
    def autocast(self) -> str:
        """PyTorch computes in the type of our features."""
        return self.config.dtype


def make(
    *, width: int, side: int, images: int, phrases: int, candidates: int, backbone: str, device: str, dtype
) -> Peers:
    """Weights of one `width`, `images` scenes of `side` pixels and `phrases` phrases.

    The objectness bias is set so that about `candidates` anchors of a scene are confident, as with a trained
    model: how many there are decides what PyTorch computes (our slots are always 100).
    """
    config = make_config(images=max(images, 1), side=side, width=width, dtype=dtype)
    settings = model.ModelConfig.create(config.model)
    variables = make_variables(settings, backbone)
    pixels = next(data.make_train_iterator(config))["image"]
    eager = peer.load(variables).eval()
    with torch.inference_mode():
        logits = eager.rpn(eager.backbone(torch.from_numpy(np.moveaxis(pixels, -1, 1).copy())))[0]
    ranked = logits.flatten().sort(descending=True).values
    last = min(candidates * images, ranked.numel() - 1)
    shift = (ranked[last - 1] + ranked[last]).item() / 2
    variables["params"]["rpn"]["objectness"]["bias"] -= np.float32(shift)
    eager = peer.load(variables).eval().to(device)
    source = data.make_phrase_source(config.data, "train")
    texts = [source.annotation(i % len(source))["phrases"][0] for i in range(phrases)]
    tokens = np.asarray(data.make_encoder(config, source).encode(texts))
    return Peers(
        settings, device, jax.device_put(variables), eager, peer.tuned(eager), np.asarray(pixels), tokens
    )


# inference


class Compared(NamedTuple):
    """The calls that are compared and our program."""

    calls: dict[str, Call]
    program: Program


def features(peers: Peers, images: int) -> Compared:
    """The backbone on some pictures."""
    ours = jax.device_put(peers.images[:images])
    program = compiled(lambda v, x: model.features(peers.config, v, {"image": x}), peers.variables, ours)
    theirs = _pictures(peers, images)
    calls = {"ours": jax_call(lambda: program.call(peers.variables, ours))} | {
        name: peers.torch_call(functools.partial(getattr(peers, name).backbone, theirs[name]))
        for name in NAMES[1:]
    }
    return Compared(calls, program)


def detect(peers: Peers, images: int, phrases: int = 1) -> Compared:
    """Some pictures against some phrases, everything computed."""
    config = peers.config
    ours, tokens = jax.device_put(peers.images[:images]), jax.device_put(peers.tokens[:phrases])

    def answer(variables, image, tokens):
        encoded = predict.encode(config, variables, {"tokens": tokens})
        return predict.predict(config, variables, {"image": image}, encoded)

    program = compiled(answer, peers.variables, ours, tokens)
    theirs, words = _pictures(peers, images), peers.to_torch(tokens)
    calls = {"ours": jax_call(lambda: program.call(peers.variables, ours, tokens))} | {
        name: peers.torch_call(functools.partial(peer.detect, getattr(peers, name), theirs[name], words))
        for name in NAMES[1:]
    }
    return Compared(calls, program)


def phrases(peers: Peers, embeddings: jax.Array, valid: Any, count: int) -> Compared:
    """So many phrases against the kept proposals of one picture, "1 k d" with `valid` "1 k".

    Ours pads the phrases to a power of two, as `predict.Predictor` does; PyTorch gets the real ones only.
    """
    config, padding = peers.config, (1 << (count - 1).bit_length()) - count
    tokens = jax.device_put(np.pad(peers.tokens[:count], ((0, padding), (0, 0))))

    def answer(variables, embeddings, tokens):
        return predict.align(config, variables, embeddings, model.encode_text(config, variables, tokens))

    program = compiled(answer, peers.variables, embeddings, tokens)
    kept = peers.to_torch(np.asarray(embeddings)[np.asarray(valid)])
    words = peers.to_torch(peers.tokens[:count])

    def theirs(net):
        return net.align(kept, net.text(words)).sigmoid()

    calls = {
        "ours": jax_call(lambda: program.call(peers.variables, embeddings, tokens)),
        "eager": peers.torch_call(lambda: theirs(peers.eager)),
    }
    return Compared(calls, program)


def _pictures(peers: Peers, images: int) -> dict[str, torch.Tensor]:
    plain = peers.to_torch(peers.images[:images])
    return {"eager": plain, "tuned": plain.to(memory_format=torch.channels_last)}


def detection_difference(ours: dict[str, Any], theirs: list[dict[str, Any]]) -> dict[str, Any]:
    """How many proposals either has; where that is equal, the largest difference of boxes and alignment."""
    valid = np.asarray(ours["valid"])
    counts = {"ours": int(valid.sum()), "eager": sum(len(one["conf"]) for one in theirs)}
    boxes = align = 0.0
    for i, one in enumerate(theirs):
        if valid[i].sum() != len(one["conf"]):
            return {"proposals": counts}
        other = {key: value.float().cpu().numpy() for key, value in one.items()}
        boxes = max(boxes, np.abs(np.asarray(ours["boxes"])[i][valid[i]] - other["boxes"]).max(initial=0))
        align = max(align, np.abs(np.asarray(ours["align"])[i][:, valid[i]] - other["align"]).max(initial=0))
    return {"proposals": counts, "eager": {"box_px": float(boxes), "align": float(align)}}


# training


class Training(NamedTuple):
    """The calls, our program, and the metrics of every implementation's first step."""

    calls: dict[str, Call]
    program: Program
    first: dict[str, dict[str, float]]


def training(peers: Peers, *, images: int, trainable: str) -> Training:
    """Steps with SGD, clipped gradients and the trainer's guards, on `images` scenes.

    All that is frozen is computed once, before: such a step starts from stored features.
    """
    width, side = peers.config.rpn_width, peers.config.image_size[0]
    config = make_config(images=images, side=side, width=width, trainable=trainable, dtype=peers.config.dtype)
    settings = model.ModelConfig.create(config.model)
    batch = next(data.make_train_iterator(config))
    del batch["step"]  # no annotated boxes are mixed in
    cut = model.cut(settings)
    if cut:
        trunk = jax.jit(functools.partial(model.trunk, settings))
        pictures = batch.pop("image")
        parts = [trunk(peers.variables, pictures[i : i + 1]) for i in range(images)]
        batch["trunk"] = np.concatenate(parts).astype(np.float16)
    program, state, device_batch, stop = trainer_step(config, peers.variables, batch)
    holder = {"state": state}

    def ours():
        holder["state"], metrics = program.call(holder["state"], device_batch, stop)
        return metrics

    sample = _sample(peers, config, settings, batch)
    calls, first = {"ours": jax_call(ours)}, {"ours": _shown(ours())}
    for name in NAMES[1:]:
        step = _torch_step(peers, config, batch, frozen=cut, channels_last=name == "tuned")
        first[name] = _shown(step(sample))
        calls[name] = Call(step, peers.wait)
    return Training(calls, program, first)


def _shown(metrics: dict[str, Any]) -> dict[str, float]:
    names = {"cls_loss": "objectness", "box_loss": "box", "align_loss": "alignment"}
    shown = {name: metrics.get(name, metrics.get(theirs)) for name, theirs in names.items()}
    return {name: float(v) for name, v in (shown | {n: metrics[n] for n in ("loss", "grad_norm")}).items()}


def _sample(peers: Peers, config, settings, batch) -> dict[str, torch.Tensor]:
    """The anchors that our first step draws."""
    key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 4)[0]
    cells = tuple(side // model.STRIDE for side in settings.image_size)
    found = objective.assign(
        objective.ObjectiveConfig.create(config.objective), batch, model.anchors(settings, cells), key
    )
    return {
        "anchors": peers.to_torch(np.asarray(found.anchors, np.int64)),
        "labels": peers.to_torch(np.asarray(found.labels, np.float32)),
        "used": peers.to_torch(found.valid),
        "matched": peers.to_torch(np.maximum(np.asarray(found.matched, np.int64), 0)),
    }


def _torch_step(
    peers: Peers, config, batch, *, frozen: int, channels_last: bool
) -> Callable[..., dict[str, torch.Tensor]]:
    """Loss, gradients, clipping and SGD of a peer of its own, as the trainer's."""
    net = copy.deepcopy(peers.eager)
    net.backbone.frozen = frozen
    net.backbone.features[:frozen].requires_grad_(False)
    net.text = peer.load(jax.device_get(peers.variables), dropout=0.0).text.to(peers.device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = net.to(memory_format=layout).train()
    learned = [weight for weight in net.parameters() if weight.requires_grad]
    optim = config.optim
    sgd = torch.optim.SGD(learned, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)
    arrays = {
        "boxes": peers.to_torch(batch["boxes"]),
        "valid": peers.to_torch(batch["boxes_valid"]),
        "aligned": peers.to_torch(batch["aligned"]),
        "tokens": peers.to_torch(batch["tokens"]),
    }
    inputs = peers.to_torch(batch["trunk" if frozen else "image"]).to(memory_format=layout)

    def step(sample=None):
        sgd.zero_grad(set_to_none=True)
        with peers.precision():
            found = peer.loss(net, arrays | {"images": inputs.float()}, start=frozen, sample=sample)
        found["loss"].backward()
        found["grad_norm"] = torch.nn.utils.clip_grad_norm_(learned, optim.clip_norm)
        sgd.step()
        return {name: value.detach() for name, value in found.items()}

    return step
