"""One optimizer step: gradients of one or several micro-batches, then the guarded update."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sm_jax.systems.base import System
from sm_jax.training import optim
from sm_jax.training.state import TrainState, merge, partition, update_collections

Array = jax.Array
GROWTH_INTERVAL = 2000  # steps without overflow before a dynamic loss scale doubles


class Gathered(NamedTuple):
    """Sums over micro-batches: gradients (times the loss scale), loss, metrics; the newest collections.

    `defined` counts the micro-batches in which each metric was a number: NaN says that it has no value there,
    for example a mean over positives where there are none.
    """

    grads: dict[str, Array]
    loss: Array
    metrics: dict[str, Array]
    defined: dict[str, Array]
    collections: Any


def make_step(
    system: System,
    optimizer: optax.GradientTransformation,
    config: Any,
    key: np.ndarray,
    shardings: TrainState,
    stop_sharding: jax.NamedSharding,
) -> Callable[[TrainState, Sequence[dict[str, Array]], Array], tuple[TrainState, dict[str, Array]]]:
    """The compiled step `(state, micro-batches, stop flags) -> (state, metrics)`; `state` is donated.

    `key` is key data in NumPy, so that every process compiles the same program; each micro-batch gets it
    folded with its number in the run. The metrics hold means over the micro-batches, `loss`, `grad_norm`
    (before clipping), `lr`, and for the loop `failed` and `stop` (any process asked to stop). A metric of
    `system.loss` that is NaN is undefined in that micro-batch, and NaN in the step if it is so in all.

    Micro-batches are a Python loop on purpose: gradients of convolutions inside `lax.scan` are an order of
    magnitude slower on the CPU.
    """
    count = int(config.optim.get("accumulate", 1))
    gather, apply = _make_gather(system, key, count), _make_apply(system, optimizer, config, count)
    whole = jax.NamedSharding(stop_sharding.mesh, jax.P())

    if count == 1:

        def fused(state: TrainState, batch: Any, stop: Array) -> tuple[TrainState, dict[str, Array]]:
            return apply(state, gather(state, state.collections, batch, 0), stop)

        compiled = jax.jit(fused, donate_argnums=0, out_shardings=(shardings, whole))
        return lambda state, batches, stop: compiled(state, batches[0], stop)

    gather = jax.jit(gather)
    add = jax.jit(partial(jax.tree.map, jnp.add), donate_argnums=0)
    apply = jax.jit(apply, donate_argnums=0, out_shardings=(shardings, whole))

    def step(state: TrainState, batches: Any, stop: Array) -> tuple[TrainState, dict[str, Array]]:
        total = gather(state, state.collections, batches[0], jnp.int32(0))
        for index, batch in enumerate(batches[1:], start=1):
            more = gather(state, total.collections, batch, jnp.int32(index))
            # Collections that no batch changes are still the state's own buffers, so they stay out of `add`.
            total = Gathered(*add(total[:4], more[:4]), collections=more.collections)
        return apply(state, total, stop)

    return step


def _make_gather(system: System, key_data: np.ndarray, count: int) -> Callable[..., Gathered]:
    def scaled_loss(learned: Any, rest: Any, collections: Any, batch: Any, key: Array, scale: Array) -> Any:
        variables = {"params": merge(learned, rest), **collections}
        loss, (metrics, updates) = system.loss(variables, batch, key)
        return loss.astype(jnp.float32) * scale, (loss, metrics, updates)

    def gather(state: TrainState, collections: Any, batch: Any, index: Any) -> Gathered:
        learned, rest = partition(state.params, system.trainable)
        scale = state.scale["value"] if state.scale else jnp.float32(1)
        micro_key = jax.random.fold_in(jax.random.wrap_key_data(key_data), state.step * count + index)
        grads, (loss, metrics, updates) = jax.grad(scaled_loss, has_aux=True)(
            learned, rest, collections, batch, micro_key, scale
        )
        defined = {name: ~jnp.isnan(value) for name, value in metrics.items()}
        metrics = {name: jnp.where(defined[name], value, 0) for name, value in metrics.items()}
        counts = {name: value.astype(jnp.float32) for name, value in defined.items()}
        return Gathered(grads, loss, metrics, counts, update_collections(collections, updates))

    return gather


def _make_apply(
    system: System, optimizer: optax.GradientTransformation, config: Any, count: int
) -> Callable[[TrainState, Gathered, Array], tuple[TrainState, dict[str, Array]]]:
    schedule = optim.make_schedule(config.optim, config.steps)
    dynamic = optim.dynamic_loss_scale(config)
    max_norm, decay = config.optim.get("clip_norm", 0.0), config.optim.get("ema", 0.0)

    def apply(state: TrainState, total: Gathered, stop: Array) -> tuple[TrainState, dict[str, Array]]:
        scale = state.scale["value"] if state.scale else 1.0
        loss = total.loss / count
        metrics = {name: value / total.defined[name] for name, value in total.metrics.items()}
        grads = jax.tree.map(lambda grad: grad / (count * scale), total.grads)
        norm, lr = optax.tree.norm(grads), schedule(state.step)

        learned, rest = partition(state.params, system.trainable)
        direction, opt_state = optimizer.update(optim.clip(grads, norm, max_norm), state.opt_state, learned)
        params = merge(jax.tree.map(lambda p, d: p - lr * d, learned, direction), rest)
        # As a difference: two weights that do not add up to 1 would let frozen parameters drift by rounding.
        ema = state.ema and jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), state.ema, params)
        new = state._replace(params=params, collections=total.collections, opt_state=opt_state, ema=ema)

        overflow = jnp.isfinite(loss) & ~jnp.isfinite(norm) & dynamic & (jnp.asarray(scale) > 1.0)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm) & _all_finite((params, total.collections))
        alive = state.failed < 0
        new = jax.tree.map(lambda new, old: jnp.where(finite & alive, new, old), new, state)
        failed = jnp.where(alive & ~finite & ~overflow, state.step, state.failed)
        new = new._replace(
            step=state.step + (failed < 0),
            scale=_adapt(state.scale, overflow) if dynamic else state.scale,
            failed=failed,
        )
        shown = {**metrics, "loss": loss, "grad_norm": norm, "lr": lr}
        if dynamic:
            shown["loss_scale"] = scale
        return new, {**shown, "failed": failed, "stop": jnp.max(stop)}

    return apply


def _adapt(scale: dict[str, Array], overflow: Array) -> dict[str, Array]:
    good = jnp.where(overflow, 0, scale["good"] + 1)
    grown = jnp.where(good >= GROWTH_INTERVAL, scale["value"] * 2, scale["value"])
    value = jnp.where(overflow, jnp.maximum(scale["value"] / 2, 1.0), jnp.minimum(grown, 2.0**24))
    return {"value": value, "good": jnp.where(good >= GROWTH_INTERVAL, 0, good)}


def _all_finite(tree: Any) -> Array:
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in floats]))
