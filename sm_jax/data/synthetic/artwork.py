"""Real marks, photographs and type for the generated scenes, all of it from files that pip installs.

Nothing here touches the network: marks come from `simpleicons`, photographs from the wheels of scikit-image
and scikit-learn (only files that lie inside the wheel), type from the pimoroni `font-*` wheels. Only artwork
whose licence is stated and permissive is used; `docs/shelves.md` lists every source.

Marks and photographs belong to exactly one split, by name and independent of any seed, so that a model can
never be scored on a mark that it met in training.
"""

import hashlib
import importlib.metadata
import importlib.util
import io
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFont

from sm_jax.errors import DataError

SPLITS = ("train", "val", "test")

# Distribution names: their versions are part of the cache key, because new artwork means new pixels.
DISTRIBUTIONS = (
    "simpleicons",
    "resvg_py",
    "scikit-image",
    "scikit-learn",
    "font-source-sans-pro",
    "font-source-serif-pro",
    "font-fredoka-one",
    "font-amatic-sc",
    "font-caladea",
    "font-manrope",
)

# split -> (package, path inside it). Files without a stated licence (moon, page, motorcycle) stay out.
PHOTOS = {
    "train": (
        ("skimage", "data/astronaut.png"),
        ("skimage", "data/coffee.png"),
        ("skimage", "data/hubble_deep_field.jpg"),
        ("skimage", "data/retina.jpg"),
        ("skimage", "data/ihc.png"),
        ("skimage", "data/brick.png"),
        ("skimage", "data/coins.png"),
        ("sklearn", "datasets/images/china.jpg"),
    ),
    "val": (
        ("skimage", "data/chelsea.png"),
        ("skimage", "data/gravel.png"),
        ("skimage", "data/camera.png"),
    ),
    "test": (
        ("skimage", "data/rocket.jpg"),
        ("skimage", "data/grass.png"),
        ("sklearn", "datasets/images/flower.jpg"),
    ),
}

# Photographs without landmarks: two crops of one are told apart only by what is printed around them.
TEXTURES = frozenset(f"skimage/data/{name}" for name in ("brick.png", "gravel.png", "grass.png", "ihc.png"))

FONTS = {
    "sans": ("font_source_sans_pro", "files/SourceSansPro-Bold.ttf"),
    "sans-black": ("font_source_sans_pro", "files/SourceSansPro-Black.ttf"),
    "serif": ("font_source_serif_pro", "files/SourceSerifPro-Semibold.ttf"),
    "serif-black": ("font_source_serif_pro", "files/SourceSerifPro-Black.ttf"),
    "round": ("font_fredoka_one", "files/FredokaOne-Regular.ttf"),
    "hand": ("font_amatic_sc", "files/AmaticSC-Bold.ttf"),
    "book-italic": ("font_caladea", "files/Caladea-BoldItalic.ttf"),
    "wide": ("font_manrope", "files/Manrope-ExtraBold.ttf"),
}

_FREE_LICENSES = {"CC0-1.0", "MIT", "Apache-2.0"}
_MIN_CONTRAST = 22.0  # standard deviation of a crop's grey values
_PHOTO_SIDE = 640  # longest side kept; larger originals are only slower


class Mark(NamedTuple):
    """A brand mark: `slug` (unique), `title` (printable name), `color` (its own RGB)."""

    slug: str
    title: str
    color: tuple[int, int, int]


def _missing(package: str) -> DataError:
    return DataError(
        f"generated scenes need the package of '{package}', which is not installed; "
        f"run: pip install {' '.join(DISTRIBUTIONS)}"
    )


@cache
def _package_file(package: str, path: str) -> Path:
    """Where a data file of an installed package lies; the package itself is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(package)
    found = Path(next(iter(spec.submodule_search_locations))) / path
    if not found.is_file():
        raise DataError(
            f"package '{package}' lacks {path}; reinstall the pinned version from requirements.txt"
        )
    return found


def versions() -> dict[str, str]:
    """Installed version of every artwork package; `DataError` names one that is missing."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise _missing(name) from None
    return found


