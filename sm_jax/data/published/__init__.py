"""The data sets of OS2D as they are published, and what is built from them (OS2D spec sec. 13).

The files lie in a folder `manual_dir`, as their archives unpack; nothing is downloaded here and nothing is
written there. `sm-jax data build NAME` calls `sm_jax.data.builders.published.build`.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sm_jax.data.sources.base import Source
from sm_jax.errors import ConfigError, DataError
from sm_jax.settings import nearest


class Published(NamedTuple):
    """One published data set.

    Attributes:
      name: what it is called here.
      reader: the module of this package that reads it.
      folder: where it lies below `manual_dir`.
      nominal: longer side of its pictures in pixels; pictures of another size are brought to that area.
      eval_scale: to which number of pixels that side is brought for searching, and for training.
      views: copies of each class picture that are searched for ("", "rotation90", "horflip").
      protocol: "episodes" where each picture is only searched for the classes of its episode.
      splits: what is built if nothing else is asked for.
      others: splits that can be asked for.
      counts: split -> pictures, boxes, classes that the authors' log tells; a build compares them.
      get: how to get the files, one sentence each.
    """

    name: str
    reader: str
    folder: str
    nominal: int
    eval_scale: int
    splits: tuple[str, ...]
    get: str
    views: str = ""
    protocol: str = "default"
    others: tuple[str, ...] = ()
    counts: dict[str, tuple[int, int, int]] = {}

    @property
    def scale(self) -> float:
        """Factor from the pixels of its pictures to those a model works on."""
        return self.eval_scale / self.nominal


_RETAIL = (
    "unpack retail_test_sets.zip (0.1 GB, linked from the README of github.com/aosokin/os2d), which holds "
    "{0}/classes/{0}.csv, {0}/classes/images and {0}/src/original"
)
_INSTRE = (
    "put gnd_instre.mat and the unpacked instre.tar.gz (2.3 GB), both from "
    "ftp://ftp.irisa.fr/local/texmex/corpus/instre, into instre/, so that it holds INSTRE-S1, INSTRE-S2 and "
    "INSTRE-M"
)

DATASETS = {
    one.name: one
    for one in (
        Published(
            name="grozi",
            reader="retail",
            folder="grozi",
            nominal=3264,
            eval_scale=1280,
            splits=("train", "train-mini", "val-old-cl", "val-new-cl", "val-all"),
            counts={"train": (596, 7781, 878), "val-new-cl": (84, 622, 185)},
            get="unpack grozi.zip (0.5 GB, linked from the README of github.com/aosokin/os2d), which holds "
            "grozi/classes/grozi.csv, grozi/classes/images and grozi/src/3264",
        ),
        Published(
            name="dairy",
            reader="retail",
            folder="dairy",
            nominal=3000,
            eval_scale=3500,
            splits=("test",),
            counts={"test": (12, 786, 166)},
            get=_RETAIL.format("dairy"),
        ),
        Published(
            name="paste-v",
            reader="retail",
            folder="paste",
            nominal=1280,
            eval_scale=3500,
            splits=("test",),
            counts={"test": (91, 4861, 259)},
            get=_RETAIL.format("paste"),
        ),
        Published(
            name="paste-f",
            reader="retail",
            folder="paste",
            nominal=1280,
            eval_scale=2000,
            views="rotation90",
            splits=("test",),
            counts={"test": (91, 4861, 259)},
            get=_RETAIL.format("paste"),
        ),
        Published(
            name="instre-s1",
            reader="instre",
            folder="instre",
            nominal=1000,
            eval_scale=700,
            views="rotation90",
            splits=("train", "val", "test"),
            counts={"train": (11775, 77940, 375), "val": (841, 5300, 25)},
            get=_INSTRE,
        ),
        Published(
            name="instre-s2",
            reader="instre",
            folder="instre",
            nominal=1000,
            eval_scale=600,
            views="rotation90",
            splits=("train", "val", "test"),
            counts={"train": (8686, 49090, 375), "val": (560, 2800, 25)},
            get=_INSTRE,
        ),
        Published(
            name="repmet",
            reader="repmet",
            folder="ImageNet-RepMet",
            nominal=1000,
            eval_scale=250,
            views="horflip",
            protocol="episodes",
            splits=("test",),
            others=("train", "val-N"),
            get="put ILSVRC2012 (image-net.org) as ImageNet-RepMet/ILSVRC (with Data/CLS-LOC and "
            "Annotations/CLS-LOC), repmet_test_classes.txt of github.com/aosokin/os2d (data/ImageNet-RepMet) "
            "as ImageNet-RepMet/repmet_test_classes.txt, and voc_inloc_roidb.pkl and "
            "episodes/epi_inloc_in_domain_1_5_10_500.pkl of RepMet (linked from github.com/jshtok/RepMet) "
            "into ImageNet-RepMet/RepMet_CVPR2019_data/data/Imagenet_LOC",
        ),
    )
}


def find(name: str) -> Published:
    """The data set called `name`; raises ConfigError."""
    if name not in DATASETS:
        raise ConfigError(
            f"no published data set is called {name!r}{nearest(name, DATASETS)}; there are "
            f"{', '.join(DATASETS)}"
        )
    return DATASETS[name]


def open_sources(
    name: str, manual_dir: str | Path, *, splits: Sequence[str] = ()
) -> dict[str, tuple[Source, str]]:
    """Split -> its source, and a remark ("" if there is none) where its counts differ from the published.

    Args:
      name: of `DATASETS`.
      manual_dir: the folder with the published files: the data set's own folder, or the one above it.
      splits: which; none: `Published.splits`.

    Raises:
      ConfigError: no such data set or split.
      DataError: a file that is missing, damaged or of another form.
    """
    dataset = find(name)
    reader = importlib.import_module(f"sm_jax.data.published.{dataset.reader}")
    wanted = tuple(dict.fromkeys(splits)) or dataset.splits
    known = dataset.splits + dataset.others
    for split in wanted:
        if split not in known and not ("val-N" in known and split.startswith("val-")):
            raise ConfigError(f"{name}: there is no split {split!r}, only {', '.join(known)}")
    sources = reader.read(dataset, root(dataset, manual_dir), wanted)
    return {split: (source, _remark(dataset, split, source)) for split, source in sources.items()}


def needed(path: Path, dataset: Published) -> Path:
    """`path` if it is there; DataError, with how to get it, if it is not."""
    if not path.exists():
        raise DataError(f"{path}: not there; {dataset.get} (see docs/reproduce.md)")
    return path


def root(dataset: Published, manual_dir: str | Path) -> Path:
    """The folder of the data set: the one in `manual_dir`, or `manual_dir` itself; DataError without it."""
    folder = Path(manual_dir).expanduser()
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {dataset.get} (see docs/reproduce.md)")
    below = folder / dataset.folder
    if below.is_dir() or folder.resolve().name != dataset.folder:
        return needed(below, dataset)
    return folder


def _remark(dataset: Published, split: str, source: Source) -> str:
    if split not in dataset.counts:
        return ""
    boxes = sum(len(source.annotation(index)["boxes"]) for index in range(len(source)))
    found, expected = (len(source), boxes, source.num_classes), dataset.counts[split]
    if found == expected:
        return ""
    words = ("pictures", "boxes", "classes")
    return (
        f"{dataset.name} {split}: {', '.join(f'{n} {word}' for n, word in zip(found, words, strict=True))}; "
        f"the authors' log has {', '.join(map(str, expected))}"
    )
