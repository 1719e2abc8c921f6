"""A matcher of a few dozen parameters and a grain iterator, to train in milliseconds.

Run as a script it trains `steps` in `workdir` with the JSON overrides given: `toy.py WORKDIR JSON`.
"""

import json
import sys
import time

import grain
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sm_jax.systems.base import System
from sm_jax.training.trainer import Parts, train


def make_config(**overrides):
    """The sections that the trainer reads; `overrides` are dotted names with `__` for the dot."""
    config = ConfigDict(
        {
            "system": "toy",
            "seed": 0,
            "steps": 8,
            "batch_size": 8,
            "log_every": 1,
            "eval_every": 0,
            "eval_first": True,
            "model": {"width": 4, "dtype": "float32", "remat": False, "conv": False},
            "init": {"backbone": "", "shift": 0.0},
            "data": {"delay": 0.0, "poison": -1, "scale": 1.0, "stall": -1},
            "optim": {
                "name": "sgd",
                "lr": 0.1,
                "momentum": 0.9,
                "weight_decay": 1e-3,
                "clip_norm": 1.0,
                "schedule": "multistep",
                "milestones": (1000,),
                "gamma": 0.1,
                "reload_best_at_drop": False,
                "accumulate": 1,
                "ema": 0.5,
                "warmup": 0,
            },
            "mesh": {"data": 1, "fsdp": 1, "min_size": 1},
            "distributed": False,
            "checkpoint": {"every": 4, "keep": 2, "keep_best": 1, "best_metric": "val/score", "mode": "max"},
        }
    )
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in overrides.items()})
    return config


def make_system(config):
    """Convolution (or a product: compiles faster), normalisation, dropout; `frozen/kernel` is frozen."""
    width, dtype = config.model.width, jnp.dtype(config.model.dtype)

    def init(key, batch):
        noise = jax.random.normal(key, (35, width))
        kernel = noise[:27].reshape(3, 3, 3, width) / 5
        return {
            "params": {
                "body": {"conv": {"kernel": kernel}, "bn": {"scale": jnp.ones(width)}},
                "frozen": {"kernel": jnp.eye(width)},
                "head": {"kernel": noise[27:].T / 2},
            },
            "batch_stats": {"bn": {"mean": jnp.zeros(width), "var": jnp.ones(width)}},
        }

    def loss(variables, batch, key):
        params = variables["params"]
        image, kernel = batch["image"].astype(dtype), params["body"]["conv"]["kernel"].astype(dtype)
        if config.model.conv:
            dims = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=dims)
        else:
            x = image @ jnp.sum(kernel, (0, 1))
        x = x.astype(jnp.float32)
        mean = jnp.mean(x, (0, 1, 2))
        x = jax.nn.relu((x - mean[None, None, None]) * params["body"]["bn"]["scale"][None, None, None])
        x = jnp.mean(x, (1, 2)) @ params["frozen"]["kernel"]
        x = x * jax.random.bernoulli(key, 0.9, x.shape)
        logits = x @ params["head"]["kernel"]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], 1)
        value = -jnp.mean(chosen) + 0 * jnp.sum(batch["offset"])
        new_mean = 0.9 * variables["batch_stats"]["bn"]["mean"] + 0.1 * mean
        return value, ({"accuracy": jnp.mean(jnp.exp(chosen))}, {"batch_stats": {"bn": {"mean": new_mean}}})

    return System(init, loss, lambda v, r: r, lambda v, i, e: {}, lambda path: not path.startswith("frozen"))


def make_train_iterator(config):
    """Element k is global batch k by (seed, k); each process gives its rows."""
    processes, rows = jax.process_count(), config.batch_size // jax.process_count()
    mine = slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)
    seed, size, data = config.seed, config.batch_size, config.data.to_dict()

    def batch(index):
        time.sleep(data["delay"])
        rng = np.random.default_rng((seed, int(index)))
        label = rng.integers(0, 8, size)
        image = rng.normal(size=(size, 6, 6, 3)) + label[:, None, None, None] / 4
        if index == data["poison"]:
            image = image * np.nan
        return {
            "image": (data["scale"] * image[mine]).astype(np.float32),
            "label": label[mine].astype(np.int32),
            "offset": np.zeros(3 * (processes == 1), np.float32),
        }

    dataset = grain.MapDataset.range(1000)
    if data["poison"] < 0:
        dataset = dataset.seed(seed).shuffle()
    iterator = iter(dataset.repeat().map(batch).to_iter_dataset())
    return Stalling(iterator, data["stall"]) if data["stall"] >= 0 else iterator


class Stalling:
    """An iterator that gives `count` batches and then nothing for minutes."""

    def __init__(self, iterator, count):
        self._iterator, self._left = iterator, count
        self.get_state, self.set_state = iterator.get_state, iterator.set_state

    def __next__(self):
        if not self._left:
            time.sleep(300)
        self._left -= 1
        return next(self._iterator)


def initialize(variables, init):
    """Adds `init.shift` to one tensor, in place of pretrained weights."""
    variables["params"]["body"]["bn"]["scale"] = variables["params"]["body"]["bn"]["scale"] + init.shift
    return variables, [f"starts from random weights, shifted by {init.shift}"]


class Evaluator:
    """The mean of the head as a score; `hook(variables)` runs first."""

    def __init__(self, hook=None):
        self._hook = hook

    def run(self, variables):
        value = self._hook(variables) if self._hook else None
        yield "score", float(jnp.mean(variables["params"]["head"]["kernel"])) if value is None else value
        yield "picture", np.zeros((2, 2))


def make_parts(*, hook=None, **changes):
    """The toy as the trainer's parts."""
    return Parts(
        make_system, make_train_iterator, initialize, lambda c, s: {"val": Evaluator(hook)}
    )._replace(**changes)


if __name__ == "__main__":
    overrides = json.loads(sys.argv[2])
    jax.config.update("jax_num_cpu_devices", overrides.pop("devices", 8))
    jax.config.update("jax_numpy_rank_promotion", "raise")
    train(make_config(**overrides), sys.argv[1], parts=make_parts())
