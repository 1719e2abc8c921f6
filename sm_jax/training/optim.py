"""Optimizers and schedules. The direction comes from optax; the step `p - lr * direction` is the trainer's.

Keeping the learning rate out of the optimizer state lets a reloaded state continue with the current rate.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sm_jax.errors import ConfigError
from sm_jax.settings import nearest

Array = jax.Array


def make_optimizer(config: Any) -> optax.GradientTransformation:
    """The optimizer of `config.optim`, without its learning rate.

    `sgd` is `torch.optim.SGD`: weight decay is added to the gradient, then momentum without dampening (OS2D,
    ECCV 2020, trains so). `adam` adds the decay to the gradient too; `adamw` adds it to the direction.
    Parts of the model named in `adam_parts` use `adam`, with `adam_lr` at the schedule's start, whatever the
    others do. `bias_lr` is a factor of the learning rate of every parameter called "bias", and without
    `bias_decay` they have no weight decay; Caffe's networks, such as SSM's, are trained with 2 and False.
    `part_lr` gives factors of the learning rate of whole parts, and the parts in `no_decay` have no weight
    decay. Parts named in `alternate` take turns of `alternate_every` steps; one that rests keeps its values
    and its momentum.

    Raises:
      ConfigError: an unknown name, a `clip_norm`, `ema`, `bias_lr` or `part_lr` that no step can use, or
        `adam_parts` together with `alternate`; from its `init`: a part of `adam_parts`, `alternate`,
        `part_lr` or `no_decay` that is not there.
    """
    if not config.get("clip_norm", 0.0) >= 0 or not 0 <= config.get("ema", 0.0) < 1:
        raise ConfigError(
            f"optim.clip_norm={config.get('clip_norm', 0.0)}, ema={config.get('ema', 0.0)}: clip_norm is at "
            "least 0 (0: no clipping), ema from 0 (none) to below 1"
        )
    bias_lr = config.get("bias_lr", 1.0)
    if not 0 < bias_lr < math.inf:
        raise ConfigError(f"optim.bias_lr={bias_lr}: must be positive (1: the rate of all others)")
    part_lr, spared = dict(config.get("part_lr", {})), tuple(config.get("no_decay", ()))
    if not all(0 < factor < math.inf for factor in part_lr.values()):
        raise ConfigError(f"optim.part_lr={part_lr}: factors must be positive")
    mask = None
    if spared or not config.get("bias_decay", True):
        mask = functools.partial(_decayed, spared=spared, biases=config.get("bias_decay", True))
    decay = optax.add_decayed_weights(config.get("weight_decay", 0.0), mask)
    adam = optax.scale_by_adam(config.get("b1", 0.9), config.get("b2", 0.999), config.get("eps", 1e-8))
    momentum = config.get("momentum", 0.9)
    makers = {
        "sgd": lambda: optax.chain(decay, optax.trace(momentum) if momentum else optax.identity()),
        "adam": lambda: optax.chain(decay, adam),
        "adamw": lambda: optax.chain(adam, decay),
    }
    if config.name not in makers:
        raise ConfigError(f"optim.name={config.name!r} is not known{nearest(config.name, makers)}")
    optimizer = _with_adam_parts(config, makers)
    if bias_lr != 1:
        optimizer = optax.chain(optimizer, optax.stateless(_scale_biases(bias_lr)))
    if part_lr:
        optimizer = optax.chain(optimizer, optax.stateless(_scale_parts(part_lr)))
    return _with_parts(optimizer, {"optim.part_lr": part_lr, "optim.no_decay": spared})


def _is_bias(path: str) -> bool:
    return path.split("/")[-1] == "bias"


def _decayed(parameters: dict[str, Array], *, spared: tuple[str, ...], biases: bool) -> dict[str, bool]:
    """Which parameters have weight decay."""
    return {path: path.split("/")[0] not in spared and (biases or not _is_bias(path)) for path in parameters}


def _scale_parts(factors: dict[str, float]) -> Callable[..., dict[str, Array]]:
    def scale(directions, parameters=None):
        del parameters
        return {path: x * factors.get(path.split("/")[0], 1.0) for path, x in directions.items()}

    return scale


def _with_parts(
    optimizer: optax.GradientTransformation, named: dict[str, Any]
) -> optax.GradientTransformation:
    """`optimizer`, whose `init` refuses a model that trains none of a part that an option names."""
    if not any(named.values()):
        return optimizer

    def init(parameters):
        there = {path.split("/")[0] for path in parameters}
        for option, parts in named.items():
            if missing := [part for part in parts if part not in there]:
                raise ConfigError(f"{option}: the model trains no part called {', '.join(missing)}")
        return optimizer.init(parameters)

    return optax.GradientTransformation(init, optimizer.update)


def _scale_biases(factor: float) -> Callable[..., dict[str, Array]]:
    def scale(directions, parameters=None):
        del parameters
        return {path: x * factor if _is_bias(path) else x for path, x in directions.items()}

    return scale


def _with_adam_parts(config: Any, makers: dict[str, Callable]) -> optax.GradientTransformation:
    """The optimizer `config.name`, with `adam` for the parts in `adam_parts`."""
    parts, turns = tuple(config.get("adam_parts", ())), tuple(config.get("alternate", ()))
    if turns:
        if parts:
            raise ConfigError("optim.adam_parts and optim.alternate do not go together; empty one of them")
        return _alternate(makers[config.name], turns, int(config.get("alternate_every", 0)))
    if not parts:
        return makers[config.name]()
    if not config.get("adam_lr", 0.0) > 0 or not config.lr > 0:
        raise ConfigError("optim.adam_parts: needs a positive optim.adam_lr and a positive optim.lr")
    # The trainer multiplies every direction by the rate of the schedule, which starts at `lr`.
    own = optax.chain(makers["adam"](), optax.scale(config.adam_lr / config.lr))

    def labels(paths):
        found = {path: path.split("/")[0] in parts for path in paths}
        if missing := [part for part in parts if not any(path.split("/")[0] == part for path in paths)]:
            raise ConfigError(f"optim.adam_parts: the model trains no part called {', '.join(missing)}")
        return found

    return optax.partition({True: own, False: makers[config.name]()}, labels)


def _alternate(
    make: Callable[[], optax.GradientTransformation], turns: tuple[str, ...], every: int
) -> optax.GradientTransformation:
    """Parts of the model in turn, each for `every` steps; source: published SCNet code, second trainer."""
    if every < 1:
        raise ConfigError(f"optim.alternate_every={every}: must be at least 1 step, as a rule an epoch")

    def resting(turn: int) -> optax.GradientTransformation:
        return optax.conditionally_mask(make(), lambda step: step // every % len(turns) == turn)

    def labels(paths):
        found = {path: path.split("/")[0] for path in paths}
        if missing := set(turns) - set(found.values()):
            raise ConfigError(
                f"optim.alternate: the model trains no part called {', '.join(sorted(missing))}"
            )
        return {path: part if part in turns else "" for path, part in found.items()}

    return optax.partition({"": make()} | {part: resting(i) for i, part in enumerate(turns)}, labels)


def make_schedule(config: Any, steps: int) -> Callable[[Array], Array]:
    """Learning rate by step (int32, from 0) from `config.optim`.

    `multistep` multiplies by `gamma` from each of `milestones` on, `exponential` after every `decay_every`
    steps (as a rule an epoch); `cosine` falls to `lr_end` (0) at `steps`;
    `constant` stays. With `warmup` = w, step s < w has (s + 1) / w of the rate.
    """
    lr, warmup = float(config.lr), int(config.get("warmup", 0))
    milestones = tuple(config.get("milestones", ()))
    if list(milestones) != sorted(set(milestones)) or any(at < 1 for at in milestones):
        raise ConfigError(f"optim.milestones={milestones}: steps must be positive and increasing")
    names = ("multistep", "exponential", "cosine", "constant")
    if config.schedule not in names:
        raise ConfigError(f"optim.schedule={config.schedule!r} is not known{nearest(config.schedule, names)}")

    if config.schedule == "exponential" and (config.decay_every < 1 or not config.gamma > 0):
        raise ConfigError(
            f"optim.decay_every={config.decay_every}, gamma={config.gamma}: both must be positive"
        )

    def rate(step: Array) -> Array:
        if config.schedule == "multistep":
            table = jnp.asarray([lr * config.gamma**k for k in range(len(milestones) + 1)], jnp.float32)
            value = table[jnp.sum(step >= jnp.asarray(milestones, jnp.int32))]
        elif config.schedule == "exponential":
            value = lr * jnp.float32(config.gamma) ** (step // config.decay_every).astype(jnp.float32)
        elif config.schedule == "cosine":
            end = config.get("lr_end", 0.0)
            done = jnp.clip((step - warmup) / max(1, steps - warmup), 0.0, 1.0)
            value = end + (lr - end) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        else:
            value = jnp.asarray(lr, jnp.float32)
        return value * jnp.minimum(1.0, (step + 1) / warmup) if warmup else value

    return rate


def drops(config: Any) -> frozenset[int]:
    """The steps before which the best checkpoint is reloaded (`reload_best_at_drop`); empty when off."""
    if config.schedule != "multistep" or not config.get("reload_best_at_drop", False):
        return frozenset()
    return frozenset(config.milestones)


def clip(grads: Any, norm: Array, max_norm: float) -> Any:
    """Scale gradients of global L2 norm `norm` to at most `max_norm`, as `torch.nn.utils.clip_grad_norm_`."""
    if not max_norm:
        return grads
    factor = jnp.minimum(1.0, max_norm / (norm + 1e-6))
    return jax.tree.map(lambda grad: grad * factor, grads)


def initial_loss_scale(config: Any) -> float | None:
    """The loss scale to start from, None without one.

    `optim.loss_scale` is a number (static), "dynamic", "0" (off), or "auto": dynamic if the model computes
    anything in float16, whose gradients underflow without it.
    """
    wanted = _wanted_loss_scale(config)
    if wanted == "dynamic":
        return 2.0**15
    try:
        scale = float(wanted)
    except ValueError:
        scale = math.nan
    if not 0 <= scale < math.inf:
        raise ConfigError(f"optim.loss_scale={wanted!r}: a number, 0 for none, 'dynamic' or 'auto'")
    return scale or None


def dynamic_loss_scale(config: Any) -> bool:
    """Whether the loss scale adapts (see `initial_loss_scale`)."""
    return _wanted_loss_scale(config) == "dynamic"


def _wanted_loss_scale(config: Any) -> Any:
    wanted = config.optim.get("loss_scale", "auto")
    if wanted != "auto":
        return wanted
    model = config.get("model", {})
    return "dynamic" if "float16" in (model.get("dtype", ""), model.get("head_dtype", "")) else 0
