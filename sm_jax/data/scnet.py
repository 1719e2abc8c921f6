"""Training batches of SCNet: pictures with their regions, and the labelled pairs of them.

The trunk is frozen, so that batches hold its feature maps (`training.trunk`), not pixels. `BatchBuilder[k]`
is a pure function of (pairs, options, seed, k), like that of os2d. NumPy only. Source: SCNet (ICCV 2017),
sec. 4 and its published code: one pair per step, all pairs in a new order every epoch, each also mirrored.
"""

import hashlib
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sm_jax.data import images, order
from sm_jax.data.scnet_pairs import SIDE, RegionLabels, label_regions, mirror, to_square
from sm_jax.data.sources.pair_records import KeypointPair, PairList
from sm_jax.errors import ConfigError, DataError, ImageError
from sm_jax.ops import offset_bins

MAX_DAMAGED_SHARE = 0.01
SECONDS = 15  # between two notes of how far the proposals are
_log = logging.getLogger("sm_jax.data")

Say = Callable[[str], None]


@dataclass(frozen=True)
class ProposalOptions:
    """Which regions a picture has; see `proposals.propose`.

    Attributes:
      count: places for regions; a picture may have fewer.
      method: "prim" (Randomised Prim), "grid", "precomputed", ...
      seed: of the draws.
      cache_dir: folder of their cache, "" for the usual one.
      options: of the method.
    """

    count: int = 500
    method: str = "prim"
    seed: int = 0
    cache_dir: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.count < 1:
            raise ConfigError(f"data.proposals: must be at least 1, not {self.count}")

    def of(self, image: np.ndarray, path: Path | None = None) -> np.ndarray:
        """Regions of a picture, float32 (k, 4) with 1 <= k <= count, in its pixels.

        path: where it lies; "precomputed" finds its file by that.
        """
        from sm_jax.proposals import methods, propose

        if self.method == "precomputed" and path is not None:
            methods.check_options(self.method, self.options)
            return methods.read_precomputed(path, image.shape[:2], self.count, self.options)
        found = propose(
            image,
            self.count,
            seed=self.seed,
            method=self.method,
            cache_dir=self.cache_dir,
            **self.options,
        )
        return found.boxes[: found.count]


def proposal_options(data: Any) -> ProposalOptions:
    """From a config section `data`: `proposals` (their number), `proposal_method`, `proposal_seed`,
    `proposal_folder` (of "precomputed"), `cache_dir`."""
    cache, folder = data.get("cache_dir", ""), data.get("proposal_folder", "")
    return ProposalOptions(
        count=data.proposals,
        method=data.get("proposal_method", "prim"),
        seed=data.get("proposal_seed", 0),
        cache_dir=str(Path(cache) / "proposals") if cache else "",
        options={"folder": folder} if folder else {},
    )


