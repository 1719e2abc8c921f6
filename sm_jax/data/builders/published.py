"""The published data sets of OS2D as TFDS folders of ArrayRecord files (see `sm_jax.data.published`)."""

import logging
import tempfile
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
      ConfigError: an unknown name or split, `folder` inside the data set's own folder, one that
        cannot be made, or already built.
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
    about = (dataset.name, dataset.nominal, dataset.eval_scale, dataset.views, dataset.protocol)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{target}: cannot be made ({error.strerror})") from error
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=target) as unfinished:
        built = builders.build_sources({split: source for split, (source, _) in found.items()}, unfinished)
        facts.write(built, facts.Facts(*about))
        place = target / built.relative_to(unfinished)
        place.parent.mkdir(exist_ok=True)
        built.rename(place)  # only now is it there: without its facts it would be read at a wrong scale
    return target
