"""Inference of fixed shapes: maps once per image, requests once each, every pair of them compared."""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sm_jax.data import transforms
from sm_jax.errors import DataError
from sm_jax.systems.chunks import counted, in_chunks, padded
from sm_jax.systems.ssm import model
from sm_jax.systems.ssm.targets import corners

Array = jax.Array

MIN_SIDE = 8
"""Pixels that a request has at least along either side."""
MIN_DEVIATION = 2
"""Grey levels of standard deviation that some channel of a request has at least: sensor noise has less."""


def check_request(picture: np.ndarray, *, name: str = "request") -> None:
    """Refuse a picture, uint8 (h, w, 3), that cannot say what to look for.

    Raises:
      DataError: a side below 8 pixels, or one colour all over (`MIN_DEVIATION`).
    """
    height, width = picture.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise DataError(
            f"{name}: {width} x {height} pixels are too few to look for; give a picture of the object of at "
            f"least {MIN_SIDE} x {MIN_SIDE}"
        )
    if picture.std(axis=(0, 1)).max() < MIN_DEVIATION:
        raise DataError(
            f"{name}: is blank (one colour all over: no channel's standard deviation reaches {MIN_DEVIATION} "
            "grey levels); give a picture of the object to look for"
        )


def check_image(image: np.ndarray, *, name: str = "image") -> None:
    """Refuse an image, (h, w, 3), of less than one cell.

    Raises:
      DataError: a side below 16 pixels.
    """
    height, width = image.shape[:2]
    if min(height, width) < model.STRIDE:
        raise DataError(
            f"{name}: {width} x {height} pixels are less than one cell of the map ({model.STRIDE} x "
            f"{model.STRIDE}); give a larger image"
        )


def prepare_request(picture: np.ndarray, size: tuple[int, int], *, name: str = "request") -> np.ndarray:
    """What the network sees of a request: uint8 (h, w, 3) RGB, letterboxed, to f32 (*size, 3) BGR minus 127.

    Raises:
      DataError: see `check_request`.
    """
    check_request(picture, name=name)
    canvas, _, _ = transforms.letterbox_centred(picture, size)
    return transforms.bgr_minus_mean(canvas)


def decode(out: Mapping[str, Array]) -> tuple[Array, Array]:
    """Coverage "... h w" (0 to 1) and boxes "... h w 4" (pixels, not clipped) of what a head says."""
    cells = out["logits"].shape[-2:]
    corner = corners(cells).reshape(*[1] * (out["logits"].ndim - 2), *cells, 4)
    return jax.nn.sigmoid(out["logits"]), out["offsets"] + corner


def compare(
    config: model.ModelConfig, variables: dict[str, Any], features: Array, requests: Array
) -> tuple[Array, Array]:
    """Every image with every request: coverage f32 "b q h w" and boxes f32 "b q h w 4"; traceable.

    Args:
      config: the model.
      variables: `params`; only the head is read. Instead of its layers it may hold what `model.collapse`
        makes of them. It is collapsed here unless it has ReLUs.
      features: "b h w 1024".
      requests: "q h w 1024", or "q 1024" with the gap fusions.
    """
    if not config.head_relu:
        part = variables["params"]["head"]
        linear = part if "kernel" in part else model.collapse(config, variables)
        return decode(jax.vmap(lambda one: model.head_many(config, linear, one, requests))(features))

    def one(request):  # 1024-wide layers for every pair: one request at a time
        repeated = jnp.broadcast_to(request[None], (features.shape[0], *request.shape))
        return decode(model.head(config, variables, features, repeated))

    coverage, boxes = jax.lax.map(one, requests)
    return coverage.swapaxes(0, 1), boxes.swapaxes(0, 1)


def predict(
    config: model.ModelConfig,
    variables: dict[str, Any],
    images: Mapping[str, Array],
    encoded: Mapping[str, Array],
) -> dict[str, Array]:
    """Coverage f32 "b q h w" and boxes f32 "b q h w 4" of images and encoded requests ("q ..."), as a dict.

    Args:
      config: the model.
      variables: `params`.
      images: as `inputs` of `model.extract`.
      encoded: of `model.encode`.
    """
    features = model.extract(config, variables, images)
    coverage, boxes = compare(config, variables, features, encoded["request"])
    return {"coverage": coverage, "boxes": boxes}


class Kept(NamedTuple):
    """Encoded requests on the device, of `Predictor.keep`: padded chunks, and how many each holds."""

    chunks: tuple[Array, ...]
    counts: tuple[int, ...]


