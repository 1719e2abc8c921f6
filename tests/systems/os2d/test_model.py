"""OS2D's network: exact masking, batch statistics, gradients that are cut, precision, memory, options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st

from sm_jax.errors import ConfigError
from sm_jax.ops.resample import pooled_scores_reference
from sm_jax.systems.os2d import head as head_lib
from sm_jax.systems.os2d import model
from tests import weight_rule

DEPTH = 24  # feature channels in the tests of the head
V1 = model.ModelConfig()
V2 = model.ModelConfig(simplified=False, inverse=True, freeze_bn_transform=True)


@functools.cache
def transform(parameters):
    scale = 0.008 if parameters == 4 else 0.08
    return weight_rule.transform_variables(weight_rule.transform_arrays(parameters, 7, linear_scale=scale))


def inputs(seed=0, images=2, classes=3, size=(9, 11)):
    """Random features and templates that correlate like real ones (non-negative)."""
    rng = np.random.default_rng(seed)
    features = np.abs(rng.normal(size=(images, *size, DEPTH))).astype(np.float32)
    template = np.abs(rng.normal(size=(classes, 15, 15, DEPTH))).astype(np.float32)
    return jnp.asarray(features), jnp.asarray(template / np.linalg.norm(template, axis=-1, keepdims=True))


def variables_of(config):
    return transform(4 if config.simplified else 6)


run_head = jax.jit(model.head, static_argnums=0, static_argnames="train")


@pytest.mark.parametrize("config", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("train", [False, True])
def test_padded_equals_unpadded(config, train):
    features, template = inputs(images=2)
    sizes = [(9, 11), (6, 8)]
    padded = np.full((2, 14, 13, DEPTH), 7.0, np.float32)  # even if the padding is not zero
    for k, (h, w) in enumerate(sizes):
        padded[k, :h, :w] = features[k, :h, :w]
    run = functools.partial(run_head, config, train=train and config.freeze_bn_transform)
    variables = variables_of(config)
    together, _ = run(variables, padded, jnp.asarray(sizes), template)
    for k, (h, w) in enumerate(sizes):
        alone, _ = run(variables, features[k : k + 1, :h, :w], None, template)
        for name in model.HeadOutput._fields:
            got = getattr(together, name)[k, :, :h, :w]
            tolerance = 1e-3 if name in ("boxes", "corners") else 1e-5
            np.testing.assert_allclose(got, getattr(alone, name)[0], atol=tolerance, err_msg=name)
    assert not np.asarray(together.scores[1, :, 6:]).any()
    assert not np.asarray(together.scores_detached[1, :, :, 8:]).any()


@pytest.mark.slow
def test_whole_network_padded_equals_unpadded():
    config = model.ModelConfig(depth=50)
    variables = weight_rule.merge(weight_rule.backbone_variables(50, "frozen_bn", 5), transform(4))
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 70, 90, 3)).astype(np.float32)
    query = rng.normal(size=(1, 50, 67, 3)).astype(np.float32)

    @jax.jit
    def run(image, size, query, query_size):
        features, cells = model.extract(config, variables, image, size)
        template = model.encode(config, variables, {"image": query, "size": query_size})["template"]
        return model.head(config, variables, features, cells, template)[0]

    def pad(x, h, w):
        return np.pad(x, ((0, 0), (0, h - x.shape[1]), (0, w - x.shape[2]), (0, 0)))

    sizes = jnp.asarray([[70, 90]]), jnp.asarray([[50, 67]])
    plain = run(image, sizes[0], query, sizes[1])
    padded = run(pad(image, 96, 112), sizes[0], pad(query, 64, 80), sizes[1])
    h, w = plain.scores.shape[-2:]
    assert (h, w) == (5, 6)
    np.testing.assert_allclose(padded.scores[..., :h, :w], plain.scores, atol=2e-6)
    np.testing.assert_allclose(padded.boxes[..., :h, :w, :], plain.boxes, atol=1e-3)


def test_batch_statistics_ignore_padding_and_invalid_classes_and_images():
    features, template = inputs(images=2, classes=2)
    run = functools.partial(run_head, V1, train=True)
    variables = variables_of(V1)
    plain, want = run(variables, features, None, template)
    padded = jnp.pad(features, ((0, 1), (0, 3), (0, 2), (0, 0)), constant_values=3.0)
    classes = jnp.concatenate([template, template[::-1, ::-1]])
    size = jnp.asarray([[9, 11]] * 3)
    masked, got = run(
        variables,
        padded,
        size,
        classes,
        query_valid=jnp.asarray([True, True, False, False]),
        image_valid=jnp.asarray([True, True, False]),
    )
    np.testing.assert_allclose(masked.scores[:2, :2, :9, :11], plain.scores, atol=1e-5)
    flat = traverse_util.flatten_dict(got["batch_stats"]["transform"], sep="/")
    assert sorted(flat) == ["bn1/mean", "bn1/var", "bn2/mean", "bn2/var"]
    for name, value in traverse_util.flatten_dict(want["batch_stats"]["transform"], sep="/").items():
        np.testing.assert_allclose(flat[name], value, atol=1e-5, err_msg=name)
    all_valid = {"query_valid": jnp.ones(2, bool), "image_valid": jnp.ones(2, bool)}
    same, again = run(variables, features, size[:2], template, **all_valid)
    np.testing.assert_allclose(same.scores, plain.scores, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), again, want)
    # The masks matter: with everything counted the statistics differ.
    _, other = run(variables, padded, size, classes)
    assert not np.allclose(other["batch_stats"]["transform"]["bn1"]["mean"], flat["bn1/mean"], atol=1e-4)


def test_batch_statistics_and_running_update_equal_torch():
    torch = pytest.importorskip("torch")
    features, template = inputs()
    variables = variables_of(V1)
    output, updates = run_head(V1, variables, features, None, template, train=True)
    rows = head_lib.network_input(head_lib.correlation(features, template))
    arrays = weight_rule.transform_arrays(4, 7, linear_scale=0.008)
    layers = torch.nn.ModuleDict(
        {
            "0": torch.nn.Conv2d(225, 128, 7, padding=3),
            "1": torch.nn.BatchNorm2d(128),
            "3": torch.nn.Conv2d(128, 64, 5, padding=2),
            "4": torch.nn.BatchNorm2d(64),
            "linear": torch.nn.Conv2d(64, 4, 5, padding=2),
        }
    )
    state = {name.removeprefix("conv."): torch.tensor(value) for name, value in arrays.items()}
    layers.load_state_dict(state, strict=False)
    columns = np.asarray(rows).reshape(*rows.shape[:3], 15, 15).swapaxes(3, 4).reshape(rows.shape)
    with torch.no_grad():
        x = torch.tensor(columns.transpose(0, 3, 1, 2).copy())
        for conv, norm in ("01", "34"):
            x = torch.relu(layers[norm](layers[conv](x)))
        parameters = layers["linear"](x).numpy()
    got = np.asarray(output.transform)[..., [0, 0, 1, 1], [0, 2, 1, 2]].reshape(-1, 9, 11, 4)
    np.testing.assert_allclose(got, parameters.transpose(0, 2, 3, 1), atol=1e-5)
    for ours, norm in (("bn1", "1"), ("bn2", "4")):
        stats = updates["batch_stats"]["transform"][ours]
        np.testing.assert_allclose(stats["mean"], layers[norm].running_mean.numpy(), atol=1e-6)
        np.testing.assert_allclose(stats["var"], layers[norm].running_var.numpy(), atol=1e-6)


def test_head_equals_the_readable_score():
    features, template = inputs(images=1, classes=2)
    output, updates = run_head(V2, variables_of(V2), features, None, template, train=True)
    assert updates == {}
    corr = head_lib.correlation(features, template)[0]
    for k in range(2):
        one = jnp.moveaxis(corr[k].reshape(15, 15, *corr.shape[-2:]), (0, 1), (2, 3))
        want = jax.jit(pooled_scores_reference)(one, output.transform[0, k])
        np.testing.assert_allclose(output.scores[0, k], want, atol=1e-6)


def test_gradient_of_detached_scores_and_corners_stops_at_the_transformation():
    features, template = inputs(images=1, classes=2)
    params = variables_of(V2)["params"]

    def gradient(field):
        def loss(params, features):
            output, _ = model.head(V2, {**variables_of(V2), "params": params}, features, None, template)
            return jnp.sum(getattr(output, field))

        params_grad, features_grad = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, features)
        return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(params_grad)), float(
            jnp.abs(features_grad).max()
        )

    assert gradient("scores")[0] > 0
    through_params, through_features = gradient("scores_detached")
    assert through_params == 0 and through_features > 0
    assert gradient("corners") == (0, 0)


def test_one_class_or_many_gives_the_same():
    features, template = inputs(classes=3)
    all_classes, _ = run_head(V1, variables_of(V1), features, None, template)
    for k in range(3):
        one, _ = run_head(V1, variables_of(V1), features, None, template[k : k + 1])
        for name in model.HeadOutput._fields:
            np.testing.assert_allclose(
                getattr(one, name)[:, 0], getattr(all_classes, name)[:, k], atol=1e-3, err_msg=name
            )
        np.testing.assert_allclose(one.scores[:, 0], all_classes.scores[:, k], atol=1e-6)


def test_identity_at_the_start_gives_anchors_as_boxes():
    features, template = inputs(images=1, classes=1)
    for config in (V1, V2, model.ModelConfig(simplified=False)):
        variables = jax.jit(model.transform_net(config).init)(jax.random.key(1), jnp.zeros((1, 1, 1, 225)))
        variables = {kind: {"transform": tree} for kind, tree in variables.items()}
        output, _ = run_head(config, variables, features, None, template)
        np.testing.assert_allclose(output.offsets, np.zeros_like(output.offsets), atol=1e-5)
        np.testing.assert_allclose(output.boxes[0, 0, 0, 0], [-112, -112, 128, 128], atol=1e-4)


encode_features = jax.jit(model.encode_features, static_argnums=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_templates_are_corner_aligned_and_ignore_padding(h, w, seed):
    features = np.abs(np.random.default_rng(seed).normal(size=(h, w, 5))).astype(np.float32)
    canvas = np.zeros((1, 12, 12, 5), np.float32)
    canvas[0, :h, :w] = features
    got = encode_features(V1, jnp.asarray(canvas), jnp.asarray([[h, w]]))[0]

    def resize(x, n):  # rows of x to 15 samples at k * (n - 1) / 14
        at = np.arange(15) * (n - 1) / 14
        low = np.minimum(at.astype(int), max(n - 2, 0))
        high = np.minimum(low + 1, n - 1)
        part = (at - low).reshape(-1, 1, 1)
        return (1 - part) * x[low] + part * x[high]

    want = resize(resize(features, h).swapaxes(0, 1), w).swapaxes(0, 1)
    want = want / (np.linalg.norm(want, axis=-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize(("dtype", "score", "box"), [("float16", 1e-3, 0.3), ("bfloat16", 1e-2, 2.0)])
def test_half_precision_head_stays_close(dtype, score, box):
    features, template = inputs()
    exact, _ = run_head(V1, variables_of(V1), features, None, template)
    config = model.ModelConfig(head_dtype=dtype)
    low, _ = run_head(config, variables_of(V1), features, None, template)
    assert {x.dtype.name for x in low} == {"float32"}
    assert 0 < float(jnp.abs(low.scores - exact.scores).max()) < score
    assert float(jnp.abs(low.boxes - exact.boxes).max()) < box


@pytest.mark.parametrize("config", [V1, V2], ids=["v1", "v2"])
def test_memory_per_cell_and_class(config):
    classes, height, width = 4, 38, 50
    shapes = (
        jax.eval_shape(lambda: jax.tree.map(jnp.asarray, variables_of(config))),
        jax.ShapeDtypeStruct((1, height, width, model.FEATURES), jnp.float32),
        jax.ShapeDtypeStruct((1, 2), jnp.int32),
        jax.ShapeDtypeStruct((classes, 15, 15, model.FEATURES), jnp.float32),
    )
    compiled = jax.jit(functools.partial(model.head, config)).lower(*shapes).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes / (classes * height * width)
    assert temporary <= 6 * 1024, f"{temporary:.0f} B"


@pytest.mark.parametrize("norm", ["frozen_bn", "group_norm"])
@pytest.mark.parametrize("config", [V1, V2], ids=["v1", "v2"])
def test_init_has_the_published_tree(config, norm):
    config = model.ModelConfig(simplified=config.simplified, norm=norm)
    shapes = jax.eval_shape(functools.partial(model.init, config), jax.random.key(0))
    parameters = 4 if config.simplified else 6
    want = {}
    for part, names in (
        (weight_rule.backbone_path, weight_rule.backbone_shapes(50, norm)),
        (weight_rule.transform_path, weight_rule.transform_shapes(parameters)),
    ):
        for name, shape in names.items():
            want[part(name)] = tuple(shape[i] for i in (2, 3, 1, 0)) if len(shape) == 4 else shape
    got = traverse_util.flatten_dict(shapes)
    assert {path: leaf.shape for path, leaf in got.items()} == want
    assert {leaf.dtype.name for leaf in got.values()} == {"float32"}


def test_transform_net_starts_like_torch():
    params = jax.jit(model.transform_net(V1).init)(jax.random.key(0), jnp.zeros((1, 1, 1, 225)))["params"]
    for name, fan_in in (("conv1", 49 * 225), ("conv2", 25 * 128)):
        for leaf in params[name].values():
            assert float(jnp.abs(leaf).max()) <= 1.001 * fan_in**-0.5
            assert float(leaf.std()) == pytest.approx((3 * fan_in) ** -0.5, rel=0.2)
    assert not np.asarray(params["linear"]["kernel"]).any()
    np.testing.assert_array_equal(params["linear"]["bias"], [1, 0, 1, 0])


def test_trainable_follows_frozen_blocks():
    config = model.ModelConfig(frozen_blocks=2)
    frozen = ("backbone/conv1/kernel", "backbone/bn1/scale", "backbone/layer1_0/downsample_bn/bias")
    assert not any(model.trainable(config, path) for path in frozen)
    assert model.trainable(config, "backbone/layer1_1/conv1/kernel")
    assert model.trainable(config, "transform/linear/kernel")
    fixed = model.ModelConfig(train_features=False)
    assert not model.trainable(fixed, "backbone/layer3_5/conv3/kernel")
    assert model.trainable(fixed, "transform/bn1/scale")


def test_shapes_at_real_resolution():
    config = model.ModelConfig(depth=101, dtype="bfloat16", head_dtype="float16", remat=True)
    variables = jax.eval_shape(functools.partial(model.init, config), jax.random.key(0))

    def run(variables, image, size, query, query_size):
        features, cells = model.extract(config, variables, image, size)
        encoded = model.encode(config, variables, {"image": query, "size": query_size})
        return features, *model.head(config, variables, features, cells, encoded["template"], train=True)

    specs = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (
            ((4, 600, 600, 3), jnp.float32),
            ((4, 2), jnp.int32),
            ((15, 293, 293, 3), jnp.float32),
            ((15, 2), jnp.int32),
        )
    ]
    features, output, updates = jax.eval_shape(run, variables, *specs)
    assert (features.shape, features.dtype) == ((4, 38, 38, 1024), jnp.bfloat16)
    assert output.scores.shape == output.scores_detached.shape == (4, 15, 38, 38)
    assert output.transform.shape == (4, 15, 38, 38, 2, 3)
    assert output.boxes.shape == output.offsets.shape == (4, 15, 38, 38, 4)
    assert output.corners.shape == (4, 15, 38, 38, 4, 2)
    stats = jax.tree.map(lambda x: x.shape, updates["batch_stats"]["transform"])
    assert stats == jax.tree.map(lambda x: x.shape, variables["batch_stats"]["transform"])


def test_batch_norm_backbone_returns_updates():
    config = model.ModelConfig(norm="batch_norm")
    variables = jax.eval_shape(functools.partial(model.init, config), jax.random.key(0))
    image = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    out = jax.eval_shape(functools.partial(model.extract_train, config), variables, image)
    assert out[0].shape == (2, 4, 4, 1024)
    shapes = jax.tree.map(lambda x: x.shape, out[2]["batch_stats"]["backbone"])
    assert shapes == jax.tree.map(lambda x: x.shape, variables["batch_stats"]["backbone"])
    assert jax.eval_shape(functools.partial(model.extract_train, V1), variables, image)[2] == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 34}, "model.depth"),
        ({"norm": "layer_norm"}, "model.norm"),
        ({"head_dtype": "int8"}, "model.head_dtype"),
        ({"frozen_blocks": 15}, "0..14"),
        ({"query_size": 0}, "model.query_size"),
        ({"simplifed": True}, "did you mean 'simplified'"),
    ],
)
def test_wrong_options_are_one_clear_line(options, message):
    with pytest.raises(ConfigError, match=message):
        model.ModelConfig.create(options)
