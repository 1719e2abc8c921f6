"""Makes sloppy code fail: 8 CPU devices, no silent rank promotion, absl flags parsed, warnings are errors."""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # see sm_jax.platform.setup
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "sm_jax_test_cache"))
# A process of `pytest -n` has a folder of its own: it could read what another has half written.
os.environ["JAX_COMPILATION_CACHE_DIR"] += "/" + os.environ.get("PYTEST_XDIST_WORKER", "")

import hypothesis
import jax
import pytest
from absl import flags

QUICK_COMPILES = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 11):  # a fatal error for XLA as of 0.11
    QUICK_COMPILES.append("--xla_cpu_use_fusion_emitters=false")

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
hypothesis.settings.register_profile("ci", derandomize=True)  # the same examples in every run
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")
flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl flags


def pytest_configure(config):
    """The default suite spends its time in the compiler, so it does little there; with -m, all it does.

    A value of XLA_FLAGS from outside stays: `XLA_FLAGS= python -m pytest` compiles what a person gets.
    """
    if config.option.markexpr == "not slow":
        os.environ.setdefault("XLA_FLAGS", " ".join(QUICK_COMPILES))


@pytest.fixture(autouse=True)
def _default_matmul_precision():
    """Golden tolerances are f32; accelerators would otherwise use TF32-class products."""
    with jax.default_matmul_precision("highest"):
        yield
