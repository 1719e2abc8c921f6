"""Phrases on a split: proposals once per image, every phrase scored against them (cross-modal spec sec. 5).

Images are fitted into one size as in training, and boxes brought back to their own pixels.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sm_jax import boxes as box_ops
from sm_jax import data as data_lib
from sm_jax import draw
from sm_jax.data.crossmodal import check_phrases, prepare
from sm_jax.data.phrases import ABSENT, STANDARD
from sm_jax.errors import ConfigError, DataError, ImageError
from sm_jax.evaluators import proposals, report
from sm_jax.evaluators.damaged import Damaged
from sm_jax.evaluators.detection import voc

TEXTS = 64  # phrases that are encoded together


class Query(NamedTuple):
    """One phrase of an image.

    Attributes:
      kind: of `source.query_kinds`, but "absent" wherever the phrase means nothing in the image.
      phrase: the words.
      matches: (m,) bool: the annotated objects that it means.
      align: (n,) float32: the alignment of each proposal with it.
    """

    kind: str
    phrase: str
    matches: np.ndarray
    align: np.ndarray


class Scene(NamedTuple):
    """What was found in one image, in its own pixels.

    Attributes:
      index: of the image in the source.
      truth: (m, 4) annotated boxes.
      boxes, conf: (n, 4) and (n,): proposals by descending confidence.
      queries: its phrases.
    """

    index: int
    truth: np.ndarray
    boxes: np.ndarray
    conf: np.ndarray
    queries: list[Query]


def make(config: Any, *, progress=None) -> dict[str, "CrossModalEvaluator"]:
    """An evaluator for each split of `config.eval.splits`; all share one predictor.

    Raises:
      ConfigError: a section that cannot be used, or phrases longer than the model reads; DataError: no such
        data; TextError: a phrase without a given vector.
    """
    from sm_jax.systems.crossmodal.model import ModelConfig
    from sm_jax.systems.crossmodal.predict import Predictor, ProposalOptions

    options, model = config.eval, ModelConfig.create(config.model)
    predictor = Predictor(model, ProposalOptions.of_eval(options))
    encoder = data_lib.make_encoder(config)
    sources = {split: data_lib.make_phrase_source(config.data, split) for split in options.splits}
    for split, source in sources.items():
        check_phrases(source.phrases, encoder, split=split, unknown=True)
    return {
        split: CrossModalEvaluator(
            predictor,
            source,
            encoder=encoder,
            image_size=model.image_size,
            kinds=options.get("kinds") or None,
            batch_size=options.get("batch_size", 8),
            max_phrases=options.get("max_phrases", 8),
            max_images=options.get("max_images", 0),
            iou=options.get("match_iou", 0.5),
            align_threshold=options.get("align_threshold", 0.5),
            score_threshold=options.get("score_threshold", 0.5),
            iou_thresholds=options.get("iou_thresholds", (0.5,)),
            paper=config.data.source == "shapes",
            progress=progress,
        )
        for split, source in sources.items()
    }


def metric_names(config: Any) -> list[str]:
    """Every name that evaluation can give, without opening the data, which may lack some kinds of phrases."""
    plain, of_absent = ("precision", "recall", "iou"), ("false_alarms", "boxes")
    names = [name for name in proposals.DEFINITIONS if name not in (*plain, *of_absent, "AP@")]
    names += [f"AP@{threshold:.2f}" for threshold in config.eval.get("iou_thresholds", (0.5,))]
    prefixes = ("", "phrasing/", "pairs/") + ("flavour/",) * (config.data.source == "shelves")
    every = [*plain, *(f"{prefix}{name}" for prefix in prefixes for name in names)]
    every += [f"{ABSENT}/{name}" for name in of_absent]
    return [f"{split}/{name}" for split in config.eval.splits for name in every]


class CrossModalEvaluator:
    """Proposals, and what phrases find among them, on a source of images with phrases.

    Metrics and their names are those of `proposals.DEFINITIONS`; `run` yields their means.

    Attributes, after `run`:
      scenes: what was found, for each image that could be read.
      summaries: kind of query -> metric -> `proposals.Summary`; the metrics of all proposals, which no phrase
        changes, are under "standard".
      ap: kind of query -> IoU threshold -> average precision.
      unknown: words of the phrases that the model does not know.
    """

    def __init__(
        self,
        predictor: Any,
        source: Any,
        *,
        encoder: Any,
        image_size: tuple[int, int],
        kinds: Sequence[str] | None = None,
        batch_size: int = 8,
        max_phrases: int = 8,
        max_images: int = 0,
        iou: float = 0.5,
        align_threshold: float = 0.5,
        score_threshold: float = 0.5,
        iou_thresholds: Sequence[float] = (0.5,),
        paper: bool = False,
        progress=None,
    ):
        """Make an evaluator.

        Args:
          predictor: `systems.crossmodal.predict.Predictor`; shared between evaluators, they share programs.
          source: a `PhraseSource`.
          encoder: of phrases (see `data.make_encoder`).
          image_size: (height, width) that images are fitted into.
          kinds: of queries; default all that the source has.
          batch_size: images at a time; the last batch is filled up.
          max_phrases: phrases of each image that are scored together; more take further calls.
          max_images: at most so many evenly spaced images; 0: all.
          iou: a proposal matches an object if their IoU is greater.
          align_threshold: a proposal is aligned if its alignment is greater.
          score_threshold: a phrase that means nothing gives a false alarm if a score is greater.
          iou_thresholds: one average precision for each.
          paper: the table shows the paper's figures beside (for scenes like the paper's).
          progress: see `sm_jax.evaluators.make`.

        Raises:
          ConfigError: an option that cannot be used; DataError: no pictures.
        """
        if not len(source):
            raise DataError("nothing to evaluate: the split has no pictures")
        known = tuple(source.query_kinds)
        kinds = known if kinds is None else tuple(kinds)
        if not kinds or not set(kinds) <= {*known, ABSENT}:
            raise ConfigError(f"eval.kinds: {kinds} must be some of the kinds of phrases {known}")
        for name, value, least in (("batch_size", batch_size, 1), ("max_phrases", max_phrases, 1)):
            if value < least:
                raise ConfigError(f"eval.{name}: must be at least {least}, not {value}")
        if max_images < 0:
            raise ConfigError(f"eval.max_images: must not be negative, not {max_images}")
        if not iou_thresholds or not all(0 < threshold <= 1 for threshold in iou_thresholds):
            raise ConfigError(f"eval.iou_thresholds: some numbers within (0, 1], not {tuple(iou_thresholds)}")
        shares = {"match_iou": iou, "align_threshold": align_threshold, "score_threshold": score_threshold}
        for name, value in shares.items():
            if not 0 <= value < 1:
                raise ConfigError(f"eval.{name}: must lie in [0, 1), not {value}")
        self._predictor, self._source, self._encoder = predictor, source, encoder
        self._size, self._kinds = (int(image_size[0]), int(image_size[1])), kinds
        self._batch_size, self._max_phrases = batch_size, max_phrases
        self._iou, self._align, self._score = iou, align_threshold, score_threshold
        self._thresholds, self.paper = tuple(iou_thresholds), paper
        self._progress = progress or (lambda items, _: items)
        count = min(len(source), max_images or len(source))
        self._wanted = np.unique(np.linspace(0, len(source) - 1, count).round().astype(int)).tolist()
        self._damaged = Damaged()
        self.scenes: list[Scene] = []
        self.summaries: dict[str, dict[str, proposals.Summary]] = {}
        self.ap: dict[str, dict[float, float]] = {}
        self.unknown: list[str] = []

    @property
    def indices(self) -> list[int]:
        """The images that were read, by their indices in the source."""
        return [scene.index for scene in self.scenes]

    @property
    def limits(self) -> tuple[float, float, float]:
        """What the IoU of a match, the alignment of an aligned proposal and a false alarm's score exceed."""
        return self._iou, self._align, self._score

    @property
    def skipped(self) -> list[str]:
        """A line for each damaged picture, which was left out."""
        return self._damaged.lines

    def run(self, variables: Any) -> Iterator[tuple[str, float]]:
        """Detect and score; yields the means, those of other kinds than "standard" as "kind/metric"."""
        self._damaged = Damaged()
        asked = {index: self._queries_of(index) for index in self._wanted}
        phrases = sorted({phrase for queries in asked.values() for _, phrase, _ in queries})
        self.unknown = sorted({word for phrase in phrases for word in self._encoder.unknown(phrase)})
        texts = self._encode(variables, phrases)
        self.scenes = []
        starts = range(0, len(self._wanted), self._batch_size)
        for start in self._progress(starts, "images"):
            self.scenes += self._batch(
                variables, self._wanted[start : start + self._batch_size], asked, texts
            )
        if not self.scenes:
            raise DataError(f"nothing to evaluate: no picture can be read ({self.skipped[0]})")
        self._count()
        for kind in self.summaries:
            prefix = "" if kind == STANDARD else f"{kind}/"
            for name, summary in self.summaries[kind].items():
                yield prefix + name, summary.mean
            for threshold, value in self.ap.get(kind, {}).items():
                yield f"{prefix}AP@{threshold:.2f}", value

    def table(self) -> str:
        """Every metric, the paper's figures where they may be compared, and the definitions, as text."""
        return report.phrase_table(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything measured, as plain values."""
        return report.phrase_dict(self)

    def pictures(self, folder: Path, *, count: int) -> list[Path]:
        """Draw the first phrase of up to `count` evenly spaced images; returns the files.

        Drawn are the proposals whose alignment is above the threshold, with conf, align and score; the phrase
        is the title; dashed boxes are the objects that it means. The folder is made; files in it of the same
        name are replaced.
        """
        folder.mkdir(parents=True, exist_ok=True)
        scenes = [scene for scene in self.scenes if scene.queries]
        written = []
        for position in np.unique(np.linspace(0, len(scenes) - 1, min(count, len(scenes))).astype(int)):
            scene = scenes[position]
            query = scene.queries[0]
            rows = np.flatnonzero(query.align > self._align)
            conf, align = scene.conf[rows], query.align[rows]
            picture = draw.detections(
                self._source.image(scene.index),
                scene.boxes[rows],
                labels=[query.phrase] * len(rows),
                scores=conf * align,
                captions=[f"{c:.2f} x {a:.2f}\n= {c * a:.2f}" for c, a in zip(conf, align, strict=True)],
                truth=scene.truth[query.matches],
            )
            picture = draw.titled(picture, f"{query.phrase}  (conf x align = score)")
            written.append(folder / f"{scene.index:04d}.png")
            picture.save(written[-1])
        return written

    def _queries_of(self, index: int) -> list[tuple[str, str, np.ndarray]]:
        """(kind, phrase, matches) of an image; phrases without any match are of the kind "absent"."""
        found = []
        for kind in self._kinds:
            if kind not in self._source.query_kinds:
                continue
            phrases, matches = self._source.queries(index, kind)
            for phrase, means in zip(phrases, np.asarray(matches, bool), strict=True):
                found.append((kind if means.any() else ABSENT, phrase, means))
        return found

    def _encode(self, variables: Any, phrases: list[str]) -> dict[str, np.ndarray]:
        """Phrase -> its vector; batches of `TEXTS`, the last one filled up."""
        vectors = {}
        for start in range(0, len(phrases), TEXTS):
            some = phrases[start : start + TEXTS]
            filled = some + some[-1:] * (TEXTS - len(some))
            rows = self._predictor.texts(variables, self._encoder.encode(filled))
            vectors |= dict(zip(some, np.asarray(rows)[: len(some)], strict=True))
        return vectors

    def _batch(self, variables, indices, asked, texts) -> list[Scene]:
        images, read = [], []
        for index in indices:
            try:
                image = self._source.image(index)
            except ImageError as error:
                self._damaged.add("image", str(error), total=len(self._wanted))
                continue
            canvas, scale = prepare(image, self._size)
            images.append(canvas)
            read.append((index, image.shape[:2], scale))
        if not images:
            return []
        images += images[-1:] * (self._batch_size - len(images))
        found = self._predictor.proposals(variables, np.stack(images))
        aligns = self._align_all(
            variables, found["embeddings"], [asked[index] for index, _, _ in read], texts
        )
        scenes = []
        for row, (index, size, scale) in enumerate(read):
            boxes = box_ops.scale(np.asarray(found["boxes"][row]), 1 / scale)
            centre = (boxes[:, :2] + boxes[:, 2:]) / 2
            inside = (centre[:, 0] < size[1]) & (centre[:, 1] < size[0])  # none about the filling
            keep, boxes = np.asarray(found["valid"][row]) & inside, box_ops.clip(boxes, size)
            queries = [
                Query(*query, align[keep]) for query, align in zip(asked[index], aligns[row], strict=True)
            ]
            truth = np.asarray(self._source.annotation(index)["boxes"], np.float32).reshape(-1, 4)
            scenes.append(Scene(index, truth, boxes[keep], np.asarray(found["conf"][row])[keep], queries))
        return scenes

    def _align_all(self, variables, embeddings, asked, texts) -> list[list[np.ndarray]]:
        """For each image of the batch, the alignments (n,) of its proposals with each of its phrases."""
        results: list[list[np.ndarray]] = [[] for _ in asked]
        width = next(iter(texts.values())).shape[-1] if texts else 0
        for start in range(0, max(map(len, asked)), self._max_phrases):
            vectors = np.zeros((self._batch_size, self._max_phrases, width), np.float32)
            for row, queries in enumerate(asked):
                for place, (_, phrase, _) in enumerate(queries[start : start + self._max_phrases]):
                    vectors[row, place] = texts[phrase]
            align = np.asarray(self._predictor.scores(variables, embeddings, vectors))
            for row, queries in enumerate(asked):
                results[row].extend(align[row, : max(0, min(self._max_phrases, len(queries) - start))])
        return results

    def _count(self) -> None:
        """Fill `summaries` and `ap` from `scenes`."""
        units: dict[str, list] = {STANDARD: []}
        pairs: dict[str, list] = {}
        for scene in self.scenes:
            found = proposals.match(scene.boxes, scene.conf, scene.truth, iou=self._iou)
            units[STANDARD].append(proposals.proposal_ratios(found, objects=len(scene.truth)))
            for query in scene.queries:
                mine = units.setdefault(query.kind, [])
                if query.kind == ABSENT:
                    mine.append(proposals.absent_ratios(scene.conf, query.align, threshold=self._score))
                    continue
                mine.append(
                    proposals.alignment_ratios(
                        scene.boxes,
                        scene.conf,
                        query.align,
                        scene.truth,
                        query.matches,
                        found=found,
                        iou=self._iou,
                        threshold=self._align,
                    )
                )
                pairs.setdefault(query.kind, []).append(_voc_pair(scene, query))
        order = [kind for kind in (STANDARD, *self._kinds, ABSENT) if kind in units]
        self.summaries = {kind: proposals.summarize(units[kind]) for kind in dict.fromkeys(order)}
        self.ap = {
            kind: {
                threshold: voc(*zip(*pairs[kind], strict=True), iou_threshold=threshold).map
                for threshold in self._thresholds
            }
            for kind in self.summaries
            if kind in pairs
        }


def _voc_pair(scene: Scene, query: Query):
    """(detections, ground truth) of an image with one phrase, as one class."""
    truth = scene.truth[query.matches]
    found = {
        "boxes": scene.boxes,
        "scores": scene.conf * query.align,
        "labels": np.zeros(len(scene.conf), int),
    }
    return found, {"boxes": truth, "labels": np.zeros(len(truth), int)}
