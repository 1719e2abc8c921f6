"""The PyTorch peer computes what the semantic matcher computes: recorded activations, the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import goldens

torch = pytest.importorskip("torch")

from benchmarks import ssm_training, ssm_voting  # noqa: E402  need torch
from benchmarks import torch_ssm as peer  # noqa: E402
from sm_jax.systems.ssm import model, objective, postprocess  # noqa: E402
from tests.backbones.test_googlenet import tensors  # noqa: E402
from tests.systems.ssm import tiny  # noqa: E402

RECORDED = {"2_conv1_7x7_s2": "conv1_7x7_s2", "8_pool2_3x3_s2": "pool2"}


def tensor(array):
    array = np.asarray(array, np.float32)
    return torch.from_numpy(np.array(np.moveaxis(array, -1, 1) if array.ndim == 4 else array, order="C"))


def close(actual, expected, tolerance=1e-5):
    actual, expected = actual.detach().numpy(), np.asarray(expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def variables(**options):
    return tiny.variables(tiny.config(**options))


@pytest.mark.parametrize("fusion", ["product_aligned", "product_gap"])
def test_head(fusion):
    """With the head as it is trained, collapsed for few and for many requests."""
    config = tiny.config(fusion=fusion)
    made = variables(fusion=fusion)
    net = peer.load(made, gap=not config.aligned).eval()
    weight, bias = net.head.collapse()
    maps = tiny.features(1, 4, 6)
    for count in (2, 7):
        requests = tiny.features(*((count, 4, 6) if config.aligned else (count,)), seed=1)
        want = model.head(config, made, np.repeat(maps, count, 0), requests)
        images = tensor(maps)
        cached = tensor(requests) if config.aligned else tensor(requests)[..., None, None]
        outputs = [net.match(images, cached, chunk=3)]
        layout = {"memory_format": torch.channels_last}
        outputs.append(peer.match_collapsed(weight, bias, images.to(**layout), cached.to(**layout)))
        for out in outputs:
            close(out[:, 0], want["logits"])
            close(out[:, 1:], np.moveaxis(np.asarray(want["offsets"]), -1, 1))
            coverage, boxes = peer.decode(out)
            close(coverage, jax.nn.sigmoid(want["logits"]))
            close(boxes, postprocess.decode(np.asarray(want["offsets"])))
    assert np.asarray(want["logits"]).std() > 0.05


def test_loss_and_the_gradient_of_the_head():
    config, made, batch = tiny.config(), variables(), tiny.make_batch()
    batch["positive"] = np.array([True, False])
    net = peer.load(made)
    out = net.head(tensor(batch["image_trunk"]) * tensor(batch["request_trunk"]))
    where = batch["valid"] & batch["positive"][:, None]
    wanted = objective.make_targets(objective.ObjectiveConfig(), batch["boxes"], where, (4, 6))
    targets = {"coverage": wanted.coverage, "offsets": wanted.offsets, "norm": wanted.k_norm}
    found = peer.loss(out, {name: torch.from_numpy(np.array(value)) for name, value in targets.items()})
    found["loss"].backward()

    def total(head):
        params = {"params": {**made["params"], "head": head}}
        return objective.loss(config, objective.ObjectiveConfig(), params, batch, jax.random.key(0))

    (value, (metrics, _)), gradient = jax.value_and_grad(total, has_aux=True)(made["params"]["head"])
    ours = {"loss": value, "semantic": metrics["sem_loss"], "rectangle": metrics["rect_loss"]}
    for name, expected in ours.items():
        assert float(expected) > 0.1
        np.testing.assert_allclose(float(found[name].detach()), float(expected), rtol=1e-5, err_msg=name)
    for layer, name in (
        (net.head.hidden1, "conv1"),
        (net.head.coverage, "coverage"),
        (net.head.boxes, "boxes"),
    ):
        close(layer.bias.grad, gradient[name]["bias"], 1e-4)
        close(layer.weight.grad[..., 0, 0], np.asarray(gradient[name]["kernel"])[0, 0].T, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["product_aligned", "product_gap"])
def test_features_of_both_branches(fusion):
    config = model.ModelConfig(fusion=fusion, image_size=(64, 96), request_size=(16, 24), dropout=0.0)
    made = tiny.variables(config)
    net = peer.load(made, gap=not config.aligned).eval()
    rng = np.random.default_rng(0)
    inputs = {"image": rng.normal(0, 60, (1, 64, 96, 3)), "request": rng.normal(0, 60, (2, 16, 24, 3))}
    inputs = {name: value.astype(np.float32) for name, value in inputs.items()}
    maps = np.moveaxis(np.asarray(model.extract(config, made, inputs)), -1, 1)
    requests = np.asarray(model.encode(config, made, inputs)["request"])
    requests = np.moveaxis(requests, -1, 1) if config.aligned else requests[..., None, None]
    for form in (net, peer.tuned(net)):
        with torch.inference_mode():
            close(form.image(tensor(inputs["image"])), maps)
            close(form.encode(tensor(inputs["request"])), requests)


def test_tuned_is_the_same_network_with_the_same_gradient():
    torch.manual_seed(0)
    block = peer.Inception(16, 4, 4, 6, 3, 5, 4)
    merged, layout = peer.MergedInception(block), {"memory_format": torch.channels_last}
    x = torch.relu(torch.randn(2, 16, 6, 5))
    plain, banded = torch.nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0), peer.BandNorm(16)
    x = 50 * x  # so that the normalisation does something
    for one, other in ((block, merged), (plain, banded)):
        inputs = [x.clone().requires_grad_(), x.to(**layout).requires_grad_()]
        results = [one(inputs[0]), other(inputs[1])]
        close(results[1], results[0].detach())
        for result in results:
            result.square().sum().backward()
        close(inputs[1].grad, inputs[0].grad)
    assert float((plain(x) - x).abs().max()) > 1


@pytest.mark.parametrize("path", goldens.params(".", "googlenet_caffe*.npz"))
@pytest.mark.parametrize("fast", [False, True])
def test_golden_activations(path, fast):
    data, backbone = goldens.load(path), tensors("googlenet-bvlc-f32")["backbone"]
    made = variables()["params"] | {"image_branch": backbone, "request_branch": backbone}
    net = peer.load({"params": made}).eval()
    net = (peer.tuned(net) if fast else net).image
    net.pool4 = torch.nn.MaxPool2d(3, 2, ceil_mode=True)  # the recorded network has all poolings
    names = {key: RECORDED.get(key, key.partition("_")[2].removesuffix("_output")) for key in data}
    seen = {}
    for name, module in net.named_children():
        module.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out[0]))
    image = next(value for key, value in data.items() if key.endswith("_data"))
    with torch.inference_mode():
        net(torch.from_numpy(image)[None])
    checked = [key for key in data if names[key] in seen]
    assert len(checked) >= 4
    for key in checked:
        close(seen[names[key]], data[key], 2e-5)


def test_weights_that_do_not_fit_are_refused():
    made = variables()
    broken = {"params": {**made["params"], "head": {"conv1": made["params"]["head"]["conv1"]}}}
    with pytest.raises(ValueError, match="missing .*head/boxes"):
        peer.load(broken)


def test_voting_by_loops_is_ours():
    coverage, boxes = ssm_voting.make_maps(256)
    ours, loops = postprocess.vote(boxes, coverage), ssm_voting.vote_by_loops(boxes, coverage)
    np.testing.assert_allclose(loops[0], ours[0], atol=1e-9)
    np.testing.assert_allclose(loops[1], ours[1], atol=1e-9)
    assert len(ours[0]) > 50 and jnp.abs(ours[1]).max() > 0.5


def test_every_fourth_pair_is_a_negative_one():
    class Few:
        images = np.zeros((5, 64, 64, 3), np.float32)
        requests = np.zeros((5, 16, 16, 3), np.float32)

    batch = ssm_training.make_batch(Few)
    assert batch["positive"].tolist() == [True, True, True, False, True]
    assert (batch["boxes"][..., 2:] > batch["boxes"][..., :2]).all()
