"""The toy's programs are tiny, and the tests compile the same ones again and again: fast, and cached."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _compile_fast(request):
    """All but `test_resume` (its subject is the programs that a person gets) compile without optimization."""
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_disable_most_optimizations", "test_resume" not in request.module.__name__)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    jax.config.update("jax_disable_most_optimizations", False)
