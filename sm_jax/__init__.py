"""sm_jax: semantic matching in JAX/Flax. Show it one example, it finds it everywhere.

    import sm_jax

    detector = sm_jax.load("os2d")
    (found,) = detector.detect("shelf.jpg", "product.jpg")
    found.draw("shelf.jpg").save("found.png")

Names are imported on first use: `import sm_jax` and any one of `sm_jax.ops` need nothing but jax.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "load": "api",
    "Detector": "api",
    "PhraseDetector": "phrase_detector",
    "RequestDetector": "request_detector",
    "Matcher": "correspondence",
    "Correspondence": "correspondence",
    "Detections": "detections",
    "PhraseDetections": "detections",
    "RequestDetections": "detections",
    "Request": "requests",
    "RequestBank": "requests",
    "SmJaxError": "errors",
}
_MODULES = ("boxes", "points", "ops", "losses", "systems", "data", "weights", "training", "evaluators")
__all__ = [*_EXPORTS, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name, or one of the public modules, when it is asked for (PEP 562)."""
    if name in _EXPORTS:
        value = getattr(importlib.import_module(f"sm_jax.{_EXPORTS[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"sm_jax.{name}")
    else:
        raise AttributeError(f"module 'sm_jax' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
