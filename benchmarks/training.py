"""Training: a step of ours (the trainer's own) and of the eager PyTorch peer; the head's gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from ml_collections import ConfigDict

from benchmarks import torch_os2d as eager
from benchmarks.material import cut_out
from benchmarks.measure import Call, Program, compiled
from benchmarks.peers import jax_call
from benchmarks.subjects import Peers
from configs.os2d import get_config
from sm_jax import boxes as box_ops
from sm_jax import systems
from sm_jax.systems.os2d import model, objective
from sm_jax.training import optim, sharding
from sm_jax.training.state import create
from sm_jax.training.step import make_step

BOXES = 4  # objects in a picture


class Training(NamedTuple):
    """The calls, our program, (images, classes, height, width) of the correlation, and the first metrics."""

    calls: dict[str, Call]
    program: Program
    cells: tuple[int, int, int, int]
    first: dict[str, dict[str, float]]


def make(peers: Peers, *, images: int, classes: int, side: int) -> Training:
    """`images` square crops of `side` pixels against `classes` class pictures; both sides take real steps."""
    config = get_config("full")
    config.model = ConfigDict(vars(peers.config))
    config.optim.clip_norm = 100.0
    batch = make_batch(peers, images=images, classes=classes, side=side)
    settings = objective.ObjectiveConfig.create(config.objective)
    program, state, device_batch, stop = trainer_step(config, peers.variables, batch)
    holder = {"state": state}

    def ours():
        holder["state"], metrics = program.call(holder["state"], device_batch, stop)
        return metrics

    weights = {name: tensor.detach().clone() for name, tensor in peers.weights.items()}
    sgd = eager.optimizer(weights, lr=config.optim.lr)
    cells = (images, classes, *(model.resnet.feature_size(side),) * 2)
    torch_batch = _torch_batch(peers, settings, batch, cells[2:])
    options = {
        "inverse": peers.config.inverse,
        "train_norm": not peers.config.freeze_bn_transform,
        "margins": (settings.negative_margin, settings.positive_margin),
        "loc_weight": settings.loc_weight,
    }
    calls = {
        "ours": jax_call(ours),
        "eager": Call(lambda: eager.train_step(weights, sgd, torch_batch, **options), peers.wait),
    }
    results = {name: call() for name, call in calls.items()}
    names = {"loss": "loss", "cls_loss_pos": "positive", "cls_loss_neg": "negative", "loc_loss": "loc"}
    names["grad_norm"] = "grad_norm"
    first = {
        "ours": {ours: float(results["ours"][ours]) for ours in names},
        "eager": {ours: float(results["eager"][theirs]) for ours, theirs in names.items()},
    }
    return Training(calls, program, cells, first)


def head_gradient(peers: Peers, *, images: int, classes: int, side: int) -> tuple[dict[str, Call], Program]:
    """Value and gradient of a sum over scores, scores without the transformation's gradient, and box codes.

    With respect to features, templates and TransformNet, whose norms are in evaluation mode.
    """
    config = peers.config
    cells = (model.resnet.feature_size(side),) * 2
    rng = np.random.default_rng(2)
    maps = np.maximum(rng.normal(size=(images, *cells, model.FEATURES)), 0).astype(np.float32)
    templates = peers.templates[:classes]

    def total(params, maps, templates):
        variables = {**peers.variables, "params": {**peers.variables["params"], "transform": params}}
        out = model.head(config, variables, maps, None, templates)[0]
        return jnp.sum(out.scores) + jnp.sum(out.scores_detached) + jnp.sum(out.offsets)

    arguments = (peers.variables["params"]["transform"], jnp.asarray(maps), templates)
    program = compiled(jax.value_and_grad(total, argnums=(0, 1, 2)), *arguments)
    weights = {name: t.detach().clone() for name, t in peers.weights.items() if name.startswith("transform.")}
    eager.trainable(weights)
    maps_torch = peers.to_torch(maps).requires_grad_()
    templates_torch = peers.to_torch(templates).requires_grad_()

    def theirs():
        out = eager.head(weights, maps_torch, templates_torch, inverse=config.inverse, detached=True)
        value = out["scores"].sum() + out["scores_detached"].sum() + out["loc"].sum()
        leaves = [maps_torch, templates_torch, *(t for t in weights.values() if t.requires_grad)]
        return value.detach(), torch.autograd.grad(value, leaves)

    return {"ours": jax_call(lambda: program.call(*arguments)), "eager": Call(theirs, peers.wait)}, program


def make_batch(peers: Peers, *, images: int, classes: int, side: int) -> dict[str, np.ndarray]:
    """A batch as the objective defines it, with random boxes about as large as the template."""
    rng = np.random.default_rng(1)
    crops = np.stack([cut_out(rng, peers.picture, side) for _ in range(images)])
    pictures = np.stack([cut_out(rng, peers.picture, peers.config.query_size) for _ in range(classes)])
    centres = rng.uniform(0.2 * side, 0.8 * side, (images, BOXES, 2))
    half = rng.uniform(90, 150, (images, BOXES, 2))
    return {
        "image": crops,
        "size": np.full((images, 2), side, np.int32),
        "boxes": np.concatenate([centres - half, centres + half], -1).astype(np.float32),
        "labels": rng.integers(0, classes, (images, BOXES)).astype(np.int32),
        "difficult": np.zeros((images, BOXES), bool),
        "boxes_valid": np.ones((images, BOXES), bool),
        "query": pictures,
        "query_size": np.full((classes, 2), peers.config.query_size, np.int32),
        "query_valid": np.ones(classes, bool),
        "class_ids": np.arange(classes, dtype=np.int32),
        "valid": np.ones(images, bool),
    }


def trainer_step(config: Any, variables: Any, batch: dict[str, np.ndarray]) -> tuple[Program, Any, Any, Any]:
    """The trainer's step on one device, with its guards and clipping: program, state, batch, stop flags."""
    system, optimizer = systems.make(config), optim.make_optimizer(config.optim)
    variables = jax.tree.map(jnp.copy, variables)  # the step donates its state
    scale = optim.initial_loss_scale(config)
    state = create(variables, optimizer, system.trainable, ema=False, loss_scale=scale)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1})
    shardings = sharding.infer(state, mesh)
    state = jax.device_put(state, shardings)
    device_batch = sharding.put(batch, sharding.batch_sharding(batch, mesh))
    flags = jax.NamedSharding(mesh, jax.P(sharding.AXES))
    stop = jax.device_put(np.zeros(1, np.int32), flags)
    key = np.asarray(jax.random.key_data(jax.random.key(0)))
    take_step = make_step(system, optimizer, config, key, shardings, flags)
    program = compiled(
        lambda state, batch, stop: take_step(state, [batch], stop),
        state,
        device_batch,
        stop,
        donate_argnums=0,
    )
    return program, state, device_batch, stop


def _torch_batch(peers: Peers, settings: Any, batch: dict[str, np.ndarray], cells: tuple[int, int]) -> dict:
    """The peer's batch; as in the publication, the anchors' targets come with it."""
    classes = len(batch["query"])
    anchors = box_ops.anchor_grid(cells)
    keys = ("boxes", "labels", "difficult", "boxes_valid")
    arrays = {key: jnp.asarray(batch[key]) for key in keys}
    targets = objective.assign_targets(settings, arrays, jnp.asarray(anchors), num_classes=classes)

    def on_device(array):
        return torch.from_numpy(np.array(array)).to(peers.device)

    return {
        "images": peers.to_torch(batch["image"]),
        "classes": [peers.to_torch(picture[None]) for picture in batch["query"]],
        **{key: [on_device(rows) for rows in batch[key]] for key in ("boxes", "labels", "difficult")},
        "cls_targets": on_device(np.asarray(targets.labels, np.int64)),
        "loc_targets": on_device(np.moveaxis(np.asarray(targets.codes), -1, 2)),
    }
