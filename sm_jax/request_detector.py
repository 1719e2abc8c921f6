"""Finding members of a class from pictures of others: `load("ssm").detect(images, queries)`."""

import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sm_jax import coverage_search, pretrained, query_pictures, windows
from sm_jax.coverage_search import Options, Search
from sm_jax.data import images as pictures
from sm_jax.data import transforms
from sm_jax.detections import RequestDetections
from sm_jax.errors import ConfigError
from sm_jax.query_pictures import QueryPicture
from sm_jax.requests import Request, RequestBank, fingerprint
from sm_jax.search import listed
from sm_jax.systems.ssm import model as ssm
from sm_jax.systems.ssm.postprocess import METHODS
from sm_jax.systems.ssm.predict import Kept, Predictor, prepare_request

THRESHOLD = 0.5
"""Of coverage. Source: the released script (SSM specification, sec. 5.1)."""


class RequestDetector:
    """A single-shot semantic matcher with its weights; `load` makes one.

    Attributes:
      notes: lines that say where the weights came from.
      batch: images, or windows of them, that go through the model at once.
      threshold: what `detect` takes by itself.
      floor: what `evaluators.request_matchers.DetectorMatcher` takes as `cells`.
    """

    threshold = THRESHOLD
    floor = coverage_search.FLOOR

    def __init__(
        self,
        config: ssm.ModelConfig,
        variables: Mapping[str, Any],
        *,
        notes: Sequence[str] = (),
        batch: int | None = None,
        **options,
    ):
        """Wrap a model.

        Args:
          config, variables: the model.
          notes: lines that say where the weights came from.
          batch: images that go through the model at once, a power of two. None: 1 on a CPU, 16 on an
            accelerator.
          **options: of `Predictor`.
        """
        batch = batch or (1 if jax.default_backend() == "cpu" else 16)
        if batch < 1 or batch & (batch - 1):
            raise ConfigError(f"batch: must be a power of two, not {batch}")
        self.notes = list(notes)
        self.batch = batch
        self._config, self._variables = config, variables
        self._predictor = Predictor(config, chunk=batch, **options)
        self._fingerprint = ""
        self._last: tuple[RequestBank | None, Kept | None] = (None, None)

    @property
    def compiles(self):
        """Programs made so far, by kind."""
        return self._predictor.compiles

    @property
    def fingerprint(self) -> str:
        """Of the weights and of how requests are fused; banks made with others are refused."""
        if not self._fingerprint:
            kind = np.frombuffer(f"{self._config.fusion} {self._config.request_size}".encode(), np.uint8)
            self._fingerprint = fingerprint({**self._variables, "requests": kind})
        return self._fingerprint

    def encode(
        self,
        queries,
        *,
        labels: str | Sequence[str] | None = None,
        threshold: float | None = None,
    ) -> RequestBank:
        """Encode query pictures once, for any number of images.

        A picture is fitted into the size that the model takes, with its aspect ratio kept, on grey. A request
        is then a map of the picture (4 MiB) for aligned fusion, or one vector (4 KiB) for gap fusion.

        Args:
          queries: a picture, several (a list, a generator), or a dict label -> picture or several. A picture
            is a path, encoded bytes, a Pillow image, or a uint8 array (h, w, 3), cut close around one object.
          labels: one for each picture of a list, or one for all; default: file names without ending, "query".
            Pictures of one label mean the same class: in each cell the one with the highest coverage counts.
          threshold: that of these queries, whatever `detect` is told.

        Raises:
          ConfigError: no query, or labels that do not fit; DataError: a picture that cannot be read, or is
            blank, thin or tiny.
        """
        if threshold is not None and math.isnan(threshold):
            raise ConfigError("threshold: must be a number")
        requests = []
        for group in _grouped(query_pictures.read(queries, labels), self.batch):
            requests += self._requests(group, threshold)
        return RequestBank(requests, fingerprint=self.fingerprint)

    def detect(
        self,
        images,
        queries,
        *,
        labels: str | Sequence[str] | None = None,
        threshold: float = THRESHOLD,
        cells: float | None = None,
        max_detections: int = 100,
        iou: float = 0.5,
        postprocess: str = "default",
        tiles: bool = False,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> list[RequestDetections]:
        """Find members of every label in every image.

        Args:
          images: a picture or several (see `encode`).
          queries, labels: as `encode` takes them; or a `RequestBank`, which has its own labels.
          threshold: coverage of a cell must be above it; nothing is below 0. With `cells`: the score of a
            detection must be, whatever the post-processing makes of scores.
          cells: coverage that a cell must exceed to take part. A low value (0.05), as in the evaluation, lets
            weak cells vote too; thresholds of `rank_requests` are for scores that come about that way.
          max_detections: at most so many per label, the best ones.
          iou: of two detections of a label that overlap more, the better one stays (within a window only with
            the default post-processing).
          postprocess: how cells become boxes: "default" (vote, clip, suppress), "released" (as in the
            published script) or "grouprect" (as in DetectNet); see `systems.ssm.postprocess`.
          tiles: search the image at its own size, in windows of the size that the model takes, which overlap
            by half; default: the whole image is fitted into one, and small objects may get lost. What several
            windows find is merged by `windows.merge`. With aligned fusion the response depends on where in
            its window an object lies.
          progress: called as `progress("windows", done, all)` while an image is searched.

        Returns:
          One `RequestDetections` per image; an image in which nothing is found has an empty one.

        Raises:
          ConfigError, DataError, WeightsError: one line each; see `encode`.
        """
        bank = queries
        if not isinstance(bank, RequestBank):
            bank = self.encode(queries, labels=labels)
        elif labels is not None:
            raise ConfigError("labels belong to encode(); this request bank is encoded already")
        if not len(bank):
            raise ConfigError("no query: give at least one picture of what to look for")
        bank.check(self.fingerprint, what="pictures")
        if max_detections < 1 or not 0 <= iou <= 1 or math.isnan(threshold):
            raise ConfigError("max_detections must be 1 or more, iou within 0..1, threshold a number")
        if cells is not None and math.isnan(cells):
            raise ConfigError("cells: must be a number, or None for the threshold")
        if postprocess not in METHODS:
            raise ConfigError(f"postprocess: {postprocess!r} is none of {', '.join(METHODS)}")
        options = Options(bank, threshold, max_detections, iou, postprocess, cells=cells)
        requests, found = self._kept(bank), []
        for group in _grouped(self._windows(images, tiles, options), self.batch):
            stack = transforms.bgr_minus_mean(np.stack([picture for _, _, picture in group]))
            features = self._predictor.features(self._variables, stack)
            answers = self._predictor.search(self._variables, features, requests)
            for (search, corner, _), coverage, boxes in zip(group, *map(np.asarray, answers), strict=True):
                search.add(corner, coverage, boxes)
                if search.done == search.windows:
                    found.append(search.result())
            if progress is not None:
                progress("windows", search.done, search.windows)
        return found

    def _kept(self, bank: RequestBank) -> Kept:
        """The requests of `bank` on the device, where they stay while one bank (immutable) is searched."""
        if self._last[0] is not bank:
            requests = np.concatenate([request.template for request in bank])
            requests = requests if self._config.aligned else requests[:, 0, 0]
            self._last = bank, self._predictor.keep(requests)
        return self._last[1]

    def _requests(self, group: Sequence[QueryPicture], threshold: float | None) -> list[Request]:
        size = self._config.request_size
        stack = np.stack([prepare_request(query.image, size, name=query.name) for query in group])
        encoded = np.asarray(self._predictor.encode(self._variables, stack))
        encoded = encoded if self._config.aligned else encoded[:, None, None]
        return [
            Request(
                label=query.label,
                template=template[None].astype(np.float32),
                size=query.image.shape[:2],
                threshold=threshold,
                source=query.source,
                preview=query_pictures.preview(query.image),
            )
            for query, template in zip(group, encoded, strict=True)
        ]

    def _windows(self, images, tiles: bool, options: Options) -> Iterator[tuple]:
        """(the search of the image, where the window begins, its picture) of each window of each image."""
        for given in listed(images):
            image, layout = self._laid_out(given, tiles)
            search = Search(layout, options)
            for corner in layout.corners:
                yield search, corner, layout.picture(image, corner)

    def _laid_out(self, picture, tiles: bool) -> tuple[np.ndarray, windows.Layout]:
        """The image as its windows see it, and where they lie."""
        name = str(picture) if isinstance(picture, (str, os.PathLike)) else "image"
        image = pictures.as_image(picture, name=name)
        layout = coverage_search.lay_out(image, self._config.image_size, tiles=tiles, name=name)
        return layout.resized(image), layout


def load(weights: str, overrides: Mapping[str, Any] | None = None, **options) -> RequestDetector:
    """A `RequestDetector` from a registered name, a file of `sm-jax weights export`, or the folder of a run.

    Args:
      weights: the name or path.
      overrides: fields of `ModelConfig` that differ from those stored with the weights.
      **options: of `RequestDetector`.

    Raises:
      WeightsError: weights that are not there, of another system, or that do not fit; ConfigError: unknown
      fields.
    """
    found = pretrained.trained(weights, system="ssm", overrides=overrides)
    config = ssm.ModelConfig.create(found.config.model)
    return RequestDetector(config, found.variables, **{"notes": found.notes} | options)


def _grouped(items: Iterator[tuple], size: int) -> Iterator[list[tuple]]:
    while group := list(itertools.islice(items, size)):
        yield group
