"""The published data sets of OS2D as TFDS folders of ArrayRecord files (see `sm_jax.data.published`)."""

import logging
from collections.abc import Sequence
from pathlib import Path

from sm_jax.data import builders, published
from sm_jax.data.builders import facts
from sm_jax.data.sources.files import outside
from sm_jax.errors import ConfigError

_log = logging.getLogger("sm_jax.data")


def build(name: str, manual_dir: str | Path, folder: str | Path, *, splits: Sequence[str] = ()) -> Path:
    """Builds a published data set into `folder`/`name`, which is what `data.source` takes.

    Pictures are stored as the files they are. How the data set is searched (nominal size, scale, views of the
    class pictures) is stored beside them, and scale and views are taken from there.

    Args:
      name: of `published.DATASETS`.
      manual_dir: the published files (see `Published.get`); nothing is written there.
      folder: where to.
      splits: which; none: those that the paper uses (`Published.splits`).

    Raises:
      ConfigError: an unknown name or split, `folder` inside `manual_dir`, or already built.
      DataError: a file that is missing, damaged or of another form.
    """
    dataset = published.find(name)
    target = outside(Path(folder) / name, published.root(dataset, manual_dir))
    if builders.find(target):
        raise ConfigError(f"{target}: is built already; remove it to build it again")
    found = published.open_sources(name, manual_dir, splits=splits)
    for _, remark in found.values():
        if remark:
            _log.warning("%s", remark)
    built = builders.build_sources({split: source for split, (source, _) in found.items()}, target)
    about = (dataset.name, dataset.nominal, dataset.eval_scale, dataset.views, dataset.protocol)
    facts.write(built, facts.Facts(*about))
    return target
