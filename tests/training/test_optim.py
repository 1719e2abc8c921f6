from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from sm_jax.errors import ConfigError
from sm_jax.training import optim


def _config(**values):
    base = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "schedule": "constant"}
    return ConfigDict(base | values)


def _run(config, params, grads, clip_norm=0.0):
    optimizer, schedule = optim.make_optimizer(config), optim.make_schedule(config, len(grads))
    state, history = optimizer.init(params), []
    for step, grad in enumerate(grads):
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grad)))
        direction, state = optimizer.update(optim.clip(grad, norm, clip_norm), state, params)
        scaled = jax.tree.map(partial(jnp.multiply, schedule(jnp.int32(step))), direction)
        params = jax.tree.map(jnp.subtract, params, scaled)
        history.append(params)
    return history


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torch_sgd(momentum):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = {"w": rng.normal(size=(4, 3)), "b": rng.normal(size=3)}
    grads = [{k: 3 * rng.normal(size=v.shape) for k, v in start.items()} for _ in range(6)]
    config = _config(momentum=momentum, schedule="multistep", milestones=(2, 4), gamma=0.1)

    theirs = {k: torch.tensor(v, dtype=torch.float32, requires_grad=True) for k, v in start.items()}
    sgd = torch.optim.SGD(theirs.values(), lr=0.1, momentum=momentum, weight_decay=0.01)
    annealing = torch.optim.lr_scheduler.MultiStepLR(sgd, [2, 4], 0.1)
    ours = _run(config, *jax.tree.map(jnp.float32, (start, grads)), clip_norm=2.0)
    for grad, mine in zip(grads, ours, strict=True):
        for name, tensor in theirs.items():
            tensor.grad = torch.tensor(grad[name], dtype=torch.float32)
        torch.nn.utils.clip_grad_norm_(theirs.values(), 2.0)
        sgd.step()
        annealing.step()
        for name, tensor in theirs.items():
            np.testing.assert_allclose(mine[name], tensor.detach().numpy(), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_is_torch_adam(name):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    start, grads = rng.normal(size=5), rng.normal(size=(5, 5))
    tensor = torch.tensor(start, dtype=torch.float32, requires_grad=True)
    theirs = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]([tensor], lr=0.1, weight_decay=0.01)
    ours = _run(_config(name=name), {"w": jnp.float32(start)}, [{"w": jnp.float32(g)} for g in grads])
    for grad, mine in zip(grads, ours, strict=True):
        tensor.grad = torch.tensor(grad, dtype=torch.float32)
        theirs.step()
        np.testing.assert_allclose(mine["w"], tensor.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1, 1]),
        ({"schedule": "multistep", "milestones": (1, 3), "gamma": 0.1}, [1, 0.1, 0.1, 0.01, 0.01]),
        ({"schedule": "multistep", "milestones": (), "gamma": 0.1}, [1, 1, 1, 1, 1]),
        ({"schedule": "cosine"}, [1, (1 + np.sqrt(0.5)) / 2, 0.5, (1 - np.sqrt(0.5)) / 2, 0]),
        (
            {"schedule": "cosine", "lr_end": 0.5},
            [1, 0.75 + np.sqrt(0.5) / 4, 0.75, 0.75 - np.sqrt(0.5) / 4, 0.5],
        ),
        ({"schedule": "constant", "warmup": 2}, [0.5, 1, 1, 1, 1]),
        ({"schedule": "cosine", "warmup": 2}, [0.5, 1, 1, 0.5, 0]),
    ],
)
def test_schedules(changes, expected):
    schedule = optim.make_schedule(_config(lr=1.0, **changes), steps=4)
    np.testing.assert_allclose([schedule(jnp.int32(s)) for s in range(5)], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("norm", [0.5, 2.0, 4.0])
def test_clip_bounds_the_norm(norm):
    grads = {"a": jnp.array([0.6, 0.0]) * norm, "b": jnp.array([0.8]) * norm}
    clipped = optim.clip(grads, jnp.float32(norm), 2.0)
    np.testing.assert_allclose(np.hypot(clipped["a"][0], clipped["b"][0]), min(norm, 2.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "loss_scale", "scale", "dynamic"),
    [
        ({"dtype": "float32"}, None, None, False),
        ({"dtype": "bfloat16", "head_dtype": "float32"}, None, None, False),
        ({"dtype": "float32", "head_dtype": "float16"}, None, 2.0**15, True),
        ({"dtype": "float16"}, 128, 128.0, False),
        ({"dtype": "float16"}, 0, None, False),
        ({}, "dynamic", 2.0**15, True),
    ],
)
def test_loss_scale_follows_the_compute_type(model, loss_scale, scale, dynamic):
    config = ConfigDict({"model": model, "optim": {} if loss_scale is None else {"loss_scale": loss_scale}})
    assert optim.initial_loss_scale(config) == scale
    assert optim.dynamic_loss_scale(config) == dynamic


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "sdg"}, "optim.name='sdg' is not known; did you mean 'sgd'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"schedule": "multistep", "milestones": (3, 2)}, "must be positive and increasing"),
    ],
)
def test_bad_values_are_one_clear_line(changes, words):
    with pytest.raises(ConfigError, match=words):
        config = _config(**changes)
        optim.make_optimizer(config), optim.make_schedule(config, 10)


