"""The rule against the check values in the golden files, and its layout conversions."""

import numpy as np
import pytest

from tests import goldens, weight_rule


@pytest.mark.parametrize("path", goldens.params("os2d", "backbone_*.npz"))
def test_golden_check_values(path):
    data = goldens.load(path)
    depth = int("".join(c for c in path.stem if c.isdigit()))
    shapes = weight_rule.backbone_shapes(depth)
    names = [key.split(":", 1)[1] for key in data if key.startswith("first8:")]
    assert names
    for name in names:
        array = weight_rule.value(name, shapes[name], int(data["seed"]))
        np.testing.assert_array_equal(array.ravel()[:8], data[f"first8:{name}"])
        if f"sum64:{name}" in data:
            total = array.astype(np.float64).sum()
            np.testing.assert_allclose(total, data[f"sum64:{name}"], rtol=1e-6, atol=1e-6)


def test_layouts_round_trip_and_permute_only_the_first_transform_layer():
    array = np.arange(2 * 225 * 3 * 3, dtype=np.float32).reshape(2, 225, 3, 3)
    ours = weight_rule.to_ours("conv.0.weight", array)
    assert ours[1, 2, 3 * 15 + 7, 1] == array[1, 7 * 15 + 3, 1, 2]
    np.testing.assert_array_equal(weight_rule.to_torch("conv.0.weight", ours), array)
    np.testing.assert_array_equal(weight_rule.to_ours("conv.3.weight", array), array.transpose(2, 3, 1, 0))


def test_number_of_parameters():
    for depth, parameters, total in ((50, 4, 10_166_276), (50, 6, 10_169_478), (101, 4, 29_158_404)):
        shapes = {**weight_rule.backbone_shapes(depth), **weight_rule.transform_shapes(parameters)}
        trained = [shape for name, shape in shapes.items() if ".running" not in name]
        assert sum(int(np.prod(shape)) for shape in trained) == total