class Predictor:
    """Runs a model with a bounded number of compiled programs; answers are NumPy arrays.

    Images go through in chunks of at most `chunk`, requests in chunks of at most `request_chunk`; the last
    chunk is padded to a power of two. So there are at most log2 + 1 programs per shape for the features and
    for the requests, and for the search one per pair of both. The head is collapsed once per set of
    variables, unless it has ReLUs.

    Attributes:
      compiles: how often "features", "requests", "collapse" and "search" were traced, so compiled or read
        from the cache.
    """

    def __init__(
        self, config: model.ModelConfig, *, chunk: int | None = None, request_chunk: int | None = None
    ):
        """Make a predictor.

        Args:
          config: the model.
          chunk: images per call, a power of two; None chooses 1 on a CPU and 32 elsewhere.
          request_chunk: requests per call, a power of two; None chooses 8 with the aligned fusions, whose
            requests are maps, and 256 with the others.
        """
        chunk = chunk or (1 if jax.default_backend() == "cpu" else 32)
        request_chunk = request_chunk or (8 if config.aligned else 256)
        for name, value in (("chunk", chunk), ("request_chunk", request_chunk)):
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name} must be a power of two, is {value}")
        self.config = config
        self.compiles: Counter[str] = Counter()
        self._chunk, self._request_chunk = chunk, request_chunk
        self._linear: tuple[Any, Any] = (None, None)

        def features(variables, image):
            return model.extract(config, variables, {"image": image})

        def requests(variables, request):
            return model.encode(config, variables, {"request": request})["request"]

        self._features = jax.jit(counted(self.compiles, "features", features))
        self._requests = jax.jit(counted(self.compiles, "requests", requests))
        self._collapse = jax.jit(
            counted(self.compiles, "collapse", functools.partial(model.collapse, config))
        )
        self._search = jax.jit(counted(self.compiles, "search", functools.partial(compare, config)))

    def features(self, variables, images: np.ndarray) -> np.ndarray:
        """Maps (b, H/16, W/16, 1024) of images f32 (b, H, W, 3), BGR minus 127, sides multiples of 16.

        Raises:
          DataError: images of less than one cell.
        """
        for image in images[:1]:
            check_image(image)
        run = functools.partial(self._features, variables)
        return in_chunks(run, np.asarray(images, np.float32), self._chunk)

    def encode(self, variables, pictures: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """What is kept of requests: (n, h/4, w/4, 1024), with the gap fusions (n, 1024).

        Args:
          variables: `params`.
          pictures: uint8 (h, w, 3) RGB of any sizes, which are letterboxed to `config.request_size`; or f32
            (n, h, w, 3), prepared by `prepare_request`.

        Raises:
          DataError: a picture that is blank or tiny.
        """
        ready = isinstance(pictures, np.ndarray) and pictures.dtype.kind == "f"
        size = self.config.request_size
        if not ready:
            named = ((picture, f"request {i + 1} of {len(pictures)}") for i, picture in enumerate(pictures))
            pictures = [prepare_request(picture, size, name=name) for picture, name in named]
            pictures = np.stack(pictures) if pictures else np.zeros((0, *size, 3), np.float32)
        # Requests pass the branch one image chunk at a time: it costs as much as that of the images.
        run = functools.partial(self._requests, variables)
        return in_chunks(run, np.asarray(pictures, np.float32), self._chunk)

    def keep(self, requests: np.ndarray) -> Kept:
        """Encoded requests (n, ...) on the device, for the search in many images.

        What `search` is given as NumPy it copies there for each call; aligned requests, maps, take longer to
        copy than to search with.
        """
        parts = list(self._parts(np.asarray(requests)))
        chunks = jax.device_put([chunk for chunk, _ in parts])
        return Kept(tuple(chunks), tuple(count for _, count in parts))

    def _parts(self, requests: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        for first in range(0, len(requests), self._request_chunk):
            yield padded(requests[first : first + self._request_chunk], self._request_chunk)

    def search(
        self, variables, features: np.ndarray, requests: np.ndarray | Kept
    ) -> tuple[np.ndarray, np.ndarray]:
        """Coverage (b, q, h, w) and boxes (b, q, h, w, 4) of images' `features` and encoded `requests`.

        Boxes are in pixels of the image that the features are of, not clipped. For requests that meet many
        images see `keep`.
        """
        features = np.asarray(features)
        kept = isinstance(requests, Kept)
        total = sum(requests.counts) if kept else len(requests)
        head = {"params": {"head": self._head(variables)}}
        cells = features.shape[1:3]
        coverage = np.zeros((len(features), total, *cells), np.float32)
        boxes = np.zeros((*coverage.shape, 4), np.float32)
        for start in range(0, len(features), self._chunk):
            images = slice(start, start + self._chunk)
            part, used = padded(features[images], self._chunk)
            part, first = jnp.asarray(part), 0
            parts = zip(*requests, strict=True) if kept else self._parts(np.asarray(requests))
            for chunk, count in parts:
                found, some = self._search(head, part, chunk), slice(first, first + count)
                coverage[images, some], boxes[images, some] = (np.asarray(x)[:used, :count] for x in found)
                first += count
        return coverage, boxes

    def _head(self, variables) -> Any:
        """The head of `variables`, collapsed if it can be; kept while the same one comes again."""
        part = variables["params"]["head"]
        if self.config.head_relu:
            return part
        if self._linear[0] is not part:
            self._linear = part, self._collapse({"params": {"head": part}})
        return self._linear[1]
