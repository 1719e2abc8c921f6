"""For people: `load("os2d").detect(images, queries)`, `load("crossmodal").detect(images, phrases)`, and
`load("ssm").detect(images, queries)`."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sm_jax import pretrained, query_pictures, search
from sm_jax.data import images as pictures
from sm_jax.detections import Detections
from sm_jax.errors import ConfigError, ImageError
from sm_jax.requests import Request, RequestBank, fingerprint
from sm_jax.search import listed
from sm_jax.systems.os2d.predict import SMALLEST_LEVEL, Predictor, parts, pyramid_sizes

if TYPE_CHECKING:
    from sm_jax.correspondence import Matcher
    from sm_jax.phrase_detector import PhraseDetector
    from sm_jax.request_detector import RequestDetector

THRESHOLD = 0.55
"""For the packaged ImageNet features. Chosen by eye on a few shelf photographs, not measured: other pictures
and other weights may need another value."""

SYSTEMS = {
    "os2d": "resnet50-caffe-c4",
    "crossmodal": "crossmodal-shapes",
    "ssm": "ssm-shelves",
    "scnet": "resnet50-caffe-c4",
}
"""What `load` knows, and the weights that it takes by itself."""


class Detector:
    """A matcher of pictures with its weights; `load` makes one.

    Attributes:
      notes: lines that say where the weights came from.
      compiles: programs made so far, by kind (see `Predictor`).
      threshold: what `detect` takes by itself.
    """

    threshold = THRESHOLD

    def __init__(
        self,
        model_parts,
        variables,
        *,
        query_size: int = 240,
        window: str = "",
        notes: Sequence[str] = (),
        **options,
    ):
        """Wrap `parts(config)` and variables; `query_size`, `window`: its own; `options`: of `Predictor`."""
        self.notes = list(notes)
        self._variables, self._query_size = variables, query_size
        self._own_templates = window == "target"
        self._predictor = Predictor(model_parts, **options)
        self._fingerprint = ""

    @property
    def compiles(self):
        return self._predictor.compiles

    @property
    def fingerprint(self) -> str:
        """Of the weights that encode queries; banks made with others, or for other templates, are refused."""
        if not self._fingerprint:
            part = {kind: tree.get("backbone", {}) for kind, tree in self._variables.items()}
            own = {"window": np.frombuffer(b"target", np.uint8)} if self._own_templates else {}
            self._fingerprint = fingerprint(part | own)
        return self._fingerprint

    def encode(
        self,
        queries,
        *,
        labels: str | Sequence[str] | None = None,
        rotations: bool = False,
        mirrored: bool = False,
        threshold: float | None = None,
    ) -> RequestBank:
        """Encode query pictures once, for any number of images.

        Args:
          queries: a picture, several (a list, a generator), or a dict label -> picture or several. A picture
            is a path, encoded bytes, a Pillow image, or a uint8 array (h, w, 3).
          labels: one for each picture of a list, or one for all; default: file names without ending, "query".
          rotations: also search the query turned by 90, 180 and 270 degrees.
          mirrored: also search its mirror image.
          threshold: score that detections of these queries must exceed, whatever `detect` is told.

        Raises:
          ConfigError: no query, or labels that do not fit; ImageError: a picture that cannot be used.
        """
        if threshold is not None and math.isnan(threshold):
            raise ConfigError("threshold: must be a number")
        augmentation = {(False, False): "", (True, False): "rotation90", (False, True): "horflip"}.get(
            (bool(rotations), bool(mirrored)), "horflip_rotation90"
        )
        requests = []
        for query in query_pictures.read(queries, labels):
            template = search.encode_views(
                self._predictor, self._variables, query.image, views=augmentation, side=self._query_size
            )
            requests.append(
                Request(
                    label=query.label,
                    template=template,
                    views=augmentation,
                    size=query.image.shape[:2],
                    threshold=threshold,
                    source=query.source,
                    preview=query_pictures.preview(query.image),
                )
            )
        return RequestBank(requests, fingerprint=self.fingerprint)

    def detect(
        self,
        images,
        queries,
        *,
        labels: str | Sequence[str] | None = None,
        scales: Sequence[float] | None = None,
        rotations: bool = False,
        mirrored: bool = False,
        threshold: float = THRESHOLD,
        max_detections: int = 100,
        iou: float = 0.3,
        across_labels: bool = False,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> list[Detections]:
        """Find every query in every image.

        Args:
          images: a picture or several (see `encode`).
          queries: as `encode` takes them, or a `RequestBank`. Queries of one label compete for detections.
          labels, rotations, mirrored: as in `encode`; a bank has its own.
          scales: the image is searched resized by each factor; an object is found where it is about 240
            pixels large then. Default: `search.automatic_scales`, from the sizes of image and queries.
          threshold: scores must be above it.
          max_detections: at most so many per label, the best ones (in all with `across_labels`).
          iou: of two detections of a label that overlap more, the better one stays.
          across_labels: detections of different labels compete too.
          progress: called as `progress(what, done, all)` while an image is searched: first with "levels",
            then with "matches" (queries x places).

        Returns:
          One `Detections` per image.

        Raises:
          ConfigError, ImageError, WeightsError: one line each; see `encode`.
        """
        bank = queries
        if not isinstance(bank, RequestBank):
            bank = self.encode(queries, labels=labels, rotations=rotations, mirrored=mirrored)
        elif labels is not None or rotations or mirrored:
            raise ConfigError(
                "labels, rotations and mirrored belong to encode(); this request bank is encoded already"
            )
        if not len(bank):
            raise ConfigError("no query: give at least one picture of what to look for")
        bank.check(self.fingerprint, what="pictures")
        if max_detections < 1 or not 0 <= iou <= 1 or math.isnan(threshold):
            raise ConfigError("max_detections must be 1 or more, iou within 0..1, threshold a number")
        options = {
            "score_threshold": threshold,
            "max_detections": max_detections,
            "iou": iou,
            "across_classes": across_labels,
        }
        scales = list(scales) if isinstance(scales, Iterator) else scales
        if scales is not None:
            scales = search.checked_scales([scales] if np.ndim(scales) == 0 else scales)
        return [self._search(image, bank, scales, options, progress) for image in listed(images)]

    def _search(self, picture, bank, scales, options, progress) -> Detections:
        name = str(picture) if isinstance(picture, (str, os.PathLike)) else "image"
        image = pictures.as_image(picture, name=name)
        size = image.shape[:2]
        scales = _checked_scales(scales, size, name, [request.size for request in bank])
        templates, ids, request_of, view_of = bank.templates()
        own = np.array([request.threshold for request in bank], float)  # None becomes NaN
        limits = np.where(np.isnan(own), options["score_threshold"], own)[request_of]
        if progress is not None:
            options |= {"progress": lambda what, done, total: progress(what, done, total or len(scales))}
        found = self._predictor.detect(
            self._variables,
            search.levels(image, scales),
            templates,
            class_ids=ids,
            image_size=size,
            shapes=[bank.requests[r].view_size(v) for r, v in zip(request_of, view_of, strict=True)],
            **options | {"score_threshold": limits},
        )
        return Detections.build(size, found, bank, request_of, view_of)


def load(
    name: str = "os2d",
    *,
    weights: str | os.PathLike | None = None,
    transform: str | os.PathLike = "",
    model: Mapping[str, Any] | None = None,
    **options,
) -> "Detector | PhraseDetector | RequestDetector | Matcher":
    """A matcher with pretrained weights.

    Args:
      name: the system: "os2d" finds what pictures show, "crossmodal" what phrases describe, "ssm" members of
        the class of which a picture shows one, "scnet" what of one image lies where in another.
      weights: a registered name (`sm-jax weights list`), a safetensors file, or the folder of a training run;
        default: those of `SYSTEMS`. For os2d, weights of a backbone alone give the sliding-window matcher:
        templates are not deformed. For scnet they are features without training (`features=` has
        others). For the rest, and for trained scnet, a file is one of `sm-jax weights export`.
      transform: os2d: weights of the transformation network, if they come from another file.
      model: overrides of `ModelConfig` fields, such as `{"head_dtype": "float16"}`; what the weights tell
        (os2d: depth, norm and version; the others: everything) is read from them. With weights of a backbone
        `{"window": "target"}` is the sliding window of the query's own shape (`systems.os2d.sliding`).
      **options: os2d: of `Predictor`, `step`, `chunk`, `top_k`; crossmodal: of `PhraseDetector`,
        `batch` and `proposals`; ssm: of `RequestDetector`, `batch`; scnet: of
        `correspondence.load`, `features`, `method`, `proposals` and others.

    Raises:
      ConfigError: an unknown system or model field; WeightsError: weights that are not there or do not fit.
    """
    if name not in SYSTEMS:
        raise ConfigError(f"no system called {name!r}; there are: {', '.join(SYSTEMS)}")
    if name == "scnet" and not transform:
        from sm_jax import correspondence

        return correspondence.load(weights, model, **options)
    weights = SYSTEMS[name] if weights is None else os.fspath(weights)
    if name != "os2d":
        if transform:
            raise ConfigError(f"transform: {name} has no transformation network; it is one of os2d")
        from sm_jax import phrase_detector, request_detector

        detector = {"crossmodal": phrase_detector, "ssm": request_detector}[name]
        return detector.load(weights, dict(model or {}), **options)
    config, variables, notes = pretrained.restore(weights, transform, dict(model or {}))
    network = variables["params"].get("transform")  # a sliding window has none
    untrained = network is None or not np.any(network["linear"]["kernel"])
    shape = {"query_size": config.query_size, "window": config.window}
    notes = _notes(notes, weights, transform, untrained)
    return Detector(parts(config, window=untrained), variables, **shape, notes=notes, **options)


def _checked_scales(scales, size, name, query_sizes) -> tuple[float, ...]:
    """The scales of one image: those asked for, if they can be used, or the automatic ones."""
    if scales is None:
        return search.automatic_scales(size, query_sizes)
    search.check_level_sizes(size, scales, name=name)
    if all(min(level) < SMALLEST_LEVEL for level in pyramid_sizes(size, scales)):
        raise ImageError(
            f"{name}: {size[1]}x{size[0]} at the scales {scales} is too small; use larger scales"
        )
    return scales


def _notes(notes, weights, transform, untrained) -> list[str]:
    """What a person who searches wants to know of the lines that say where the weights came from."""
    line = next((note for note in notes if "the run in " in note), f"weights: {weights}")
    if transform:
        line += f", transformation network: {transform}"
    if untrained:
        features = " packaged ImageNet features;" if weights == SYSTEMS["os2d"] else ""
        line += f":{features} templates are not deformed"
    return [line]
