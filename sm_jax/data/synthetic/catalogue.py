"""Which classes exist: families of near-identical products, each an `Identity` of a few plain values.

A family is one brand and one layout; its members differ in flavour (colour, word, weight) only. An identity
is enough to draw the product (`products.front`), and is the same in every process.
"""

from typing import NamedTuple

import numpy as np

from sm_jax.data.synthetic import artwork

FLAVOURS = (
    ("Original", (205, 30, 45)),
    ("Lemon", (247, 210, 38)),
    ("Mint", (40, 176, 140)),
    ("Ocean", (22, 104, 190)),
    ("Orange", (243, 128, 24)),
    ("Lavender", (150, 112, 200)),
    ("Cocoa", (104, 62, 38)),
    ("Rose", (235, 120, 160)),
    ("Lime", (140, 196, 48)),
    ("Charcoal", (52, 54, 60)),
    ("Vanilla", (240, 222, 170)),
    ("Berry", (120, 24, 90)),
)
GOODS = tuple(
    "Crackers,Green Tea,Hand Soap,Shampoo,Muesli,Pasta,Biscuits,Juice,Yoghurt,Coffee,Chocolate,Chips,Rice,"
    "Honey,Detergent,Tissues,Batteries,Candles,Noodles,Olive Oil,Tomato Soup,Oat Drink,Peanuts,Sparkling,"
    "Toothpaste,Sea Salt,Wafers,Granola,Jam,Spice".split(",")
)
WEIGHTS = tuple("75 g,100 g,125 g,200 g,250 g,330 ml,400 g,500 ml,750 g,1 kg,1 L,12 pcs".split(","))
LAYOUTS = ("band", "split", "badge", "photo", "pattern", "diagonal", "label", "tower")
SHAPES = ("box", "pouch", "can")

_KINDS = ("pack", "plate", "photo")
_KIND_SHARE = {"train": (0.68, 0.22, 0.10), "val": (0.70, 0.22, 0.08), "test": (0.70, 0.22, 0.08)}
_CATALOGUE_STREAM = 1


class Identity(NamedTuple):
    """Everything that decides how a class looks; hashable, and cheap to send to a worker."""

    kind: str  # "pack" (product front), "plate" (logo plate) or "photo" (crop of a photograph)
    mark: str  # slug
    title: str
    color: tuple[int, int, int]  # the mark's own colour
    picture: str  # photograph of the same split
    layout: str
    shape: str
    goods: str
    aspect: float  # height / width
    seed: int  # of the family: same seed, same design
    flavour: int  # index into FLAVOURS, or into the palettes and crops of plates and photographs
    weight: str


def _family(index: int, split: str, order: np.ndarray, rng: np.random.Generator) -> list[Identity]:
    marks = artwork.marks(split)
    mark = marks[order[index % len(order)]]
    pictures = artwork.photos(split)
    kind = str(rng.choice(_KINDS, p=_KIND_SHARE[split]))
    members = int(rng.choice([1, 2, 3, 4, 5], p=[0.3, 0.25, 0.2, 0.15, 0.1]))
    shape = str(rng.choice(SHAPES, p=[0.5, 0.25, 0.25]))
    low, high = {"pack": (0.75, 2.0), "plate": (0.5, 1.3), "photo": (0.6, 1.6)}[kind]
    aspect = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    if kind == "pack" and shape == "can":
        aspect = max(aspect, 1.1)
    common = {
        "kind": kind,
        "mark": mark.slug,
        "title": mark.title,
        "color": mark.color,
        "picture": pictures[int(rng.integers(len(pictures)))],
        "layout": LAYOUTS[int(rng.integers(len(LAYOUTS)))],
        "shape": shape,
        "goods": GOODS[int(rng.integers(len(GOODS)))],
        "aspect": aspect,
        "seed": int(rng.integers(2**31)),
    }
    flavours = rng.permutation(len(FLAVOURS))[:members]
    weights = rng.integers(len(WEIGHTS), size=members)
    return [
        Identity(**common, flavour=int(f), weight=WEIGHTS[w]) for f, w in zip(flavours, weights, strict=True)
    ]


def catalogue(split: str, *, seed: int, num_classes: int) -> tuple[list[Identity], list[list[int]]]:
    """The classes of `split`: identities in class order, and the class indices of each family."""
    split_id = artwork.SPLITS.index(split)
    order_rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_CATALOGUE_STREAM, split_id)))
    order = order_rng.permutation(len(artwork.marks(split)))
    identities: list[Identity] = []
    families: list[list[int]] = []
    while len(identities) < num_classes:
        key = (_CATALOGUE_STREAM, split_id, len(families))
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
        members = _family(len(families), split, order, rng)[: num_classes - len(identities)]
        families.append(list(range(len(identities), len(identities) + len(members))))
        identities.extend(members)
    return identities, families


def class_name(identity: Identity, index: int) -> str:
    """A readable, unique name: brand, goods and flavour, with the class index."""
    flavour = FLAVOURS[identity.flavour][0]
    what = {"pack": f"{identity.goods} {flavour}", "plate": f"plate {flavour}", "photo": f"picture {flavour}"}
    return f"{index:05d} {identity.title} {what[identity.kind]}"