def test_bad_loss_scale():
    with pytest.raises(ConfigError, match="loss_scale"):
        optim.initial_loss_scale(ConfigDict({"optim": {"loss_scale": "static"}}))


@pytest.mark.parametrize(
    "wrong", [{"clip_norm": -1.0}, {"clip_norm": float("nan")}, {"ema": 1.0}, {"ema": -0.1}]
)
def test_values_that_no_step_can_use_are_refused(wrong):
    with pytest.raises(ConfigError, match="clip_norm is at least 0"):
        optim.make_optimizer(_config(**wrong))


def test_named_parts_use_adam_at_their_own_rate():
    params = {"text/w": jnp.array([1.0, -2.0]), "rpn/w": jnp.array([1.0, -2.0])}
    grads = [
        {name: jnp.array([0.3, -0.1]) for name in params},
        {name: jnp.array([-0.2, 0.4]) for name in params},
    ]
    mixed = _run(_config(adam_parts=("text",), adam_lr=1e-3), params, grads)
    sgd, adam = _run(_config(), params, grads), _run(_config(name="adam", lr=1e-3), params, grads)
    for step in range(2):
        np.testing.assert_allclose(mixed[step]["rpn/w"], sgd[step]["rpn/w"], rtol=1e-6)
        np.testing.assert_allclose(mixed[step]["text/w"], adam[step]["text/w"], rtol=1e-5)


def test_a_part_that_is_not_there_is_named():
    optimizer = optim.make_optimizer(_config(adam_parts=("txet",), adam_lr=1e-3))
    with pytest.raises(ConfigError, match="trains no part called txet"):
        optimizer.init({"text/w": jnp.zeros(2)})
    with pytest.raises(ConfigError, match="positive optim.adam_lr"):
        optim.make_optimizer(_config(adam_parts=("text",)))


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_biases_have_their_own_rate_and_no_decay(name):
    params = {"head/kernel": jnp.array([1.0, -2.0]), "head/bias": jnp.array([1.0, -2.0])}
    grads = [{path: jnp.array([0.3, -0.1]) for path in params}]
    own = _run(_config(name=name, bias_lr=2.0, bias_decay=False), params, grads)[0]
    plain, undecayed = (_run(_config(name=name, weight_decay=w), params, grads)[0] for w in (0.01, 0.0))
    np.testing.assert_array_equal(own["head/kernel"], plain["head/kernel"])
    step = own["head/bias"] - params["head/bias"]
    np.testing.assert_allclose(step, 2 * (undecayed["head/bias"] - params["head/bias"]), rtol=1e-5)
    both = _run(_config(name="sgd", bias_lr=2.0, adam_parts=("head",), adam_lr=1e-3), params, grads)[0]
    adam = _run(_config(name="adam", lr=1e-3), params, grads)[0]
    step = both["head/bias"] - params["head/bias"]
    np.testing.assert_allclose(step, 2 * (adam["head/bias"] - params["head/bias"]), rtol=1e-4)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_rates_of_biases_that_no_step_can_use_are_refused(factor):
    with pytest.raises(ConfigError, match="optim.bias_lr=.*must be positive"):
        optim.make_optimizer(_config(bias_lr=factor))


