"""Training pairs and batches of SCNet on generated figures, with regions of a grid."""

import json
from dataclasses import replace

import numpy as np
import pytest
from ml_collections import ConfigDict

from sm_jax import boxes as box_lib
from sm_jax import data
from sm_jax.data import scnet
from sm_jax.data.scnet_pairs import SIDE
from sm_jax.data.sources.keypoint_pairs import open_pairs
from sm_jax.data.synthetic import figures
from sm_jax.errors import ConfigError, DataError
from sm_jax.ops import hough

N = 40


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return figures.make(str(tmp_path_factory.mktemp("figures")), num_train=4, num_val=1, num_test=1)


@pytest.fixture(scope="module")
def proposals(tmp_path_factory):
    return scnet.ProposalOptions(count=N, method="grid", cache_dir=str(tmp_path_factory.mktemp("regions")))


@pytest.fixture(scope="module")
def source(path, proposals):
    return scnet.TrainingPairs(open_pairs(path, split="train"), proposals, flips=True)


class Maps:
    """A feature map for every row, which says its number."""

    def __getitem__(self, row):
        return np.full((2, 2, 3), row, np.float16)


def builder(source, **options):
    return scnet.BatchBuilder(source, scnet.BatchOptions(proposals=N, **options), trunk=Maps(), seed=3)


def test_batches_are_padded_and_labelled(source):
    batch, skipped = builder(source).finish(builder(source)[0])
    assert not skipped
    shapes = {name: value.shape for name, value in batch.items()}
    assert shapes == {
        "source_features": (1, 2, 2, 3),
        "target_features": (1, 2, 2, 3),
        "source_boxes": (1, N, 4),
        "target_boxes": (1, N, 4),
        "source_valid": (1, N),
        "target_valid": (1, N),
        "bins": (1, N, N),
        "overlaps": (1, N, N),
        "active": (1, N),
    }
    assert batch["active"].any() and not (batch["active"] & ~batch["source_valid"]).any()
    assert not batch["overlaps"][~batch["active"]].any() and batch["overlaps"].max() > 0.3
    real = batch["source_valid"][0]
    assert box_lib.nonempty(batch["source_boxes"][0][real]).all()
    assert not batch["source_boxes"][0][~real].any()
    expected = hough.bins(batch["source_boxes"][0], batch["target_boxes"][0], (SIDE, SIDE), (SIDE, SIDE))
    np.testing.assert_array_equal(batch["bins"][0], expected)


def test_a_batch_is_a_function_of_its_number(source):
    again = scnet.TrainingPairs(
        open_pairs(source.pairs[0].source.parent / "pairs.json", split="train"),
        scnet.ProposalOptions(count=N, method="grid"),
        flips=True,
    )
    for k in (0, 5, 1):
        first, second = builder(source)[k], builder(again)[k]
        assert all(np.array_equal(first[name], second[name]) for name in first)
    with_two = builder(source, batch_size=2)[1]
    np.testing.assert_array_equal(with_two["overlaps"][1], builder(source)[3]["overlaps"][0])


def test_every_pair_and_its_mirror_image_come_once_an_epoch(source):
    assert len(source) == 8 and [source[i] for i in range(3)] == [(0, False), (0, True), (1, False)]
    numbers = sorted(float(builder(source)[k]["source_features"].flat[0]) for k in range(8))
    count = len(source.pictures)
    sources = {source.ends(number)[0] for number in range(4)}
    assert numbers == sorted([*sources, *(count + index for index in sources)])


def test_mirrored_pairs_keep_their_labels(source):
    plain, mirrored = (builder(source)._row(index) for index in (0, 1))
    np.testing.assert_array_equal(plain["overlaps"], mirrored["overlaps"])
    real = plain["source_valid"]
    np.testing.assert_allclose(mirrored["source_boxes"][real, 0], SIDE - plain["source_boxes"][real, 2])
    assert (mirrored["source_boxes"][real, 2] > mirrored["source_boxes"][real, 0]).all()
    pictures = source.pictures
    np.testing.assert_array_equal(
        scnet.network_input(pictures, len(pictures) + 1), scnet.network_input(pictures, 1)[:, ::-1]
    )


