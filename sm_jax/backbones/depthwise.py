"""Depthwise 3x3 convolution that is fast on CPU, forward and backward.

XLA for CPU runs a convolution with one channel per group, and still more its gradients, many times slower
than memory allows (25 to 60 times for a batch of MobileNet's maps). Here it is the sum of nine shifted maps,
each times one entry of the kernel, in one elementwise loop; so is the gradient of the map, and the gradient
of the kernel is nine sums over all cells. With stride 2 the maps are the even and odd rows and columns.
"""

import functools

import jax
import jax.numpy as jnp

from sm_jax.backbones.channels import channel_sums
from sm_jax.backbones.common import halve

PADDINGS = ("torch", "tf_same")


def borders(length: int, stride: int, padding: str) -> tuple[int, int]:
    """Cells that a 3-wide window wants before and after an axis; `"tf_same"` as TensorFlow."""
    if padding == "torch":
        return 1, 1
    total = max((-(-length // stride) - 1) * stride + 3 - length, 0)
    return total // 2, total - total // 2


def depthwise(x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: str = "torch") -> jax.Array:
    """Depthwise 3x3 convolution.

    Args:
      x: `(b, h, w, c)`.
      kernel: `(3, 3, 1, c)`; cast to the type of `x`.
      stride: 1 or 2.
      padding: `"torch"` (1 on every side) or `"tf_same"`.

    Returns:
      `(b, ceil(h / stride), ceil(w / stride), c)`, type of `x`.
    """
    before = tuple(borders(length, stride, padding)[0] for length in x.shape[1:3])
    return _depthwise(x, kernel.astype(x.dtype), stride, before)


def _taps(stride: int, before: int) -> list[tuple[int, int]]:
    """Of each kernel row (or column): which phase of the input it reads, and how many cells further on."""
    return [((i - before) % stride, (i - before) // stride) for i in range(3)]


def _phases(x: jax.Array, stride: int) -> dict[tuple[int, int], jax.Array]:
    """The maps of even and odd rows and columns (one zero appended to odd sizes); with stride 1 the map."""
    if stride == 1:
        return {(0, 0): x}
    b, h, w, c = x.shape
    if h % 2 or w % 2:
        x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
    pairs = x.reshape(b, halve(h), 2, halve(w), 2, c)
    return {(p, q): pairs[:, :, p, :, q] for p in (0, 1) for q in (0, 1)}


def _moved(x: jax.Array, rows: tuple[int, int], columns: tuple[int, int]) -> jax.Array:
    """Zeros around a map: (before, after) in rows and in columns."""
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)])


def _range(taps: list[tuple[int, int]]) -> tuple[int, int]:
    offsets = [offset for _, offset in taps]
    return min(offsets), max(offsets)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x: jax.Array, kernel: jax.Array, stride: int, before: tuple[int, int]) -> jax.Array:
    rows, columns = (_taps(stride, n) for n in before)
    (top, bottom), (left, right) = _range(rows), _range(columns)
    phases = _phases(x, stride)
    height, width = phases[0, 0].shape[1:3]
    total = None
    for i, (p, down) in enumerate(rows):
        for j, (q, across) in enumerate(columns):
            # Products first, zeros around them, the border cut off at the end: then all is one loop.
            part = phases[p, q] * kernel[i, j][None, None]
            part = _moved(part, (bottom - down, down - top), (right - across, across - left))
            total = part if total is None else total + part
    return total[:, bottom : bottom + height, right : right + width]


def _forward(x, kernel, stride, before):
    return _depthwise(x, kernel, stride, before), (x, kernel)


def _backward(stride, before, saved, gradient):
    x, kernel = saved
    return _to_input(gradient, kernel, x.shape, stride, before), _to_kernel(gradient, x, stride, before)


def _to_input(gradient, kernel, shape, stride, before):
    rows, columns = (_taps(stride, n) for n in before)
    (top, bottom), (left, right) = _range(rows), _range(columns)
    b, h, w, c = shape
    height, width = gradient.shape[1:3]
    phases: dict[tuple[int, int], jax.Array] = {}
    for i, (p, down) in enumerate(rows):
        for j, (q, across) in enumerate(columns):
            part = gradient * kernel[i, j][None, None]
            part = _moved(part, (down - top, bottom - down), (across - left, right - across))
            phases[p, q] = phases[p, q] + part if (p, q) in phases else part
    phases = {key: x[:, -top : height - top, -left : width - left] for key, x in phases.items()}
    if stride == 1:
        return phases[0, 0]
    pairs = jnp.stack([jnp.stack([phases[p, q] for q in (0, 1)], axis=3) for p in (0, 1)], axis=2)
    return pairs.reshape(b, 2 * height, 2 * width, c)[:, :h, :w]


def _to_kernel(gradient, x, stride, before):
    rows, columns = (_taps(stride, n) for n in before)
    phases = _phases(x, stride)
    height, width = gradient.shape[1:3]

    def product(x, gradient):
        return x.astype(jnp.float32) * gradient.astype(jnp.float32)

    def cut(x, down, across):
        """The cells of a map that, so many further on, still lie in it."""
        return x[:, max(0, down) : height + min(0, down), max(0, across) : width + min(0, across)]

    sums = [
        channel_sums(product, cut(phases[p, q], down, across), cut(gradient, -down, -across))
        for p, down in rows
        for q, across in columns
    ]
    return jnp.stack(sums).reshape(3, 3, 1, x.shape[-1]).astype(x.dtype)


_depthwise.defvjp(_forward, _backward)
