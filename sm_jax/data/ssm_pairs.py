"""Which window goes with which request: the SSM's pair sampler, and its lists of fixed windows and crops.

Everything here follows from annotations; pictures are decoded only by `picture` and `cut` of the lists.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sm_jax.data import instances, order, transforms
from sm_jax.data import ssm_windows as geometry
from sm_jax.data.sources.base import Source
from sm_jax.errors import ConfigError, DataError

_WINDOW, _CROP, _CHOICE = 2, 3, 4  # random streams; the batches have 0 and 1
_log = logging.getLogger("sm_jax.data")


class Pair(NamedTuple):
    """One row of a batch.

    Attributes:
      positive: whether the request is of the class of the anchor.
      label: requested class.
      image: index in the source.
      anchor: the box that the window is drawn around, a row of `Instances`.
      window: row of the window list; -1 without fixed windows.
      request: row of the crop list.
    """

    positive: bool
    label: int
    image: int
    anchor: int
    window: int
    request: int


class CropList:
    """Every picture that can be a request: first the instances, then the class pictures that stand in.

    Args:
      rows: of `found`, the instances.
      labels: whose class pictures follow.
    """

    def __init__(
        self,
        source: Source,
        found: instances.Instances,
        options: Any,
        rows: np.ndarray,
        labels: np.ndarray,
        seed: int,
    ):
        self._source, self._found, self._options, self._seed = source, found, options, seed
        self._rows, self._labels = rows, labels

    def __len__(self) -> int:
        return len(self._rows) + len(self._labels)

    def instance(self, row: int) -> instances.Instance:
        """What request `row` shows."""
        if row < len(self._rows):
            return self._found[int(self._rows[row])]
        return instances.class_picture(self._source, int(self._labels[row - len(self._rows)]))

    def name(self, row: int) -> tuple[str, str]:
        """(kind, name) of the picture that request `row` is cut from."""
        if row < len(self._rows):
            return "image", self._found[int(self._rows[row])].image_id
        return "class picture", self._source.class_names[int(self._labels[row - len(self._rows)])]

    def picture(self, row: int) -> np.ndarray:
        """Request `row` as it is fixed, uint8 (h, w, 3), letterboxed. Raises ImageError."""
        return self.cut(order.rng(self._seed, _CROP, row), row)

    def cut(self, rng: np.random.Generator, row: int) -> np.ndarray:
        """As `picture`, jittered and mirrored at random."""
        if row < len(self._rows):
            found = self._found[int(self._rows[row])]
            box = geometry.jitter(rng, found.box, self._options.request_jitter)
            picture = instances.cut(self._source.image(found.index), box)
        else:
            picture = self._source.query(int(self._labels[row - len(self._rows)]))
        picture, _, _ = transforms.letterbox_centred(picture, self._options.request_size, fill=geometry.GREY)
        mirrored = bool(rng.random() < 0.5 and self._options.flips)
        return transforms.flip(picture, np.zeros((0, 4), np.float32), horizontal=mirrored)[0]


class WindowList:
    """`views` fixed windows of every image: row `image * views + view`.

    The windows of an image are drawn around its anchors in turn (anywhere, if it has none).

    Attributes:
      unit_window, unit_row: i32, the boxes that windows show: window and row of `found`.
    """

    def __init__(
        self,
        source: Source,
        found: instances.Instances,
        options: Any,
        anchors: np.ndarray,
        seed: int,
    ):
        self._source, self._found, self._options = source, found, options
        self._plans: list[geometry.Window] = []
        shown: list[tuple[np.ndarray, int]] = []
        for image in range(len(source)):
            rows = found.rows(image)
            around = order.rng(seed, _CHOICE, image).permutation(rows[anchors[rows]])
            for view in range(options.views):
                window = self._plan(image, view, around, seed)
                size = found.sizes[image].tolist()
                share = geometry.boxes_in(found.boxes[rows], size, window, options.image_size)[1]
                visible = rows[(share >= options.min_visible) & (share > 0) & ~found.difficult[rows]]
                shown.append((visible, len(self._plans)))
                self._plans.append(window)
        self.unit_row = np.concatenate([rows for rows, _ in shown]).astype(np.int32)
        self.unit_window = np.repeat(
            np.array([window for _, window in shown], np.int32), [len(rows) for rows, _ in shown]
        )

    def __len__(self) -> int:
        return len(self._plans)

    def window(self, row: int) -> geometry.Window:
        """Where window `row` lies."""
        return self._plans[row]

    def picture(self, row: int) -> np.ndarray:
        """Window `row`, uint8 (h, w, 3). Raises ImageError."""
        image = self._source.image(row // self._options.views)
        return geometry.render(image, self._plans[row], self._options.image_size)

    def _plan(self, image: int, view: int, around: np.ndarray, seed: int) -> geometry.Window:
        options = self._options
        return geometry.plan(
            order.rng(seed, _WINDOW, image, view),
            np.maximum(self._found.sizes[image], 1).tolist(),  # a damaged picture has no size
            self._found.boxes[around[view % len(around)]] if len(around) else None,
            image_size=options.image_size,
            scale=options.scale,
            flips=options.flips,
            augment=options.augment,
        )


class Pairs:
    """The pair sampler; see `ssm.BatchBuilder` for what it draws and for the arguments.

    Attributes:
      found: every box of the source.
      crops, windows: the lists that a pair's numbers count; `windows` is None without fixed windows.
      positive, negative: i32, the classes that rows of either kind can be drawn around.
    """

    def __init__(
        self,
        source: Source,
        options: Any,
        *,
        seed: int = 0,
        damaged: tuple[Sequence[int], Sequence[int]] = ((), ()),
    ):
        self.found = found = instances.find(source, min_side=options.min_request)
        self._source = source
        largest = options.scale * (geometry.SCALES[1] if options.augment else 1.0)
        reach = geometry.best_share(found.boxes, options.image_size, scale=largest)
        anchors = ~found.difficult & (reach >= options.min_visible)
        if not anchors.any():
            raise DataError("the training split has no box that is not difficult and fits into a window")
        self._requests(source, options, seed, set(damaged[1]))
        self._units(source, options, anchors, seed, set(damaged[0]))
        if options.positive_share > 0 and not len(self.positive):
            raise DataError(
                "no class makes a positive pair: each needs two objects, or one and a class picture, with "
                f"sides of at least {options.min_request:g} pixels; lower data.min_request"
            )
        if options.positive_share < 1 and not len(self.negative):
            raise ConfigError(
                "there are no negative pairs, for every picture shows every class that can be requested; set "
                "data.positive_share=1"
            )

    def draw(self, rng: np.random.Generator, positive: bool, turn: int) -> Pair:
        """A random pair around the class whose turn it is (taken modulo the number of classes)."""
        labels = self.positive if positive else self.negative
        label = int(labels[turn % len(labels)])
        unit = int((self._around if positive else self._around_negative)[label].draw(rng))
        anchor, window = int(self._unit_row[unit]), int(self._unit_window[unit])
        image = int(self.found.image[anchor])
        if not positive:
            label = int(rng.choice(self.absent(image)))
            return Pair(False, label, image, anchor, window, self._request(rng, label))
        return Pair(True, label, image, anchor, window, self._request(rng, label, image, anchor))

    def absent(self, image: int) -> np.ndarray:
        """Classes of positive pairs that the whole image surely does not show.

        Others are no requests of negative pairs either: what only ever occurs in those would be told by its
        request alone.
        """
        free = self._requestable.copy()
        listed = self._source.listed(image) if hasattr(self._source, "listed") else None
        if listed is not None:
            free[:] = False
            free[listed] = self._requestable[listed]
        free[self.found.labels[self.found.rows(image)]] = False
        return np.flatnonzero(free)

    def _requests(self, source: Source, options: Any, seed: int, damaged: set[int]) -> None:
        found, count = self.found, source.num_classes
        chosen = found.request.copy()
        if limit := options.requests_per_class:
            for label, rows in enumerate(found.rows_by_class(found.request)):
                chosen[order.rng(seed, _CHOICE, 0, label).permutation(rows)[limit:]] = False
        rows = np.flatnonzero(chosen)
        images = [len(np.unique(found.image[rows])) for rows in found.rows_by_class(chosen)]
        # One image of a class is no choice where the request should come from another one.
        lonely = [
            label
            for label in np.unique(found.labels[~found.difficult]).tolist()
            if images[label] < 2 and instances.picture_serves(source, label, options.min_request)
        ]
        self.crops = CropList(source, found, options, rows, np.array(lonely, np.int32), seed)
        usable = np.array([row not in damaged for row in range(len(self.crops))], bool)
        self._crop_of = np.full(len(found), -1, np.int64)
        self._crop_of[rows[usable[: len(rows)]]] = np.flatnonzero(usable[: len(rows)])
        self._by_class = [
            _ByImage(rows, found.image[rows]) for rows in found.rows_by_class(self._crop_of >= 0)
        ]
        self._picture_of = np.full(count, -1, np.int64)
        self._picture_of[lonely] = np.where(usable[len(rows) :], np.arange(len(rows), len(self.crops)), -1)

    def _units(self, source: Source, options: Any, anchors: np.ndarray, seed: int, damaged: set[int]) -> None:
        found = self.found
        self.windows = None
        if options.fixed_crops:
            self.windows = WindowList(source, found, options, anchors, seed)
            kept = ~np.isin(self.windows.unit_window, sorted(damaged))
            self._unit_row, self._unit_window = self.windows.unit_row[kept], self.windows.unit_window[kept]
        else:
            self._unit_row = np.flatnonzero(anchors).astype(np.int32)
            self._unit_window = np.full(len(self._unit_row), -1, np.int32)
        served = np.array([self._has_request(int(row)) for row in self._unit_row], bool)
        self._around, self.positive = self._grouped(np.flatnonzero(served))
        self._requestable = np.zeros(found.num_classes, bool)
        self._requestable[self.positive] = True
        image = found.image[self._unit_row]
        capable = np.zeros(len(source), bool)
        for index in np.unique(image):
            capable[index] = len(self.absent(int(index))) > 0
        self._around_negative, self.negative = self._grouped(np.flatnonzero(capable[image]))
        self._say_who_is_left_out(source.class_names, options.min_request)

    def _say_who_is_left_out(self, names: list[str], min_request: float) -> None:
        shown = np.array([len(rows) > 0 for rows in self.found.rows_by_class(~self.found.difficult)], bool)
        crops = np.array([len(group) > 0 for group in self._by_class], bool)
        side = f"of at least {min_request:g} pixels"
        for where, what in (
            (self._requestable & ~crops, f"no object {side}; their class pictures are requested"),
            (~self._requestable & shown, f"no window that shows them or no request {side}, and are left out"),
        ):
            chosen = [names[label] for label in np.flatnonzero(where)]
            if chosen:
                some = ", ".join(chosen[:5]) + (", ..." if len(chosen) > 5 else "")
                _log.warning("%d classes have %s: %s", len(chosen), what, some)

    def _grouped(self, units: np.ndarray) -> tuple[list["_ByImage"], np.ndarray]:
        """Per class the units of it, by image; and the classes that have any."""
        labels = self.found.labels[self._unit_row[units]]
        units = units[np.argsort(labels, kind="stable")]
        ends = np.searchsorted(np.sort(labels), np.arange(self.found.num_classes + 1))
        parts = [units[first:last] for first, last in zip(ends[:-1], ends[1:], strict=True)]
        groups = [_ByImage(part, self.found.image[self._unit_row[part]]) for part in parts]
        return groups, np.flatnonzero([len(group) > 0 for group in groups]).astype(np.int32)

    def _has_request(self, anchor: int) -> bool:
        group = self._by_class[self.found.labels[anchor]]
        return len(group) > (self._crop_of[anchor] >= 0) or self._picture_of[self.found.labels[anchor]] >= 0

    def _request(self, rng: np.random.Generator, label: int, image: int = -1, anchor: int = -1) -> int:
        """Row of the crop list: of another image, else not the anchor, else the class picture."""
        group = self._by_class[label]
        row = group.draw(rng, apart=image)
        if row is None:
            others = group.of(image)
            others = others[others != anchor]
            row = rng.choice(others) if len(others) else None
        return int(self._picture_of[label] if row is None else self._crop_of[row])


class _ByImage:
    """Items of one class, sorted by their images, drawn image first."""

    def __init__(self, items: np.ndarray, images: np.ndarray):
        self._items = items
        self._images, first = np.unique(images, return_index=True)
        self._ends = np.append(first, len(items))

    def __len__(self) -> int:
        return len(self._items)

    def draw(self, rng: np.random.Generator, *, apart: int = -1) -> np.ndarray | None:
        """An item of a random image other than `apart`; None if there is none."""
        place = int(np.searchsorted(self._images, apart))
        inside = place < len(self._images) and self._images[place] == apart
        others = len(self._images) - inside
        if not others:
            return None
        chosen = int(rng.integers(others))
        chosen += inside and chosen >= place
        return self._items[rng.integers(self._ends[chosen], self._ends[chosen + 1])]

    def of(self, image: int) -> np.ndarray:
        """The items of an image."""
        place = int(np.searchsorted(self._images, image))
        if place == len(self._images) or self._images[place] != image:
            return self._items[:0]
        return self._items[self._ends[place] : self._ends[place + 1]]
