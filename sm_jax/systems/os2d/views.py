"""Views of a query (turned and mirrored copies), and what an alignment means for the picture itself."""

from typing import NamedTuple

import numpy as np

from sm_jax.errors import ConfigError

AUGMENTATIONS = {
    "": (1, False),
    "rotation90": (4, False),
    "horflip": (1, True),
    "horflip_rotation90": (4, True),
}  # name -> (quarter turns tried, mirrored copies too)


class View(NamedTuple):
    """A copy of a query: turned counter-clockwise by `quarter_turns` * 90 degrees, then mirrored in x."""

    quarter_turns: int = 0
    mirrored: bool = False

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The copy of `image` (h, w, ...)."""
        turned = np.rot90(image, self.quarter_turns, axes=(0, 1))
        return np.ascontiguousarray(turned[:, ::-1] if self.mirrored else turned)

    @property
    def matrix(self) -> np.ndarray:
        """(2, 2) float64: unit coordinates (-1..1, y down) of the picture -> those of the copy."""
        turn = np.linalg.matrix_power(np.array([[0.0, 1.0], [-1.0, 0.0]]), self.quarter_turns % 4)
        return np.diag([-1.0 if self.mirrored else 1.0, 1.0]) @ turn


def views(augmentation: str) -> tuple[View, ...]:
    """The views of a query, in the published order: all turns, then all turns mirrored (OS2D spec sec. 3).

    Raises:
      ConfigError: the name is none of `AUGMENTATIONS`.
    """
    if augmentation not in AUGMENTATIONS:
        names = ", ".join(repr(name) for name in AUGMENTATIONS)
        raise ConfigError(f"no class view called {augmentation!r}; there are: {names}")
    turns, mirror = AUGMENTATIONS[augmentation]
    return tuple(
        View(turn, flip) for flip in ((False, True) if mirror else (False,)) for turn in range(turns)
    )


def query_views(image: np.ndarray, augmentation: str) -> list[np.ndarray]:
    """The copies of `image` (h, w, c) that `augmentation` asks for; quarter turns swap height and width."""
    return [view.apply(image) for view in views(augmentation)]


def query_to_image(corners: np.ndarray, view: View, query_size: tuple[int, int]) -> np.ndarray:
    """The alignment as an affine map from pixels of the query picture to pixels of the image.

    Args:
      corners: (..., 4, 2) xy pixels of the image: where the view's grid corners (top left, top right, bottom
        left, bottom right) came to lie.
      view: the copy of the query that was matched.
      query_size: (height, width) of the query picture, before turning.

    Returns:
      (..., 2, 3) float64: [x, y] of the image = matrix @ [x, y, 1] of the query (pixel edges on integers).
    """
    corners = np.asarray(corners, np.float64)
    centre = corners.mean(axis=-2)
    columns = np.stack(
        [(corners[..., 1, :] - corners[..., 0, :]) / 2, (corners[..., 2, :] - corners[..., 0, :]) / 2],
        axis=-1,
    )
    height, width = query_size
    linear = columns @ view.matrix @ np.diag([2.0 / width, 2.0 / height])
    shift = centre - linear @ np.array([width / 2, height / 2])
    return np.concatenate([linear, shift[..., None]], axis=-1)


def angle_and_scale(transform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rotation nearest to an affine map, in degrees, and its change of size.

    Args:
      transform: (..., 2, 3) from `query_to_image`.

    Returns:
      angle (...,): in (-180, 180], counter-clockwise as seen; of the mirrored query where the map mirrors.
      scale (...,): square root of the change of area: 1 where the object has the query's size in pixels.
    """
    linear = np.asarray(transform, np.float64)[..., :2]
    determinant = np.linalg.det(linear)
    flip = np.where(determinant < 0, -1.0, 1.0)
    a, b = linear[..., 0, 0] * flip, linear[..., 0, 1]
    c, d = linear[..., 1, 0] * flip, linear[..., 1, 1]
    angle = -np.degrees(np.arctan2(c - b, a + d))
    return np.where(angle <= -180.0, angle + 360.0, angle) + 0.0, np.sqrt(np.abs(determinant))
