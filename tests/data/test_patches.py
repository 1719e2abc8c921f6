"""The memory of hard patches: options, choice by role, JSON."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from sm_jax.data import patches
from sm_jax.data.patches import HardPatches
from sm_jax.errors import ConfigError, DataError


def memory(step=7):
    """Image 0 has two negatives and one of each positive role, image 1 a negative, image 2 nothing."""
    found = HardPatches.empty(3, 2, step=step)
    for place, label in (((0, 0, 0), 4), ((0, 0, 1), 1), ((0, 1, 0), 2), ((0, 2, 0), 3), ((1, 0, 0), 0)):
        found.labels[place] = label
        found.crops[place] = [label, 0, label + 20, 30]
        found.losses[place] = label / 10
    return found


def test_patches_of_an_image():
    of_first = memory().of(0)
    assert [(patch.role, patch.label) for patch in of_first] == [
        ("neg", 4),
        ("neg", 1),
        ("pos", 2),
        ("pos_loc", 3),
    ]
    assert of_first[2].crop.tolist() == [2, 0, 22, 30] and of_first[2].loss == pytest.approx(0.2)
    assert memory().of(2) == [] and memory().counts() == {"neg": 3, "pos": 1, "pos_loc": 1}


def test_choice_by_role_with_what_replaces_it():
    rng, found = np.random.default_rng(0), memory()
    assert {found.choose(rng, 0, positive=False).label for _ in range(40)} == {4, 1}
    assert {found.choose(rng, 0, positive=True).label for _ in range(40)} == {2, 3}
    assert {found.choose(rng, 1, positive=True).label for _ in range(5)} == {0}
    assert found.choose(rng, 2, positive=True) is None


def test_json_brings_back_every_bit():
    found = memory()
    again = HardPatches.from_json(found.json)
    assert again.step == 7
    for name in ("labels", "crops", "losses"):
        one, other = getattr(found, name), getattr(again, name)
        assert one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    for change in ({"labels": "@"}, {"shape": [3]}, {"losses": found.json["losses"][:20]}, {"step": None}):
        with pytest.raises(DataError, match="hard patches"):
            HardPatches.from_json(found.json | change)


def test_options():
    assert patches.options({}) == patches.MiningOptions() and not patches.MiningOptions().enabled
    section = ConfigDict({"mining": {"enabled": True, "every": 3}})
    assert patches.options(section) == patches.MiningOptions(enabled=True, every=3)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (True, "data.mining=True: is a section now; write data.mining.enabled=True"),
        (False, "data.mining=False: is a section now; write data.mining.enabled=False"),
        ({"evry": 3}, "data.mining.evry: unknown key; did you mean 'every'"),
        ({"every": 0}, "data.mining.every"),
        ({"patches": 0}, "data.mining.patches"),
        ({"scales": 0}, "data.mining.scales"),
        ({"random_classes": -1}, "data.mining.random_classes"),
        ({"nms_iou": float("nan")}, "data.mining.nms_iou"),
    ],
)
def test_bad_options_are_one_line(value, words):
    with pytest.raises(ConfigError, match=words) as error:
        patches.options(ConfigDict({"mining": value}))
    assert "\n" not in str(error.value)
