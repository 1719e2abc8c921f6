"""Arithmetic of OS2D in floating-point operations (a multiplication and an addition count as two)."""

from sm_jax.backbones.resnet import BLOCKS
from sm_jax.systems.os2d.model import FEATURES

TEMPLATE = 15


def features(size: tuple[int, int], depth: int = 50) -> float:
    """ResNet to C4 on one picture of `size` (height, width)."""
    height, width = (-(-side // 2) for side in size)
    total = 2 * 49 * 3 * 64 * height * width
    height, width = -(-height // 2), -(-width // 2)
    channels = 64
    for stage, blocks in enumerate(BLOCKS[depth][:3], start=1):
        inner = 32 * 2**stage
        for block in range(blocks):
            before = height * width
            if stage > 1 and block == 0:
                height, width = -(-height // 2), -(-width // 2)
            after = height * width
            total += 2 * channels * inner * before + 2 * 9 * inner * inner * after + 8 * inner * inner * after
            if block == 0:
                total += 8 * channels * inner * after
            channels = 4 * inner
    return float(total)


def head(locations: int, classes: int, parameters: int) -> float:
    """Correlation, TransformNet (plain convolutions) and the 121 bilinear samples of every pair."""
    points = TEMPLATE**2
    convolutions = 49 * points * 128 + 25 * 128 * 64 + 25 * 64 * parameters
    return float(locations) * classes * (2 * points * FEATURES + 2 * convolutions + 121 * 22)
