"""Selective search and edge boxes of OpenCV's contributed modules, an optional extra.

Source: "Selective Search for Object Recognition" (IJCV 2013) and "Edge Boxes" (ECCV 2014) as OpenCV has
them; filters and constants from the SCNet specification, sec. 6.
"""

import numpy as np

from sm_jax.errors import ConfigError

INSTALL = "pip install 'sm_jax[proposals]'"
MODES = ("quality", "fast")
MIN_SIDE = 20  # of a box of selective search, in pixels
ALPHA, BETA, MIN_SCORE = 0.85, 0.95, 0.01  # of edge boxes


def selective_search(image: np.ndarray, *, mode: str = "quality") -> np.ndarray:
    """Groups of similar superpixels of several colour spaces; unranked.

    Args:
      image: uint8 RGB `(h, w, 3)`.
      mode: "quality", or "fast", which gives some 280 boxes in a picture of 300 pixels.

    Returns:
      `(k, 4)` int32 xyxy, half-open, without the boxes under 20 pixels wide or high (none, if the picture is
      that small).

    Raises:
      ConfigError: an unknown mode; OpenCV is not installed.
    """
    if mode not in MODES:
        raise ConfigError(f"selective search: mode={mode!r} is not one of {', '.join(MODES)}")
    cv2 = _cv2("selective_search")
    if min(image.shape[:2]) < MIN_SIDE:
        return np.zeros((0, 4), np.int32)
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
    search.switchToSelectiveSearchQuality() if mode == "quality" else search.switchToSelectiveSearchFast()
    boxes = _half_open(search.process())
    boxes = np.unique(boxes, axis=0)  # sorted: OpenCV's ranking is random
    return boxes[(boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(1)]


def edge_boxes(image: np.ndarray, n: int, *, min_score: float = MIN_SCORE) -> np.ndarray:
    """Boxes that enclose contours, the best first.

    The edges are the gradients of the blurred picture, thinned across their direction: the structured edge
    model of the paper is a separate download.

    Args:
      image: uint8 RGB `(h, w, 3)`.
      n: boxes wanted; up to `4 n` are returned, because filters follow.
      min_score: least score of a box.

    Returns:
      `(k, 4)` int32 xyxy, half-open.

    Raises:
      ConfigError: OpenCV is not installed.
    """
    cv2 = _cv2("edge_boxes")
    edges, direction = edge_map(image)
    if min(image.shape[:2]) < 3 or not edges.any():
        return np.zeros((0, 4), np.int32)
    finder = cv2.ximgproc.createEdgeBoxes(alpha=ALPHA, beta=BETA, minScore=min_score, maxBoxes=4 * n)
    boxes, _ = finder.getBoundingBoxes(edges, direction)
    return _half_open(boxes)


def edge_map(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Thinned edge strength in [0, 1] and direction of the edges' normals in [0, pi); float32 `(h, w)`."""
    from skimage import color, filters

    grey = filters.gaussian(color.rgb2gray(image), 1.0)
    down, right = filters.sobel_h(grey), filters.sobel_v(grey)
    strength, direction = np.hypot(down, right), np.arctan2(down, right) % np.pi
    padded = np.pad(strength, 1)
    rows, columns = np.indices(strength.shape) + 1
    step_x, step_y = np.rint(np.cos(direction)).astype(int), np.rint(np.sin(direction)).astype(int)
    ahead, behind = (padded[rows + s * step_y, columns + s * step_x] for s in (1, -1))
    thin = np.where((strength >= ahead) & (strength >= behind), strength, 0.0)
    top = thin.max()
    thin = thin / top if top > 1e-6 else np.zeros_like(thin)  # below: rounding of a constant picture
    direction = direction.astype(np.float32)
    direction[direction >= np.float32(np.pi)] = 0  # just below pi rounds up to it
    return thin.astype(np.float32), direction


def _half_open(xywh) -> np.ndarray:
    xywh = np.asarray(xywh, np.int32).reshape(-1, 4)
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)


def _cv2(method: str):
    try:
        import cv2
    except ImportError:
        raise ConfigError(f"proposals: the method {method!r} needs OpenCV; {INSTALL}") from None
    if not hasattr(cv2, "ximgproc"):
        raise ConfigError(
            f"proposals: the method {method!r} needs OpenCV's contributed modules, which the one installed "
            f"({cv2.__version__}) lacks; {INSTALL}"
        )
    return cv2
