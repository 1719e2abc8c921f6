"""Makes sloppy code fail: 8 CPU devices, no silent rank promotion, absl flags parsed, warnings are errors."""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # see sm_jax.platform.setup
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "sm_jax_test_cache"))

import hypothesis
import jax
import pytest
from absl import flags

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
hypothesis.settings.register_profile("ci", derandomize=True)  # the same examples in every run
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")
flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl flags


@pytest.fixture(autouse=True)
def _default_matmul_precision():
    """Golden tolerances are f32; accelerators would otherwise use TF32-class products."""
    with jax.default_matmul_precision("highest"):
        yield
