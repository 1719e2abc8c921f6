"""`propose`: every method's boxes, determinism, the cache, odd pictures, and each refusal in one line."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sm_jax.errors import ConfigError, ImageError
from sm_jax.proposals import METHODS, border_filter, methods, propose, propose_many, run
from tests.proposals.pictures import blocks

try:
    import cv2

    HAS_CV2 = hasattr(cv2, "ximgproc")
except ImportError:
    HAS_CV2 = False
NEEDS_CV2 = ("selective_search", "edge_boxes")
COMPUTED = [
    pytest.param(name, marks=pytest.mark.skipif(name in NEEDS_CV2 and not HAS_CV2, reason="no OpenCV"))
    for name in METHODS
    if name != "precomputed"
]


def bare(image, n=40, **options):
    return propose(image, n, cache=False, **options)


@pytest.mark.parametrize("method", COMPUTED)
def test_boxes_are_whole_distinct_inside_and_deterministic(method):
    image = blocks(size=(120, 160))
    boxes, count = bare(image, method=method)
    assert boxes.shape == (40, 4) and boxes.dtype == np.float32
    assert 3 <= count <= 40 and not boxes[count:].any()
    valid = boxes[:count]
    assert (valid == np.rint(valid)).all() and len(np.unique(valid, axis=0)) == count
    assert (valid[:, :2] >= 0).all() and (valid[:, 2:] <= [160, 120]).all()
    assert (valid[:, 2:] > valid[:, :2]).all() and border_filter(valid, (120, 160)).all()
    np.random.seed(7)  # noqa: NPY002 - global state must not matter
    again = bare(image.copy(), method=method)
    np.testing.assert_array_equal(again.boxes, boxes)
    if method not in methods.RANKED:
        assert not np.array_equal(bare(image, method=method, seed=1).boxes, boxes)


@pytest.mark.parametrize("method", ["prim", "uniform", "gaussian", "grid"])
def test_as_many_as_asked_for_where_there_is_room(method):
    image = blocks(size=(120, 160))
    assert bare(image, 25, method=method).count == 25


def test_sliding_windows_have_one_size():
    boxes, count = bare(blocks(size=(120, 160)), method="sliding")
    assert count > 30 and (boxes[:count, 2:] - boxes[:count, :2] == 64).all()
    boxes, count = bare(blocks(size=(120, 160)), method="sliding", window=20)
    assert (boxes[:count, 2:] - boxes[:count, :2] == 20).all()


def test_the_grid_has_five_scales_and_three_aspects():
    boxes, count = bare(np.zeros((300, 300), np.uint8), 1000, method="grid")
    assert count == 1000
    sides = boxes[:, 2:] - boxes[:, :2]
    assert len(np.unique(sides, axis=0)) == 15
    assert np.log2(sides.prod(1).max() / sides.prod(1).min()) > 4


def test_other_pictures_get_other_draws():
    first, second = blocks(0), blocks(0)
    second[0, 0, 0] ^= 1
    assert not np.array_equal(bare(first, method="uniform").boxes, bare(second, method="uniform").boxes)


def test_a_large_picture_is_shrunk_and_its_boxes_cover_it():
    image = np.repeat(np.repeat(blocks(size=(60, 80)), 3, 0), 3, 1)
    boxes, count = bare(image, method="prim", side=80)
    assert count > 2 and boxes[:count].max() > 120
    assert (boxes[:count] % 3 == 0).all()  # pixels of the small picture


def test_border_filter_by_the_published_rule():
    boxes = np.array([[2, 3, 197, 296], [2, 3, 198, 296], [2, 2, 50, 50], [0, 0, 200, 300], [0, 3, 50, 300]])
    assert border_filter(boxes, (300, 200)).tolist() == [True, False, False, True, False]
    assert border_filter(np.array([[0, 0, 9, 9], [0, 0, 8, 8], [0, 0, 9, 8]]), (9, 9)).tolist() == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("method", COMPUTED)
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (2, 40), (200, 1)])
def test_tiny_pictures_have_at_least_one_box(method, size):
    image = np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)
    boxes, count = bare(image, method=method)
    assert count >= 1
    assert (boxes[:count, 2:] > boxes[:count, :2]).all()
    assert (boxes[:count, 2:] <= [size[1], size[0]]).all()
    if size == (1, 1):
        assert boxes[:count].tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_constant_picture_is_one_box_or_filled_from_the_grid(value):
    image = np.full((70, 90), value, np.uint8)
    boxes, count = bare(image)
    assert count == 1 and boxes[0].tolist() == [0, 0, 90, 70]
    boxes, count = bare(image, fill=True)
    assert count == 40 and boxes[0].tolist() == [0, 0, 90, 70]
    assert len(np.unique(boxes, axis=0)) == 40


def test_grey_pictures_work_as_coloured_ones():
    grey = blocks(size=(120, 160))[..., 0]
    assert bare(grey).count > 5
    np.testing.assert_array_equal(bare(grey).boxes, bare(np.repeat(grey[..., None], 3, -1)).boxes)


def test_cache_is_used_and_a_damaged_file_made_again(tmp_path, monkeypatch):
    image, calls = blocks(), []
    original = methods.compute

    def counted(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(methods, "compute", counted)
    first = propose(image, 20, cache_dir=tmp_path)
    again = propose(image, 20, cache_dir=tmp_path)
    assert len(calls) == 1 and again.count == first.count
    np.testing.assert_array_equal(again.boxes, first.boxes)
    (path,) = tmp_path.rglob("*.boxes")
    good = path.read_bytes()
    for bad in (b"", good[:50], good[:-20] + bytes([good[-20] ^ 1]) + good[-19:]):
        path.write_bytes(bad)
        calls.clear()
        np.testing.assert_array_equal(propose(image, 20, cache_dir=tmp_path).boxes, first.boxes)
        assert len(calls) == 1 and path.read_bytes() == good
    calls.clear()
    for change in ({"seed": 1}, {"fill": True}, {"draws": 20}, {"method": "uniform"}):
        propose(image, 20, cache_dir=tmp_path, **change)
    propose(image, 21, cache_dir=tmp_path)
    propose(blocks(1), 20, cache_dir=tmp_path)
    assert len(calls) == 6 and not list(tmp_path.rglob("*.tmp"))


def test_the_users_cache_folder_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setenv("SM_JAX_CACHE", str(tmp_path))
    propose(blocks(), 5, method="uniform")
    assert len(list((tmp_path / "proposals").rglob("uniform-*.boxes"))) == 1


def test_many_pictures_keep_their_order_and_report_progress():
    images, notes = [blocks(seed) for seed in range(3)], []
    boxes, counts = propose_many(
        images, 15, workers=2, cache=False, progress=lambda done, total: notes.append((done, total))
    )
    assert boxes.shape == (3, 15, 4) and notes == [(1, 3), (2, 3), (3, 3)]
    for index, image in enumerate(images):
        want = bare(image, 15)
        np.testing.assert_array_equal(boxes[index], want.boxes)
        assert counts[index] == want.count


def test_refusals_are_one_line(tmp_path):
    image = blocks()
    for options, words in (
        ({"method": "prims"}, "did you mean 'prim'"),
        ({"method": "uniform", "draws": 3}, "no option 'draws'; it has none"),
        ({"drawz": 3}, "did you mean 'draws'"),
        ({"draws": 0}, "draws=0"),
        ({"side": 1.5}, "side=1.5"),
        ({"method": "sliding", "window": 0}, "window=0"),
        ({"method": "edge_boxes", "min_score": "x"}, "min_score='x'"),
        ({"method": "selective_search", "mode": "slow"}, "quality, fast"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": True}, "seed=True"),
    ):
        with pytest.raises(ConfigError) as caught:
            bare(image, **options)
        assert words in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="n=0"):
        bare(image, 0)
    with pytest.raises(ConfigError, match="workers=0"):
        propose_many([image], 5, workers=0)
    with pytest.raises(ImageError, match="nowhere.png: no such"):
        propose_many([image, tmp_path / "nowhere.png"], 5, cache=False)


def test_a_path_and_its_pixels_give_the_same(tmp_path):
    Image.fromarray(blocks()).save(tmp_path / "a.png")
    np.testing.assert_array_equal(bare(tmp_path / "a.png").boxes, bare(blocks()).boxes)


@pytest.mark.parametrize("method", NEEDS_CV2)
def test_without_opencv_one_line_says_what_to_install(method, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match=r"needs OpenCV; pip install 'sm_jax\[proposals\]'"):
        bare(blocks(), method=method)


@pytest.mark.skipif(not HAS_CV2, reason="no OpenCV")
def test_quality_finds_more_than_fast_and_edges_are_thin():
    from sm_jax.proposals import opencv

    image = blocks(size=(120, 160))
    assert len(opencv.selective_search(image)) > len(opencv.selective_search(image, mode="fast")) > 0
    sides = opencv.selective_search(image)[:, 2:] - opencv.selective_search(image)[:, :2]
    assert sides.min() >= 20


def test_edges_of_a_step_are_one_or_two_pixels_wide():
    from sm_jax.proposals import opencv

    image = np.zeros((20, 30, 3), np.uint8)
    image[:, 15:] = 255
    edges, direction = opencv.edge_map(image)
    inner = edges[3:-3] > 0.5
    assert inner.any(0).nonzero()[0].tolist() == [14, 15]
    np.testing.assert_allclose(direction[3:-3, 14:16], 0, atol=1e-6)


def test_importing_proposals_leaves_jax_alone():
    code = "import sys, sm_jax.proposals; sys.exit('jax' in sys.modules or 'cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version_is_part_of_the_cache_key(tmp_path, monkeypatch):
    propose(blocks(), 5, method="uniform", cache_dir=tmp_path)
    monkeypatch.setattr(run, "VERSION", run.VERSION + 1)
    propose(blocks(), 5, method="uniform", cache_dir=tmp_path)
    assert len(list(tmp_path.rglob("*.boxes"))) == 2