class Pictures(Sequence):
    """The pictures of a list of pairs, each once, with their regions.

    Attributes:
      paths: of those that can be read.
      sizes: (height, width) of each.
      regions: float32 (k, 4) of each, in its own pixels.
      damaged: a line for each that cannot be read.
    """

    def __init__(self, pairs: Sequence[KeypointPair], proposals: ProposalOptions, *, say: Say | None = None):
        """Reads every picture and takes its regions from the cache, or proposes them (seconds a picture).

        Raises:
          DataError: more than 1 % of the pictures cannot be read. ConfigError: proposals that cannot be made.
        """
        say, began = say or _log.info, time.monotonic()
        every = list(dict.fromkeys(end for pair in pairs for end in (pair.source, pair.target)))
        self.paths: list[Path] = []
        self.sizes: list[tuple[int, int]] = []
        self.regions: list[np.ndarray] = []
        self.damaged: list[str] = []
        self._content = hashlib.sha256()

        def one(path: Path):
            try:
                image = images.read_image(path, orient=False)
            except ImageError as error:
                return str(error)
            return (
                image.shape[:2],
                proposals.of(image, path),
                hashlib.sha256(np.ascontiguousarray(image)).digest(),
            )

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for done, (path, found) in enumerate(zip(every, pool.map(one, every), strict=True), start=1):
                if isinstance(found, str):
                    self.damaged.append(found)
                    if len(self.damaged) > max(1, MAX_DAMAGED_SHARE * len(every)):
                        raise DataError(
                            f"{len(self.damaged)} of {len(every)} pictures cannot be read, more than "
                            f"{MAX_DAMAGED_SHARE:.0%}; the first: {self.damaged[0]}"
                        )
                    continue
                self.paths.append(path)
                self.sizes.append(found[0])
                self.regions.append(found[1])
                self._content.update(found[2])
                if time.monotonic() - began > SECONDS:
                    began = time.monotonic()
                    say(f"region proposals: {done}/{len(every)} pictures")
        self._number = {path: index for index, path in enumerate(self.paths)}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 (SIDE, SIDE, 3): the picture as the network sees it; raises ImageError."""
        return square(images.read_image(self.paths[index], orient=False))

    def fingerprint(self) -> str:
        """Of the pixels of all pictures, in their order."""
        return self._content.hexdigest()

    def number(self, path: Path) -> int | None:
        """The index of a picture; None for a damaged one."""
        return self._number.get(path)

    def image(self, index: int) -> np.ndarray:
        """`self[index]`, as sources call it."""
        return self[index]


class TrainingPairs(Sequence):
    """Pairs with at least one active region, each followed by its mirror image where that is asked for.

    An element is (number of the pair in `pairs`, whether it is mirrored).

    Attributes:
      pairs: the pairs that are used.
      pictures: their pictures.
      flips: whether each is also mirrored.
      left_out: how many pairs are not used.
      notes: a line for each kind of pair that is left out, and for each damaged picture.
    """

    def __init__(
        self, pairs: PairList, proposals: ProposalOptions, *, flips: bool = False, say: Say | None = None
    ):
        """See `Pictures`.

        Raises:
          DataError: no pair is left to train on, or too many damaged pictures.
        """
        self.pictures = Pictures(pairs, proposals, say=say)
        self.flips, self.notes = flips, [f"left out: {line}" for line in self.pictures.damaged]
        self.pairs: list[KeypointPair] = []
        dropped: dict[str, list[str]] = {}
        for pair in pairs:
            reason = self._reason_against(pair)
            if reason:
                dropped.setdefault(reason, []).append(f"{pair.source.name} -> {pair.target.name}")
            else:
                self.pairs.append(pair)
        self.notes += [
            f"{len(names)} of {len(pairs)} pairs left out: {reason} (first: {names[0]})"
            for reason, names in dropped.items()
        ]
        self.left_out = len(pairs) - len(self.pairs)
        if not self.pairs:
            raise DataError(f"{pairs.root}: no pair to train on; {'; '.join(self.notes)}")

    def __len__(self) -> int:
        return len(self.pairs) * (1 + self.flips)

    def __getitem__(self, index: int) -> tuple[int, bool]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return index // (1 + self.flips), bool(self.flips and index % 2)

    def epoch_note(self, config: Any) -> str:
        """A line where an epoch is shorter than a config counts, which knows the listed pairs only; or "".

        An epoch is once every pair that is used; that the others are not is known with the regions only.
        """
        listed = math.ceil((len(self.pairs) + self.left_out) * (1 + self.flips) / config.batch_size)
        real = math.ceil(len(self) / config.batch_size)
        if listed == real:
            return ""
        counted = {
            "eval_every": config.get("eval_every", 0),
            "optim.alternate_every": config.get("optim", {}).get("alternate_every", 0),
        }
        wrong = [name for name, value in counted.items() if value == listed]
        advice = f"; to end with it set {' and '.join(f'{name}={real}' for name in wrong)}" if wrong else ""
        return (
            f"an epoch has {real} step{'s' * (real != 1)}, not the {listed} of all listed pairs, by which "
            f"the config counts: steps={config.steps} are {config.steps / real:.3g} epochs{advice}"
        )

    def ends(self, number: int) -> tuple[int, int]:
        """Numbers of the source and target pictures of a pair."""
        pair = self.pairs[number]
        return self.pictures.number(pair.source), self.pictures.number(pair.target)

    def labels(self, number: int) -> RegionLabels:
        """Labels of the regions of a pair."""
        return self._labels(self.pairs[number], *self.ends(number))

    def _labels(self, pair: KeypointPair, source: int, target: int) -> RegionLabels:
        pictures = self.pictures
        return label_regions(
            pictures.regions[source],
            pictures.regions[target],
            pair.keypoints_source,
            pair.keypoints_target,
            pictures.sizes[source],
            pictures.sizes[target],
        )

    def _reason_against(self, pair: KeypointPair) -> str:
        ends = self.pictures.number(pair.source), self.pictures.number(pair.target)
        if None in ends:
            return "a picture cannot be read"
        try:
            labels = self._labels(pair, *ends)
        except DataError as error:
            return str(error)
        return "" if labels.active.any() else "no region lies on the object"


@dataclass(frozen=True)
class BatchOptions:
    """How batches are made.

    Attributes:
      batch_size: pairs per step; 1 as published.
      proposals: places for regions of a picture.
    """

    batch_size: int = 1
    proposals: int = 500

    def __post_init__(self):
        for name in ("batch_size", "proposals"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data: {name} must be at least 1, not {getattr(self, name)}")


class BatchBuilder:
    """Random access to this process's rows of global batch k.

    Args:
      source: the pairs.
      options: see `BatchOptions`.
      seed: of the order of every epoch.
      process_index: which rows are built here.
      process_count: in how many equal parts the rows are divided.
      trunk: number of a picture -> its feature map, f16 (h, w, c); those of the mirrored pictures follow
        after all others. Without it there are labels, but no batches.

    Raises:
      ConfigError: the rows do not divide over the processes.
    """

    totals: dict[str, int] = {}  # damaged pictures were left out with their pairs

    def __init__(
        self,
        source: TrainingPairs,
        options: BatchOptions,
        *,
        seed: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        trunk: Sequence[np.ndarray] | None = None,
    ):
        if options.batch_size % process_count:
            raise ConfigError(
                f"batch_size={options.batch_size} does not divide over {process_count} processes"
            )
        self.source, self.options = source, options
        self._seed, self._part, self._trunk = seed, (process_index, process_count), trunk

    def __len__(self) -> int:
        return 1 << 40  # endless for every practical purpose

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        """Batch k.

        `source_features`, `target_features` f16 (b, h, w, c); `source_boxes`, `target_boxes` f32 (b, n, 4) in
        the frame of `SIDE` pixels and `source_valid`, `target_valid` bool (b, n); `bins` i32 (b, n, n) of
        `hough.bins`; `overlaps` f32 (b, n, n): IoU of each target region with the true box of each source
        region; `active` bool (b, n): the source regions with a true box.
        """
        if self._trunk is None:
            raise ConfigError(
                "data.cache_trunk=False: SCNet trains on stored features of its frozen trunk; leave it on"
            )
        picks = order.picks(self._seed, k, count=len(self.source), size=self.options.batch_size)
        rows = [self._row(picks[row]) for row in order.rows(self.options.batch_size, self._part)]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def finish(self, batch: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list]:
        """The batch in memory of its own, and nothing skipped."""
        return {name: np.array(batch[name]) for name in sorted(batch)}, []

    def _row(self, index: int) -> dict[str, np.ndarray]:
        number, mirrored = self.source[index]
        pictures, limit, row = self.source.pictures, self.options.proposals, {}
        for name, end in zip(("source", "target"), self.source.ends(number), strict=True):
            boxes = to_square(pictures.regions[end], pictures.sizes[end])[:limit]
            boxes = mirror(boxes) if mirrored else boxes
            row[f"{name}_features"] = np.asarray(self._trunk[end + mirrored * len(pictures)], np.float16)
            row[f"{name}_boxes"] = np.pad(boxes, ((0, limit - len(boxes)), (0, 0)))
            row[f"{name}_valid"] = np.arange(limit) < len(boxes)
        sizes = (SIDE, SIDE), (SIDE, SIDE)
        row["bins"] = offset_bins.bins(row["source_boxes"], row["target_boxes"], *sizes)
        labels = self.source.labels(number)
        rows, columns = (min(length, limit) for length in labels.overlaps.shape)
        row["overlaps"] = np.zeros((limit, limit), np.float32)
        row["overlaps"][:rows, :columns] = labels.overlaps[:rows, :columns]
        row["active"] = np.pad(labels.active[:rows], (0, limit - rows))
        return row


def square(image: np.ndarray) -> np.ndarray:
    """A uint8 picture in the frame of the network, without keeping its aspect: (SIDE, SIDE, 3)."""
    return images.resize(image, (SIDE, SIDE), "bicubic")


def pixel_statistics(source: TrainingPairs) -> dict[str, np.ndarray]:
    """Mean and deviation of every pixel and channel over the pictures of the pairs, as the network sees them.

    Both pictures of every pair count, so that one of many pairs counts as often; with `flips` their mirror
    images too. Source: SCNet's published code (specification sec. 1.1).

    Returns:
      "mean" and "std" (of the population) f32 (SIDE, SIDE, 3), in bytes.
    """
    ends = np.array([source.ends(number) for number in range(len(source.pairs))])
    counts = np.bincount(ends.ravel(), minlength=len(source.pictures))
    total, squares = (np.zeros((SIDE, SIDE, 3), np.int64) for _ in range(2))  # of bytes: exact
    for index in np.flatnonzero(counts):
        image = source.pictures[index].astype(np.int64)
        total += counts[index] * image
        squares += counts[index] * image**2
    count = ends.size
    if source.flips:
        count, total, squares = 2 * count, total + total[:, ::-1], squares + squares[:, ::-1]
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return {"mean": mean.astype(np.float32), "std": deviation.astype(np.float32)}


def network_input(pictures: Pictures, row: int) -> np.ndarray:
    """uint8 (SIDE, SIDE, 3): picture `row`, or from `len(pictures)` on the mirrored ones."""
    mirrored, index = divmod(row, len(pictures))
    image = pictures[index]
    return image[:, ::-1] if mirrored else image
