"""The objective's parts against the numbers recorded from the published code (its CUDA meaning)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm_jax.systems.os2d import objective
from tests import goldens

TOLERANCE = 2e-6  # golden/os2d/README.md, case 3
MARGINS = {"rll": ("RLL", 0.6), "cl": ("contrastive", 1.0)}


def cases(ending):
    """Parameters (path, case name) for every recorded case that has the key `<case>.<ending>`."""
    found = [
        pytest.param(path, key.split(".")[0], id=f"{path.stem}-{key.split('.')[0]}")
        for path in goldens.files("os2d", "losses*.npz")
        for key in sorted(goldens.load(path))
        if key.count(".") == 1 and key.endswith(f".{ending}")
    ]
    reason = "no golden file os2d/losses*.npz"
    return found or [pytest.param(None, None, id="absent", marks=pytest.mark.skip(reason=reason))]


def setting(data, case):
    """The recorded inputs of a case, in our layout: codes "b c n 4"."""
    name, margin = MARGINS[case.split("_")[0]]
    plain = case in MARGINS  # original targets drive recognition as well
    remapped = data.get(f"{case}.cls_targets_remapped", data["cls_targets_remapped"])
    return (
        objective.ObjectiveConfig(class_objective=name, positive_margin=margin),
        {
            "scores": data["cls_preds"],
            "scores_detached": None if "single_score" in case else data["cls_preds_for_neg"],
            "codes": np.moveaxis(data["loc_preds"], 2, 3),
        },
        {
            "labels": data["cls_targets"],
            "target_codes": np.moveaxis(data["loc_targets"], 2, 3),
            "labels_remapped": None if plain else remapped,
            "mining": case.endswith("mining"),
        },
    )


def close(actual, expected, name):
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize(("path", "case"), cases("loss"))
def test_golden_loss_values(path, case):
    data = goldens.load(path)
    config, inputs, options = setting(data, case)
    terms = objective.criterion(config, **inputs, **options)
    recorded = {key[len(case) + 1 :]: data[key] for key in data if key.startswith(f"{case}.")}
    for name, value in {
        "loss": terms.loss,
        "cls_loss": terms.cls_pos + config.class_neg_weight * terms.cls_neg,
        "cls_loss_pos": terms.cls_pos,
        "cls_loss_neg": terms.cls_neg,
        "loc_loss": terms.loc,
        "cls_loss_per_element": terms.cls_elements,
        "per_anchor_cls_loss": terms.cls_elements,
        "per_anchor_loc_loss": terms.loc_elements,
    }.items():
        if name in recorded:
            close(value, recorded[name], name)
    for name, value in {
        "num_pos": terms.num_positive,
        "num_pos_for_regression": terms.num_loc_positive,
        "neg_mask_used": terms.negatives_used,
        "per_anchor_pos_mask": terms.positive,
        "per_anchor_neg_mask": terms.negative,
        "per_anchor_pos_for_regression": terms.loc_positive,
    }.items():
        if name in recorded:
            np.testing.assert_array_equal(value, recorded[name], err_msg=name)
    if "rll_temperature" in recorded and terms.ranking is not None:
        close(terms.ranking.hardest, recorded["rll_max_neg_loss_per_label"].reshape(-1), "hardest")
        np.testing.assert_allclose(
            terms.ranking.temperature,
            recorded["rll_temperature"].reshape(-1),
            rtol=1e-5,
            err_msg="temperature",
        )
        close(terms.ranking.weights, recorded["rll_weights_negs_times_numpos"], "weights")
        assert terms.ranking.num_active_positive == recorded["rll_num_active_positives"]


@pytest.mark.parametrize(("path", "case"), cases("grad_cls_preds"))
def test_golden_loss_gradients(path, case):
    data = goldens.load(path)
    config, inputs, options = setting(data, case)

    @jax.jit
    def gradient(inputs):
        return jax.grad(lambda i: objective.criterion(config, **i, **options).loss)(inputs)

    grads = gradient({name: value if value is None else jnp.asarray(value) for name, value in inputs.items()})
    close(grads["scores"], data[f"{case}.grad_cls_preds"], "scores")
    if grads["scores_detached"] is not None:
        close(grads["scores_detached"], data[f"{case}.grad_cls_preds_for_neg"], "scores_detached")
    close(np.moveaxis(grads["codes"], 3, 2), data[f"{case}.grad_loc_preds"], "codes")
