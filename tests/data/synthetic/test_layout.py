"""Boxes and visibility of layouts against rendered masks."""

import numpy as np
import pytest

from sm_jax.data.synthetic import ShelvesSource, geometry, layout, products

SIZE = (240, 320)


def _source(**options):
    options = {"num_scenes": 40, "num_classes": 60, "image_size": SIZE, "object_size": (40, 90)} | options
    return ShelvesSource("train", **options)


def _mask(source, placed):
    """Coverage of one object in the frame, from the same warp that paints it; bool (h, w)."""
    front = products.front(source.identity(placed.label))
    mask = np.zeros(SIZE, bool)
    warped = geometry.warp(front, placed.quad, SIZE, border=(products.BORDER, products.BORDER))
    if warped is not None:
        patch, (x, y) = warped
        alpha = np.asarray(patch.getchannel("A"))
        mask[y : y + alpha.shape[0], x : x + alpha.shape[1]] = alpha >= 128
    return mask


@pytest.mark.parametrize("rotation", [0.0, 180.0])
def test_boxes_are_the_bounds_of_the_rendered_outline(rotation):
    source = _source(rotation=rotation)
    compared = 0
    for index in range(10):
        plan = source._plan(index)
        for placed in plan.objects:
            identity = source.identity(placed.label)
            square = identity.kind == "photo" or (identity.kind == "pack" and identity.shape == "box")
            polygon = geometry.clip(placed.quad, SIZE)
            if not square or geometry.area(polygon) < 200:
                continue
            rows, columns = np.nonzero(_mask(source, placed))
            rendered = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(geometry.bounds(polygon), rendered, atol=2.0 if rotation else 1.1)
            compared += 1
    assert compared > 30


def test_annotated_boxes_are_those_of_visible_objects_inside_the_frame():
    source = _source(rotation=20)
    difficult = []
    for index in range(len(source)):
        note = source.annotation(index)
        boxes = note["boxes"]
        assert boxes.dtype == np.float32 and boxes.shape == (len(note["labels"]), 4)
        assert note["labels"].dtype == np.int32 and note["difficult"].dtype == bool
        assert note["size"] == SIZE
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= (SIZE[1], SIZE[0])).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        plan = source._plan(index)
        kept = layout.visibility(plan) >= layout.MIN_VISIBLE
        assert kept.sum() == len(boxes) > 0
        difficult.append(note["difficult"])
    share = np.concatenate(difficult).mean()
    assert 0.02 < share < 0.6


def test_visibility_agrees_with_painting_masks_in_order():
    """Objects hide earlier ones; checked with the painter's own alpha masks on scenes without covers."""
    source = _source()
    compared = 0
    for index in range(20):
        plan = source._plan(index)._replace(covers=[])
        stated = layout.visibility(plan)
        masks = [_mask(source, placed) for placed in plan.objects]
        above = np.zeros(SIZE, bool)
        for k in reversed(range(len(masks))):
            whole = geometry.area(plan.objects[k].quad)
            if whole > 400:
                assert stated[k] == pytest.approx((masks[k] & ~above).sum() / whole, abs=0.12)
                compared += 1
            above |= masks[k]
    assert compared > 100


def test_covers_hide():
    quad = geometry.rect(20, 20, 60, 60)
    half = layout.Cover("blob", geometry.rect(0, 0, 39, 100), after=1)
    plan = layout.Layout("free", (100, 100), [], [layout.Placed(0, quad)], [half])
    assert layout.visibility(plan)[0] == pytest.approx(0.5, abs=0.03)
    behind = plan._replace(covers=[half._replace(after=0)])
    assert layout.visibility(behind)[0] == pytest.approx(1.0, abs=0.03)
    hidden = plan._replace(covers=[layout.Cover("blob", geometry.rect(0, 0, 100, 100), after=1)])
    assert len(layout.annotate(hidden)["boxes"]) == 0
    mostly = plan._replace(covers=[layout.Cover("blob", geometry.rect(0, 0, 48, 100), after=1)])
    assert layout.annotate(mostly)["difficult"].tolist() == [True]


def test_options_act():
    def measure(**options):
        notes = [_source(**options).annotation(k) for k in range(40)]
        sides = np.concatenate([n["boxes"][:, 2:] - n["boxes"][:, :2] for n in notes])
        easy = ~np.concatenate([n["difficult"] for n in notes])
        classes = [len(set(n["labels"].tolist())) for n in notes]
        return np.median(np.sqrt(sides[easy].prod(axis=1))), max(classes)

    small, most = measure(object_size=(30, 40))
    large, few = measure(object_size=(80, 100), classes_per_scene=(1, 2))
    assert 28 < small < 45 and 70 < large < 110
    assert most > 3 and few <= 2
    assert all(_source(shelf_share=1.0)._plan(k).kind == "shelf" for k in range(5))
    assert all(_source(shelf_share=0.0)._plan(k).kind == "free" for k in range(5))


def test_rotation_turns_objects_within_its_range():
    def angles(**options):
        plans = [_source(shelf_share=0.0, perspective=0.0, **options)._plan(k) for k in range(20)]
        edges = np.array([p.quad[1] - p.quad[0] for plan in plans for p in plan.objects])
        return np.abs(np.rad2deg(np.arctan2(edges[:, 1], edges[:, 0])))

    assert angles().max() < 25
    assert angles(rotation=180).max() > 120


def test_scenes_take_turns_through_all_families():
    source = _source()
    shown = set()
    for index in range(len(source)):
        plan = source._plan(index)
        shown |= {tuple(source.family(placed.label)) for placed in plan.objects}
    assert len(shown) > 0.9 * len({tuple(source.family(c)) for c in range(source.num_classes)})
