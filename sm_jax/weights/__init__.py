"""Pretrained weights: names, files, strict loading, and converters for published formats."""

from sm_jax.weights.checkpoints import convert_file
from sm_jax.weights.formats import Converted, convert
from sm_jax.weights.io import load_variables, save_variables
from sm_jax.weights.registry import REGISTRY, Weights, resolve
from sm_jax.weights.start import initialize, merge

__all__ = [
    "REGISTRY",
    "Converted",
    "Weights",
    "convert",
    "convert_file",
    "initialize",
    "load_variables",
    "merge",
    "resolve",
    "save_variables",
]
