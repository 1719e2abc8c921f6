"""The crossmodal config: the paper's constants, its schedule, arguments, and what follows from the data."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import crossmodal
from sm_jax import data, evaluators, systems
from sm_jax.errors import ConfigError, DataError
from sm_jax.systems.crossmodal.model import ModelConfig
from sm_jax.systems.crossmodal.objective import ObjectiveConfig
from sm_jax.training import optim


@pytest.mark.parametrize(
    "arg",
    [
        None, "runlocal", "full", "backbone=random", "full,backbone=random", "trainable=heads",
        "p_absent=0.1,p_union=0.1,long_forms", "holdout=blue_triangle", "epochs=3,batch=8", "data=shelves",
    ],
)  # fmt: skip
def test_every_argument_gives_a_system(arg):
    config = crossmodal.get_config(arg)
    assert systems.make(config).trainable("rpn/conv/kernel")
    assert json.loads(config.to_json_best_effort())["system"] == "crossmodal"


def test_the_papers_constants():
    config = crossmodal.get_config("full")
    words = config.model.vocabulary
    assert ModelConfig.create(config.model) == ModelConfig(vocabulary=words) and "circle" in words
    assert ObjectiveConfig.create(config.objective) == ObjectiveConfig()
    assert (config.steps, config.batch_size, config.eval_every) == (1250, 32, 125)
    assert config.objective.gt_mix_steps == 125
    shapes = config.data.shapes
    assert (shapes.num_train, shapes.num_val, shapes.num_test) == (4000, 500, 500)
    chosen = {key: config.optim[key] for key in ("name", "momentum", "weight_decay", "clip_norm")}
    assert chosen == {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-5, "clip_norm": 10.0}
    assert config.checkpoint.keep_best == 0 and not config.data.cache_trunk


@pytest.mark.parametrize("arg", [None, "full", "full,batch=16"])
def test_the_rate_of_each_epoch(arg):
    """Vector 8 of the specification: 0.01 * 0.9 ** floor(epoch / 3), at the first and last step of each."""
    config = crossmodal.get_config(arg)
    rate = optim.make_schedule(config.optim, config.steps)
    steps = 4000 // config.batch_size
    expected = [0.01] * 3 + [0.009] * 3 + [0.0081] * 3 + [0.00729]
    for offset in (0, steps - 1):
        rates = [float(rate(jnp.int32(epoch * steps + offset))) for epoch in range(10)]
        np.testing.assert_allclose(rates, expected, rtol=1e-6)
    assert config.steps == 10 * steps


def test_the_default_trains_the_last_units_on_stored_features():
    config = crossmodal.get_config()
    assert config.model.trainable.startswith("last") and config.data.cache_trunk
    assert config.init.backbone == "mobilenetv2-tv"


@pytest.mark.parametrize(
    ("arg", "trainable", "cached"),
    [
        ("trainable=all", "all", False),
        ("trainable=last1", "last1", True),
        ("backbone=random", "all", False),
        ("backbone=random,trainable=all", "all", False),
        ("full,trainable=last2", "last2", False),
    ],
)
def test_features_are_stored_only_where_they_stay_the_same(arg, trainable, cached):
    config = crossmodal.get_config(arg)
    assert (config.model.trainable, config.data.cache_trunk) == (trainable, cached)


def test_words_follow_the_grammar():
    assert "and" not in crossmodal.get_config().model.vocabulary
    assert {"and", "colored"} < set(crossmodal.get_config("p_union=0.2,long_forms").model.vocabulary)
    config = crossmodal.get_config("holdout=blue_triangle+red_square")
    assert config.data.shapes.holdout_pairs == ("blue triangle", "red square")


def test_steps_and_epochs():
    config = crossmodal.get_config("epochs=7")
    assert config.steps == 875 and config.optim.milestones == (375, 750)
    assert crossmodal.get_config("steps=5").steps == 5
    # 16 scenes in batches of 4: 2 epochs by themselves, and as many as are asked for.
    assert crossmodal.get_config("runlocal,batch=8").batch_size == 8
    assert crossmodal.get_config("runlocal,batch=8").steps == 2 * 2
    for arg, epochs in (("runlocal", 2), ("runlocal,epochs=10", 10), ("epochs=3,runlocal", 3)):
        assert crossmodal.get_config(arg).steps == 4 * epochs


def _own_data(folder, phrases, images=3):
    entries = []
    for i in range(images):
        Image.new("RGB", (40, 30)).save(folder / f"{i}.png")
        texts = [{"text": text, "ids": [0]} for text in phrases]
        entry = {"image": f"{i}.png", "boxes": [[1, 1, 20, 20]], "phrases": texts, "split": "train"}
        entries.append(entry)
    entries[-1] |= {"split": "val", "phrases": [{"text": "a zebra", "ids": []}]}
    (folder / "data.json").write_text(json.dumps({"images": entries}))
    return folder / "data.json"


def test_own_data_gives_the_vocabulary_and_the_epochs(tmp_path):
    path = _own_data(tmp_path, ["The ripe apple!", "pears"], images=8)
    config = crossmodal.get_config(f"data={path},batch=2,epochs=4")
    assert config.model.vocabulary == ("apple", "pears", "ripe", "the")  # of the training split alone
    assert (config.steps, config.eval_every, config.optim.milestones) == (16, 4, (12,))
    assert config.model.text_length == 16


def test_long_phrases_of_own_data_fit(tmp_path):
    path = _own_data(tmp_path, ["word " * 30])
    assert crossmodal.get_config(f"data={path}").model.text_length == 31


def test_crowded_pictures_of_own_data_keep_their_boxes(tmp_path):
    path = _own_data(tmp_path, ["an apple"])
    document = json.loads(path.read_text())
    document["images"][0]["boxes"] *= 33
    path.write_text(json.dumps(document))
    assert crossmodal.get_config(f"data={path}").data.max_boxes == 33


def test_words_that_the_vocabulary_lacks_are_told(caplog):
    config = crossmodal.get_config("runlocal")
    data.make_train_iterator(config)
    assert not caplog.records
    config.data.shapes.long_forms = True  # too late: the words were taken before
    data.make_train_iterator(config)
    assert "2 words that model.vocabulary lacks will be read as unknown (colored, that)" in caplog.text


@pytest.mark.parametrize(
    "arg",
    [
        "data=/nothing.json", "epochs=0", "batch=0", "steps=-3", "holdout=blue_cat",
        "p_absent=2", "p_absent=-0.5", "p_absent=nan", "p_absent=some",
        "backbone=random,trainable=last2", "backbone=,trainable=heads",
        "data=shelves,p_union=0.1", "data=shelves,long_forms",
        "data=x.json,p_union=0.1", "data=x.json,long_forms", "data=x.json,p_absent=0",
        "data=x.json,holdout=a_b",
    ],
)  # fmt: skip
def test_wrong_arguments_are_one_line(arg):
    with pytest.raises((ConfigError, DataError)) as error:
        crossmodal.get_config(arg)
    assert "\n" not in str(error.value)
    last = arg.split(",")[-1].partition("=")[0]
    assert last in str(error.value) or last == "data"


@pytest.mark.parametrize(
    ("backbone", "padding"),
    [
        ("mobilenetv2-tf", "tf_same"),
        ("weights/mobilenetv2-tf.safetensors", "tf_same"),
        ("mobilenetv2-tv", "torch"),
        ("mine.safetensors", "torch"),
    ],
)
def test_weights_of_tensorflow_get_its_padding(backbone, padding):
    assert crossmodal.get_config(f"backbone={backbone}").model.padding == padding


def test_the_longer_run_from_random_weights():
    config = crossmodal.get_config("full,backbone=random,epochs=30")
    config.optim.schedule = "cosine"
    rate = optim.make_schedule(config.optim, config.steps)
    assert config.steps == 3750 and float(rate(jnp.int32(0))) == pytest.approx(0.01)
    assert float(rate(jnp.int32(1875))) == pytest.approx(0.005) and float(rate(jnp.int32(3750))) < 1e-6


def test_names_of_results_are_known_before_the_first_evaluation():
    names = evaluators.metric_names(crossmodal.get_config())
    assert {"val/AP@0.50", "val/phrasing/align_accuracy", "val/absent/false_alarms"} < set(names)
