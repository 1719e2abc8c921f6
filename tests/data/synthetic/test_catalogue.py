"""Classes: disjoint splits, reproducible identities, families of different but similar fronts."""

import importlib.metadata

import numpy as np
import pytest

from sm_jax.data.synthetic import artwork, catalogue, products
from sm_jax.errors import DataError


def test_marks_and_photographs_of_the_splits_are_disjoint():
    slugs = [{mark.slug for mark in artwork.marks(split)} for split in artwork.SPLITS]
    pictures = [set(artwork.photos(split)) for split in artwork.SPLITS]
    for group in (slugs, pictures):
        assert all(group)
        assert sum(map(len, group)) == len(set.union(*group))
    assert sum(map(len, slugs)) > 2000


def test_thousands_of_classes_use_only_their_splits_artwork():
    for split in artwork.SPLITS:
        identities, families = catalogue.catalogue(split, seed=3, num_classes=3000)
        assert len(set(identities)) == 3000
        assert {i.mark for i in identities} <= {mark.slug for mark in artwork.marks(split)}
        assert {i.picture for i in identities} <= set(artwork.photos(split))
        assert all(0.49 < i.aspect < 2.01 for i in identities)
        assert [c for family in families for c in family] == list(range(3000))
        assert max(map(len, families)) > 1
        names = [catalogue.class_name(identity, k) for k, identity in enumerate(identities)]
        assert len(set(names)) == 3000


def test_a_longer_catalogue_begins_with_the_shorter_one():
    short, _ = catalogue.catalogue("val", seed=0, num_classes=37)
    long, _ = catalogue.catalogue("val", seed=0, num_classes=90)
    assert long[:37] == short
    assert catalogue.catalogue("val", seed=1, num_classes=37)[0] != short


def test_fronts_have_the_products_shape_and_neighbours_differ():
    identities, families = catalogue.catalogue("train", seed=0, num_classes=120)
    border = products.BORDER
    for family in families:
        drawn = [np.asarray(products.front(identities[c]).convert("RGB"), np.int32) for c in family]
        height, width = drawn[0].shape[0] - 2 * border, drawn[0].shape[1] - 2 * border
        assert height / width == pytest.approx(identities[family[0]].aspect, rel=0.02)
        assert (height * width) ** 0.5 == pytest.approx(products.SIDE, rel=0.01)
        for k, one in enumerate(drawn):
            for other in drawn[:k]:
                assert np.abs(one - other).mean() > 2.0, identities[family[k]]


def test_fronts_are_never_blank():
    identities, _ = catalogue.catalogue("test", seed=0, num_classes=120)
    for identity in identities:
        grey = np.asarray(products.front(identity).convert("L"), np.float32)
        assert grey.std() > 6, identity


def test_every_photograph_and_font_is_in_the_wheels():
    for split in artwork.SPLITS:
        for name in artwork.photos(split):
            assert min(artwork.photo(name).size) > 100
    for face in artwork.FONTS:
        assert artwork.font(face, 20).getbbox("Äx")[2] > 0


def test_a_missing_package_is_one_clear_line(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(DataError, match="pip install") as caught:
        artwork.versions()
    assert "\n" not in str(caught.value)
