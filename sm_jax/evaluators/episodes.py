"""OS2D on episodes: each searches its own pictures for its own classes; results are averaged over episodes.

The protocol of ImageNet-RepMet (Karlinsky et al., CVPR 2019; OS2D spec sec. 13): AP of an episode is that of
all its detections pooled (`AP_joint`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sm_jax import data as data_lib
from sm_jax.data.sources.classes import of_classes
from sm_jax.errors import ConfigError, DataError
from sm_jax.evaluators import os2d, report
from sm_jax.systems.os2d.model import ModelConfig
from sm_jax.systems.os2d.predict import Predictor, parts


def make(config: Any, *, progress=None) -> dict[str, "EpisodeEvaluator"]:
    """An evaluator for each split of `config.eval.splits`; with `eval.max_images` of so many episodes.

    Raises:
      ConfigError: another system than os2d; DataError: a split without episodes.
    """
    if config.system != "os2d":
        raise ConfigError(f"eval.protocol: episodes are searched by os2d, not by {config.system}")
    predictor = Predictor(parts(ModelConfig.create(config.model)), top_k=None)
    scale = data_lib.image_scale(config.data)
    return {
        split: EpisodeEvaluator(
            data_lib.make_source(config.data, split),
            lambda source: os2d.of_source(config, predictor, source, scale=scale),
            max_episodes=config.eval.max_images,
            progress=progress,
        )
        for split in config.eval.splits
    }


def metric_names(config: Any) -> list[str]:
    """As `evaluators.os2d.metric_names`."""
    return os2d.metric_names(config)


def episodes(source: data_lib.Source) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pictures and classes (indices of the source) of each episode: the pictures that list the same classes.

    Raises:
      DataError: a picture that is searched for all classes.
    """
    found: dict[tuple[int, ...], list[int]] = {}
    for index in range(len(source)):
        listed = source.listed(index) if hasattr(source, "listed") else None
        if listed is None:
            raise DataError(
                "eval.protocol=episodes needs pictures that name the classes of their episode, as `sm-jax "
                "data build repmet` makes them"
            )
        found.setdefault(tuple(sorted(np.asarray(listed).tolist())), []).append(index)
    return [(np.array(found[labels]), np.array(labels, np.int64)) for labels in sorted(found)]


class EpisodeEvaluator:
    """Means over episodes of what `DetectionEvaluator` measures of each.

    Args:
      source: the pictures of all episodes.
      evaluator: makes the evaluator of one.
      max_episodes: at most so many evenly spaced episodes; 0: all.
      progress: see `sm_jax.evaluators.make`.

    Attributes, after `run`:
      measured: metric -> its value in each episode.
      skipped: a line for each damaged picture.
    """

    def __init__(self, source: data_lib.Source, evaluator, *, max_episodes: int = 0, progress=None):
        if max_episodes < 0:
            raise ConfigError(f"eval.max_images: must not be negative, not {max_episodes}")
        self._source, self._evaluator = source, evaluator
        every = episodes(source)
        count = min(len(every), max_episodes or len(every))
        places = np.unique(np.linspace(0, len(every) - 1, count).round().astype(int))
        self._episodes = [every[place] for place in places.tolist()]
        self._progress = progress or (lambda items, _: items)
        self.measured: dict[str, list[float]] = {}
        self.skipped: list[str] = []

    def run(self, variables: Any) -> Iterator[tuple[str, float]]:
        """Search and score; yields the mean of each metric over the episodes where it is defined."""
        self.measured, self.skipped = {}, []
        for pictures, labels in self._progress(self._episodes, "episodes"):
            evaluator = self._evaluator(_Episode(self._source, pictures, labels))
            for name, value in evaluator.run(variables):
                self.measured.setdefault(name, []).append(value)
            self.skipped += evaluator.skipped
        for name, values in self.measured.items():
            defined = [value for value in values if not np.isnan(value)]
            yield name, float(np.mean(defined)) if defined else float("nan")

    def table(self) -> str:
        """Mean and standard error of each metric, as text."""
        lines = [report.counted(len(self._episodes), "episode")]
        lines.append(f"  {'':<16} {'mean':>6} {'error':>6}")
        for name, values in self.measured.items():
            mean, error = _mean(values)
            lines.append(f"  {name:<16} {mean:6.3f} {error:6.3f}")
        lines.append("  error: standard deviation over the root of the number of episodes")
        return "\n".join(lines + report.left_out(self.skipped))

    def to_dict(self) -> dict[str, Any]:
        """The value of each metric in each episode, as plain values; what is undefined is null."""
        values = {name: [report.number(value) for value in found] for name, found in self.measured.items()}
        return {"episodes": len(self._episodes), "skipped": self.skipped, "values": values}

    def pictures(self, folder: Path, *, count: int) -> list[Path]:
        """None: an episode is too small to look at."""
        del folder, count
        return []


class _Episode:
    """`Source` of the pictures of one episode."""

    def __init__(self, source: data_lib.Source, pictures: np.ndarray, labels: np.ndarray):
        self._source = of_classes(source, [source.class_names[label] for label in labels.tolist()])
        self._pictures = pictures.tolist()
        self.class_names, self.num_classes = self._source.class_names, self._source.num_classes

    def __len__(self) -> int:
        return len(self._pictures)

    def annotation(self, index: int) -> dict[str, Any]:
        return self._source.annotation(self._pictures[index])

    def image(self, index: int) -> np.ndarray:
        return self._source.image(self._pictures[index])

    def query(self, label: int) -> np.ndarray:
        return self._source.query(label)


def _mean(values: list[float]) -> tuple[float, float]:
    defined = np.array([value for value in values if not np.isnan(value)])
    if not len(defined):
        return float("nan"), float("nan")
    return float(defined.mean()), float(defined.std() / np.sqrt(len(defined)))