def test_pairs_that_teach_nothing_are_left_out_with_a_reason(path, proposals, caplog, monkeypatch):
    pairs = open_pairs(path, split="train")
    few = np.where(np.arange(len(pairs[0].keypoints_source))[:, None] < 2, pairs[0].keypoints_source, np.nan)
    line = np.linspace([20.0, 20], [60, 60], len(pairs[1].keypoints_source))
    corner = pairs[2].keypoints_source * 0.01 + 1  # an object of two pixels, which no region fits
    changed = [
        replace(pairs[0], keypoints_source=few),
        replace(pairs[1], keypoints_source=line),
        replace(pairs[2], keypoints_source=corner),
        pairs[3],
    ]
    found = scnet.TrainingPairs(replace(pairs, pairs=tuple(changed)), proposals)
    assert [pair.source for pair in found.pairs] == [pairs[3].source]
    text = "\n".join(found.notes)
    assert "1 of 4 pairs left out: 2 key-points are in both images" in text
    assert "one line" in text and "no region lies on the object" in text
    counted = {"batch_size": 1, "steps": 8, "eval_every": 4, "optim": {"alternate_every": 4}}
    note = found.epoch_note(ConfigDict(counted))
    assert note == (
        "an epoch has 1 step, not the 4 of all listed pairs, by which the config counts: steps=8 are 8 "
        "epochs; to end with it set eval_every=1 and optim.alternate_every=1"
    )
    monkeypatch.setattr(data, "make_training_pairs", lambda config: found)
    config = ConfigDict(counted | {"data": {"source": "mine", "proposals": N}})
    data._scnet_builder(config)
    data._scnet_builder(config, trunk=Maps())
    assert caplog.text.count(f"mine: {note}") == 1
    assert found.epoch_note(ConfigDict(counted | {"eval_every": 3, "optim": {}})).endswith("8 epochs")
    assert found.epoch_note(ConfigDict(counted | {"batch_size": 4})) == ""
    with pytest.raises(DataError, match="no pair to train on; 1 of 1 pairs left out"):
        scnet.TrainingPairs(replace(pairs, pairs=(changed[0],)), proposals)


def test_regions_from_files(path, tmp_path):
    pairs = open_pairs(path, split="val")
    ends = dict.fromkeys(end for pair in pairs for end in (pair.source, pair.target))
    for number, end in enumerate(ends):
        np.save(tmp_path / f"{end.stem}.npy", np.array([[10, 10, 50 + number, 60], [0, 0, 20, 20]]))
    settings = ConfigDict(
        {"proposals": 5, "proposal_method": "precomputed", "proposal_folder": str(tmp_path)}
    )
    pictures = scnet.Pictures(pairs, scnet.proposal_options(settings))
    assert [regions[:, 2].tolist() for regions in pictures.regions] == [[50, 20], [51, 20]]
    settings["proposal_folder"] = ""  # beside the pictures, where there are none
    with pytest.raises(DataError, match="it should hold the proposals of"):
        scnet.Pictures(pairs, scnet.proposal_options(settings))
    settings.update(proposal_method="grid", proposal_folder=str(tmp_path))
    with pytest.raises(ConfigError, match="has no option 'folder'"):
        scnet.Pictures(pairs, scnet.proposal_options(settings))


def test_damaged_pictures_are_named_and_few(path, proposals, tmp_path):
    pairs = open_pairs(path, split="train")
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no picture")
    one = replace(pairs, pairs=(replace(pairs[0], source=damaged), *pairs[1:]))
    found = scnet.TrainingPairs(one, proposals)
    assert any("damaged.png" in note for note in found.notes) and len(found.pairs) == 3
    assert any("1 of 4 pairs left out: a picture cannot be read" in note for note in found.notes)
    other = tmp_path / "other.png"
    other.write_bytes(b"no picture")
    two = replace(one, pairs=(one[0], replace(pairs[1], target=other), *pairs[2:]))
    with pytest.raises(DataError, match="2 of 8 pictures cannot be read"):
        scnet.TrainingPairs(two, proposals)


def test_options_that_cannot_be_used(source):
    with pytest.raises(ConfigError, match="proposals"):
        scnet.ProposalOptions(count=0)
    with pytest.raises(ConfigError, match="batch_size"):
        scnet.BatchOptions(batch_size=0)
    with pytest.raises(ConfigError, match="does not divide"):
        scnet.BatchBuilder(source, scnet.BatchOptions(), process_count=2)
    with pytest.raises(ConfigError, match="cache_trunk"):
        scnet.BatchBuilder(source, scnet.BatchOptions())[0]


def test_figures_are_drawn_once_and_inside(path, tmp_path):
    content = json.loads(path.read_text())["pairs"]
    assert [entry["class"] for entry in content[:4]] == list(figures.FIGURES)
    stamp = path.stat().st_mtime_ns
    root = str(path.parent.parent)
    assert figures.make(root, num_train=4, num_val=1, num_test=1) == path and path.stat().st_mtime_ns == stamp
    for name in figures.FIGURES:
        for seed in range(5):
            pixels, keypoints = figures.draw(name, np.random.default_rng(seed))
            assert (keypoints > 0).all() and (keypoints < pixels.shape[1::-1]).all()
    with pytest.raises(ConfigError, match="num_val"):
        figures.make(str(tmp_path), num_val=0)