@lru_cache(maxsize=1)
def _icons() -> dict:
    try:
        from simpleicons.all import icons
    except ImportError:
        raise _missing("simpleicons") from None
    return icons


def split_of_mark(slug: str) -> str:
    """The one split that may use this mark: 60 % train, 15 % val, 25 % test, by a hash of its name."""
    value = int.from_bytes(hashlib.sha256(slug.encode()).digest()[:4], "big") % 100
    return "train" if value < 60 else "val" if value < 75 else "test"


@cache
def marks(split: str) -> tuple[Mark, ...]:
    """The marks of `split` with a free licence (CC0 by the collection, MIT, Apache-2.0), sorted by name."""
    found = []
    for slug, icon in sorted(_icons().items()):
        if icon.license is not None and icon.license.get("type") not in _FREE_LICENSES:
            continue
        if split_of_mark(slug) != split:
            continue
        title = icon.title if all(32 <= ord(c) < 0x17F for c in icon.title) else slug.title()
        color = tuple(int(icon.hex[k : k + 2], 16) for k in (0, 2, 4))
        found.append(Mark(slug, title, color))
    return tuple(found)


@lru_cache(maxsize=256)
def mark_mask(slug: str, size: int) -> Image.Image:
    """The mark as an "L" coverage mask of `size` x `size` pixels. The result is shared: do not draw on it."""
    try:
        import resvg_py
    except ImportError:
        raise _missing("resvg_py") from None
    png = bytes(
        resvg_py.svg_to_bytes(svg_string=_icons()[slug].svg, width=size, height=size, skip_system_fonts=True)
    )
    return Image.open(io.BytesIO(png)).convert("RGBA").getchannel("A")


@cache
def photos(split: str) -> tuple[str, ...]:
    """Names of the photographs of `split`."""
    return tuple(f"{package}/{path}" for package, path in PHOTOS[split])


@cache
def photo(name: str) -> Image.Image:
    """The photograph as RGB, longest side at most 640 px. The result is shared: do not draw on it."""
    package, path = name.split("/", 1)
    with Image.open(_package_file(package, path)) as picture:
        rgb = picture.convert("RGB")
    if (longest := max(rgb.size)) > _PHOTO_SIDE:
        rgb = rgb.resize(tuple(round(s * _PHOTO_SIDE / longest) for s in rgb.size), Image.Resampling.BOX)
    return rgb


def photo_crop(
    name: str, size: tuple[int, int], rng: np.random.Generator, *, extent: tuple[float, float] = (0.35, 1.0)
) -> Image.Image:
    """A random crop of photograph `name`, resized to `size` (height, width); may be mirrored.

    `extent` bounds the crop's side as a share of the largest crop of that shape. Of up to six places the
    first with some contrast is taken: a crop of empty sky shows nothing to recognise.
    """
    source = photo(name)
    mirrored = rng.random() < 0.5
    best, best_contrast = (0.0, 0.0, float(source.width), float(source.height)), -1.0
    for _ in range(6):
        share = rng.uniform(*extent) * min(source.width / size[1], source.height / size[0])
        width, height = share * size[1], share * size[0]
        x = rng.uniform(0, source.width - width)
        y = rng.uniform(0, source.height - height)
        box = (x, y, x + width, y + height)
        glance = source.resize((24, 24), Image.Resampling.BILINEAR, box=box, reducing_gap=1.5)
        contrast = float(np.asarray(glance.convert("L"), np.float32).std())
        if contrast > best_contrast:
            best, best_contrast = box, contrast
        if contrast >= _MIN_CONTRAST:
            break
    crop = source.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=best, reducing_gap=2.0)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else crop


@lru_cache(maxsize=256)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Face `name` of `FONTS` at `size` pixels; basic layout, so that every platform sets the same line."""
    path = _package_file(*FONTS[name])
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
