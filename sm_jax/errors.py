"""Failures a person can do something about: one clear line saying what, where, and what to do."""

import os
import sys
from collections.abc import Callable


class SmJaxError(Exception):
    """Base of every failure that is shown as one line, without a traceback."""


class ConfigError(SmJaxError):
    """A config key, value or combination that cannot be run."""


class DataError(SmJaxError):
    """A data set, annotation or file that cannot be used."""


class ImageError(DataError):
    """A picture that cannot be decoded safely."""


class TextError(SmJaxError):
    """A phrase that a model cannot read."""


class WeightsError(SmJaxError):
    """Weights that are missing, damaged or do not fit the model."""


def run_main(main: Callable[[], int | None]) -> int:
    """Run `main`; return its exit code, 2 after a `SmJaxError` (shown as `error: ...`), 130 after Ctrl-C."""
    try:
        return main() or 0
    except SmJaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(
            "error: the device is out of memory; take smaller batches, crops or scales, half precision, "
            "or model.remat=True in training",
            file=sys.stderr,
        )
        return 2
