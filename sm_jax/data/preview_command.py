"""`sm-jax data preview`: a picture sheet of a data set, or of the data of a config."""

import sys
from pathlib import Path
from typing import Any

from sm_jax.data.sources.files import outside
from sm_jax.errors import ConfigError

SUFFIXES = (".png", ".jpg", ".jpeg")


def run(arguments: Any) -> int:
    """What the parsed command line asks for; prints the sheet's path and returns the exit status.

    With `--config`, the data of that config go to the folder `--out`; without, those of `--data` into one
    picture.

    Raises:
      ConfigError, DataError.
    """
    if arguments.config:
        print(_of_config(arguments))
        return 0
    if arguments.out is None:
        raise ConfigError("preview: give the picture to write (sheet.png), or --config=FILE and --out=DIR")
    print(_of_data(Path(arguments.out), arguments))
    return 0


def _of_config(arguments: Any) -> Path:
    from sm_jax import data, platform

    if not arguments.folder:
        raise ConfigError("preview: --config needs --out=DIR, the folder to write to")
    platform.setup()
    from sm_jax.training import commandline  # after the platform is settled

    # The files in configs/ import each other; a console script does not see the folder that holds them.
    sys.path.append(str(Path(arguments.config.partition(".py")[0]).resolve().parent.parent))
    config = commandline.load_config(arguments.config)
    folder = Path(arguments.folder)
    if config.data.source not in data.GENERATED:
        outside(folder, config.data.source)
    if config.system == "scnet":
        raise ConfigError("preview: pairs with key-points have no sheet; evaluate.py draws some of them")
    if config.system == "crossmodal":
        from sm_jax.data import phrase_preview

        source = data.make_phrase_source(config.data, arguments.split)
        return phrase_preview.write(source, folder, count=arguments.n)
    from sm_jax.data.synthetic import preview

    return preview(data.make_source(config.data, arguments.split), folder / "sheet.png", n=arguments.n)


def _of_data(out: Path, arguments: Any) -> Path:
    from sm_jax.data import open_source
    from sm_jax.data.synthetic import ShelvesSource, preview

    if out.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{out}: the picture must be a .png or a .jpg")
    if arguments.data == "shelves":
        source = ShelvesSource(arguments.split)
    else:
        source = open_source(arguments.data, split=arguments.split)
        outside(out, arguments.data)
    if not out.parent.is_dir():
        raise ConfigError(f"{out}: there is no folder {out.parent}")
    return preview(source, out, n=arguments.n)
