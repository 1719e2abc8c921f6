"""SCNet, or an untrained method in its place, on the pairs of a data set; see `correspondence`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sm_jax import data as data_lib
from sm_jax.data import scnet
from sm_jax.data.sources import mask_pairs
from sm_jax.data.sources.pair_records import PairList, check_overlap
from sm_jax.errors import ConfigError, DataError, WeightsError
from sm_jax.evaluators import correspondence, correspondence_methods
from sm_jax.evaluators.correspondence import ALPHAS, CorrespondenceEvaluator
from sm_jax.evaluators.mask_transfer import MaskEvaluator
from sm_jax.systems.scnet import model
from sm_jax.training import restore_config
from sm_jax.weights import export, registry

NORMS = {"PF-PASCAL": ("scnet224",), "PF-WILLOW": ("bbox",)}
"""The normaliser under which results of a data set were published; of own pairs "bbox"."""
MODEL = "model"


def make(config: Any, *, progress=None) -> dict[str, CorrespondenceEvaluator | MaskEvaluator]:
    """An evaluator for each split of `config.eval.splits`; of Caltech-101 and PASCAL-Parts one, "test".

    Args:
      config: the whole config; read are `model`, `data` and of `eval`: `method` ("model", or "nam", "phm",
        "lom" on `features`: "hog", "pool", "embedding"), `centred`, `norms` (empty: the published one),
        `alphas`, `max_pairs` (0: all) and `force_overlap`.
      progress: see `evaluators.make`.

    Raises:
      ConfigError: options that cannot be used. DataError: no such data, or pairs that were trained on.
    """
    options = config.eval
    start, name = method(config)
    masked = mask_pairs.read(Path(config.data.source).expanduser())
    if masked is not None:
        notes = overlap(config, masked)
        pairs = subset(masked, options.get("max_pairs", 0))
        return {"test": MaskEvaluator(start, pairs, name=name, notes=notes, progress=progress)}
    found = {}
    for split in options.splits:
        pairs = data_lib.make_pairs(config.data, split)
        notes = overlap(config, pairs)
        left_out, run = config.data.get("leave_out", ""), config.get("trained")
        if left_out and run and run.source != config.data.source:
            notes.append(
                f"pairs of the category {left_out!r} only, of every split, as the run left it out; "
                "--config.data.leave_out= for the split itself"
            )
        found[split] = CorrespondenceEvaluator(
            start,
            subset(pairs, options.get("max_pairs", 0)),
            name=name,
            norms=tuple(options.get("norms", ())) or norms(pairs),
            alphas=tuple(options.get("alphas", ALPHAS)),
            notes=notes,
            progress=progress,
        )
    return found


def metric_names(config: Any) -> list[str]:
    """Every name that evaluation can give."""
    options, found = config.eval, []
    for split in options.splits:
        chosen = tuple(options.get("norms", ())) or norms(data_lib.make_pairs(config.data, split))
        names = correspondence.metric_names(chosen, options.get("alphas", ALPHAS))
        found += [f"{split}/{name}" for name in names]
    return found


def method(config: Any) -> tuple[Callable[[Any], correspondence.Match], str]:
    """The method that `config.eval` names, and what to call it.

    Raises:
      ConfigError: an unknown method or features.
    """
    options = config.eval
    net, proposals = model.ModelConfig.create(config.model), scnet.proposal_options(config.data)
    regions = f"{proposals.method} {proposals.count}"
    if options.method == MODEL:
        return correspondence_methods.scnet(net, proposals), f"SCNet-{net.variant} {net.backbone}, {regions}"
    centre = options.get("centred", True)
    start = correspondence_methods.untrained(options.method, options.features, net, proposals, centred=centre)
    features = "HOG" if options.features == "hog" else f"{net.backbone} {options.features}"
    centred = "" if centre or options.features == "embedding" else ", not centred"
    return start, f"{options.method.upper()} {features}{centred}, {regions}"


def norms(pairs: PairList) -> tuple[str, ...]:
    """The normaliser that goes with a data set."""
    return NORMS.get(pairs.kind, ("bbox",))


def subset(pairs: Sequence[Any], count: int) -> list[Any]:
    """At most `count` evenly spaced pairs; 0: all.

    Raises:
      ConfigError: a negative number.
    """
    if count < 0:
        raise ConfigError(f"eval.max_pairs: must not be negative, not {count}")
    places = np.linspace(0, len(pairs) - 1, min(count, len(pairs)) or len(pairs)).round().astype(int)
    return [pairs[place] for place in np.unique(places)]


def check(config: Any) -> None:
    """Raise what `make` does, such as for pairs to evaluate on that are trained on."""
    make(config)


def overlap(config: Any, pairs: PairList | Sequence[mask_pairs.MaskPair]) -> list[str]:
    """Lines on pairs that were trained on too; refuses those without `eval.force_overlap`.

    What was trained on is `config.trained`, the section `data` of the run whatever options of the evaluation
    change in `data`, or without a run `data` itself; and what the runs that it started from trained on. A
    method on "hog" or "pool" is not trained.

    Raises:
      DataError: an overlap.
    """
    if config.eval.method != MODEL and config.eval.features != "embedding":
        return []
    notes, sections = [], [config.trained] if config.get("trained") else []
    if not sections and isinstance(pairs, PairList):  # nothing trains on masks
        sections = [config.data]
    try:
        sections += _of_starts(config)
    except (ConfigError, WeightsError) as error:
        notes.append(f"an overlap with what the start was trained on was not looked for: {error}")
    for section in sections:
        try:
            trained = data_lib.make_pairs(section, "train")
        except DataError as error:
            notes.append(f"an overlap with the training data was not looked for: {error}")
            continue
        notes += check_overlap(trained, pairs, by="pairs", force=config.eval.get("force_overlap", False))
        if not isinstance(pairs, PairList):  # PASCAL-Parts has the pictures of PF-PASCAL in pairs of its own
            notes += check_overlap(trained, pairs, by="images", force=True)
    return list(dict.fromkeys(notes))


def _of_starts(config: Any) -> list[Any]:
    """The sections `data` of the run or file that `config` started from, of its start, and so on."""
    sections, seen = [], set()
    start = config.get("init", {}).get("model", "")
    while start and start not in seen:
        seen.add(start)
        path = registry.resolve(start)
        found = restore_config(path) if path.is_dir() else export.read_config(path)
        if found is None or "data" not in found:
            break
        sections.append(found.data)
        start = found.get("init", {}).get("model", "")
    return sections