def test_parts_that_alternate_rest_with_their_momentum():
    params = {"fc/w": jnp.array([1.0, -2.0]), "fc_geometry/w": jnp.array([1.0, -2.0])}
    grads = [{name: jnp.array([0.3, -0.1]) for name in params}] * 6
    steps = _run(_config(alternate=("fc", "fc_geometry"), alternate_every=2), params, grads)
    plain = _run(_config(), params, grads)
    for step, alone in ((0, 0), (1, 1), (2, 1), (3, 1), (4, 2), (5, 3)):  # two steps, two of rest, two steps
        np.testing.assert_allclose(steps[step]["fc/w"], plain[alone]["fc/w"], rtol=1e-6)
    np.testing.assert_array_equal(steps[1]["fc_geometry/w"], params["fc_geometry/w"])
    np.testing.assert_allclose(steps[3]["fc_geometry/w"], plain[1]["fc/w"], rtol=1e-6)


def test_alternating_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="alternate_every=0"):
        optim.make_optimizer(_config(alternate=("fc",)))
    with pytest.raises(ConfigError, match="do not go together"):
        optim.make_optimizer(_config(alternate=("fc",), adam_parts=("fc",), adam_lr=1.0, alternate_every=1))
    with pytest.raises(ConfigError, match="trains no part called fc_geometry"):
        optimizer = optim.make_optimizer(_config(alternate=("fc", "fc_geometry"), alternate_every=1))
        optimizer.init({"fc/w": jnp.zeros(2)})


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_part_has_its_own_rate_and_no_decay(name):
    params = {"pool/p": jnp.ones(1), "whiten/bias": jnp.ones(2), "whiten/kernel": jnp.ones((2, 2))}
    grads = [jax.tree.map(lambda x: jnp.full_like(x, 0.3), params)] * 3
    plain = _run(_config(name=name), params, grads)[-1]
    bare = _run(_config(name=name, weight_decay=0.0), params, grads)[-1]
    own = _run(_config(name=name, part_lr={"pool": 10.0}, no_decay=("pool",)), params, grads)[-1]
    np.testing.assert_allclose(1 - own["pool/p"], 10 * (1 - bare["pool/p"]), rtol=1e-4)
    for path in ("whiten/bias", "whiten/kernel"):
        np.testing.assert_array_equal(own[path], plain[path])


@pytest.mark.parametrize(
    "options,line",
    [
        ({"part_lr": {"pol": 2.0}}, "optim.part_lr: the model trains no part called pol"),
        ({"no_decay": ("pol",)}, "optim.no_decay: the model trains no part called pol"),
        ({"part_lr": {"pool": 0.0}}, "optim.part_lr=.*must be positive"),
    ],
)
def test_parts_that_cannot_be_used_are_one_line(options, line):
    with pytest.raises(ConfigError, match=line):
        optim.make_optimizer(_config(**options)).init({"pool/p": jnp.ones(1)})


def test_the_exponential_schedule_falls_after_every_epoch():
    config = _config(schedule="exponential", gamma=0.5, decay_every=3)
    rate = optim.make_schedule(config, 9)
    np.testing.assert_allclose(
        [rate(jnp.int32(step)) for step in range(7)], 0.1 / 2.0 ** np.array([0, 0, 0, 1, 1, 1, 2])
    )
    with pytest.raises(ConfigError, match="decay_every=0"):
        optim.make_schedule(_config(schedule="exponential", gamma=0.5, decay_every=0), 9)
