"""Whitening computed from descriptors, as a start of the learned layer. NumPy, float64 inside.

Both give (kernel, bias) such that `x @ kernel + bias` is the whitened descriptor before normalisation. The
covariance is shrunk towards a multiple of the identity, because there are hardly more training pictures than
channels.
"""

import numpy as np

STARTS = ("random", "pca", "pairs")
SHRINKAGE = 0.05


def pca(descriptors: np.ndarray, *, dim: int, shrinkage: float = SHRINKAGE) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of equal variance.

    Args:
      descriptors: (n, d).
      dim: components kept, those of largest variance.
      shrinkage: weight of the identity in the covariance, within 0..1.

    Returns:
      kernel f32 (d, dim), bias f32 (dim,). Source: "Negative evidences and co-occurences in image retrieval:
      the benefit of PCA and whitening" (ECCV 2012).
    """
    x = np.asarray(descriptors, np.float64)
    mean = x.mean(axis=0)
    values, vectors = np.linalg.eigh(_shrunk((x - mean).T @ (x - mean) / len(x), shrinkage))
    order = np.argsort(-values)[:dim]
    return _layer(vectors[:, order] / np.sqrt(values[order]), mean)


def pairs(
    descriptors: np.ndarray, first: np.ndarray, second: np.ndarray, *, dim: int, shrinkage: float = SHRINKAGE
) -> tuple[np.ndarray, np.ndarray]:
    """Discriminative whitening: differences within pairs get equal variance, then the directions that vary
    most are kept.

    Args:
      descriptors: (n, d).
      first, second: (m,) indices of matching descriptors.
      dim, shrinkage: as of `pca`; shrunk is the covariance of the differences.

    Returns:
      kernel f32 (d, dim), bias f32 (dim,). Source: "Fine-tuning CNN Image Retrieval with No Human Annotation"
      (PAMI 2018), sec. 3.4 (Lw).
    """
    x = np.asarray(descriptors, np.float64)
    mean, apart = x[first].mean(axis=0), x[first] - x[second]
    whiten = np.linalg.inv(np.linalg.cholesky(_shrunk(apart.T @ apart / len(apart), shrinkage))).T
    spread = (x - mean) @ whiten
    values, vectors = np.linalg.eigh(spread.T @ spread)
    return _layer(whiten @ vectors[:, np.argsort(-values)[:dim]], mean)


def _shrunk(covariance: np.ndarray, shrinkage: float) -> np.ndarray:
    size = len(covariance)
    level = max(np.trace(covariance) / size, 1e-12)
    return (1 - shrinkage) * covariance + shrinkage * level * np.eye(size)


def _layer(kernel: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return kernel.astype(np.float32), (-mean @ kernel).astype(np.float32)
