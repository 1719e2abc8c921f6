"""The packaged ResNet-50 in the model: exact tree, and features that mean something."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax import weights
from sm_jax.systems.os2d import model
from sm_jax.weights import io, structure

NAME = "resnet50-caffe-c4"


@pytest.mark.parametrize(("depth", "norm"), [(50, "frozen_bn"), (101, "frozen_bn"), (50, "group_norm")])
@pytest.mark.parametrize("simplified", [True, False])
def test_names_and_shapes_are_those_of_the_model(depth, norm, simplified):
    config = model.ModelConfig(depth=depth, norm=norm, simplified=simplified)
    variables = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))
    shapes = {name: tuple(leaf.shape) for name, leaf in io.flatten(variables).items()}
    kind = "group_norm" if norm == "group_norm" else "batch_norm"
    architecture = structure.Architecture(depth, kind, 4 if simplified else 6)
    assert shapes == architecture.shapes()
    assert structure.recognise(shapes) == architecture


@pytest.fixture(scope="module")
def variables():
    config = model.ModelConfig()
    start = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))
    loaded, _ = weights.initialize(start, {"backbone": NAME})
    return {kind: {"backbone": tree["backbone"]} for kind, tree in loaded.items()}


def _picture(kind: str, size: int = 96) -> np.ndarray:
    """A picture with structure (stripes or blobs), normalised as the net expects."""
    y, x = np.mgrid[:size, :size] / size
    pattern = np.sin(40 * x) if kind == "stripes" else np.cos(9 * x) * np.cos(9 * y)
    image = np.stack([pattern, pattern**2, -pattern], -1) * 0.5 + 0.5
    return ((image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).astype(np.float32)


def test_packaged_features_are_finite_and_tell_pictures_apart(variables):
    images = jnp.asarray(np.stack([_picture("stripes"), _picture("stripes"), _picture("blobs")]))
    images = images.at[1].add(0.05)  # the first picture under slightly more light
    features, _ = jax.jit(lambda image: model.extract(model.ModelConfig(), variables, image))(images)
    features = np.asarray(features)
    assert features.shape == (3, 6, 6, 1024)
    assert np.isfinite(features).all() and (features >= 0).all()
    assert 0.1 < features.mean() < 10 and 0.05 < (features > 0).mean() < 0.95
    flat = features.reshape(3, -1)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    alike, different = flat[0] @ flat[1], flat[0] @ flat[2]
    assert alike > 0.9 and different < alike - 0.2
    assert features.reshape(3, 36, 1024).std(1).mean() > 0.01  # not the same vector everywhere


def test_packaged_features_equal_those_of_an_independent_network(variables):
    """Same picture, same file, through torch functions written from the specification."""
    torch = pytest.importorskip("torch")
    torch_os2d = pytest.importorskip("benchmarks.torch_os2d")
    tensors = io.read_tensors(weights.resolve(NAME))[0]
    image = _picture("blobs", 64)
    expected = torch_os2d.features(
        torch_os2d.as_tensors(tensors), torch.from_numpy(image.transpose(2, 0, 1)[None].copy())
    )
    features, _ = model.extract(model.ModelConfig(), variables, jnp.asarray(image[None]))
    expected = expected.detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(np.asarray(features), expected, atol=2e-4 * expected.max())
