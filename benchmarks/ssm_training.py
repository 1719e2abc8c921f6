"""A training step of the semantic matcher: loss, gradients, clipping and SGD, ours and PyTorch's."""

import copy
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import torch

from benchmarks import torch_ssm as peer
from benchmarks.measure import Call, Program, compiled
from benchmarks.peers import jax_call
from benchmarks.ssm_subjects import Peers
from sm_jax.systems.ssm import objective

RATE, CLIP = 1e-3, 1.0


class Training(NamedTuple):
    """The calls, our program, and what every implementation's first step found."""

    calls: dict[str, Call]
    program: Program
    first: dict[str, dict[str, float]]


def make_batch(peers: Peers) -> dict[str, np.ndarray]:
    """The peers' pictures as pairs, with two boxes each; every fourth pair is a negative one."""
    rng = np.random.default_rng(3)
    count, side = len(peers.images), peers.images.shape[1]
    centre, half = rng.uniform(0.2, 0.8, (count, 2, 2)), rng.uniform(0.1, 0.3, (count, 2, 2))
    return {
        "image": peers.images,
        "request": peers.requests,
        "boxes": (side * np.concatenate([centre - half, centre + half], -1)).astype(np.float32),
        "valid": np.ones((count, 2), bool),
        "positive": np.arange(count) % 4 != 3,
    }


def torch_targets(peers: Peers, batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """What the cells should say, from our encoder, as `torch_ssm.loss` takes it."""
    where = batch["valid"] & batch["positive"][:, None]
    wanted = objective.make_targets(objective.ObjectiveConfig(), batch["boxes"], where, peers.config.cells)
    named = {"coverage": wanted.coverage, "offsets": wanted.offsets, "norm": wanted.k_norm}
    return {name: torch.from_numpy(np.array(array)).to(peers.device) for name, array in named.items()}


def make(peers: Peers) -> Training:
    """Steps that train everything on `make_batch`, from the peers' weights."""
    batch, config = make_batch(peers), objective.ObjectiveConfig()
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.sgd(RATE, momentum=0.9))

    def step(params, state, batch):
        def total(params):
            return objective.loss(peers.config, config, {"params": params}, batch, jax.random.key(0))

        (value, (metrics, _)), gradients = jax.value_and_grad(total, has_aux=True)(params)
        changes, state = optimizer.update(gradients, state, params)
        found = {"loss": value, **metrics, "grad_norm": optax.tree.norm(gradients)}
        return optax.apply_updates(params, changes), state, found

    params = jax.tree.map(lambda leaf: leaf + 0, peers.variables["params"])  # the step donates them
    held, on_jax = (params, optimizer.init(params)), jax.device_put(batch)
    program = compiled(step, *held, on_jax, donate_argnums=(0, 1))

    def ours():
        nonlocal held
        *held, found = program.call(*held, on_jax)
        return found

    names = {"loss": "loss", "sem_loss": "semantic", "rect_loss": "rectangle", "grad_norm": "grad_norm"}
    calls: dict[str, Call] = {"ours": jax_call(ours)}
    first = {"ours": {name: float(value) for name, value in ours().items() if name in names}}
    for other in ("eager", "tuned"):
        theirs = _torch_step(peers, batch, getattr(peers, other), channels_last=other == "tuned")
        found = theirs()
        first[other] = {name: float(found[key]) for name, key in names.items()}
        calls[other] = Call(theirs, peers.wait)
    return Training(calls, program, first)


def _torch_step(peers: Peers, batch: dict[str, Any], net: peer.SSM, *, channels_last: bool):
    net = copy.deepcopy(net).train()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images, crops = (peers.to_torch(batch[name]).to(memory_format=layout) for name in ("image", "request"))
    targets = torch_targets(peers, batch)
    learned = list(net.parameters())
    sgd = torch.optim.SGD(learned, lr=RATE, momentum=0.9)

    def step():
        sgd.zero_grad(set_to_none=True)
        with peers.precision():
            out = net(images, crops)
        found = peer.loss(out.float(), targets)
        found["loss"].backward()
        found["grad_norm"] = torch.nn.utils.clip_grad_norm_(learned, CLIP)
        sgd.step()
        return {name: value.detach() for name, value in found.items()}

    return step
