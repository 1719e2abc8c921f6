"""What to look for, encoded once: a `Request` per query picture or phrase; a `RequestBank` keeps them."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from sm_jax.errors import ConfigError, WeightsError
from sm_jax.systems.os2d.views import views

FORMAT = "sm_jax request bank 1"


@dataclasses.dataclass(frozen=True)
class Request:
    """One query picture, or one phrase, ready to be searched.

    Attributes:
      label: the name that detections carry; requests of one label compete with each other (one suppression).
      template: (v, t, t, d) float32, one per view; of a phrase its embedding (d,); for ssm the map of the
        picture (1, t, t, d), or its mean (1, 1, 1, d); of a sliding window of its own shape (v, k, d).
      views: which copies of the picture were encoded: "", "rotation90", "horflip" or "horflip_rotation90".
      size: (height, width) of the picture in pixels; of a phrase (0, 0).
      threshold: detections of this request need a higher score; None: the caller's threshold.
      source: where the picture came from (a path), "" if unknown.
      preview: (h, w, 3) uint8, a small copy of the picture for reports.
      text: the phrase, "" for a picture.
    """

    label: str
    template: np.ndarray
    views: str = ""
    size: tuple[int, int] = (0, 0)
    threshold: float | None = None
    source: str = ""
    preview: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((1, 1, 3), np.uint8))
    text: str = ""

    def view_size(self, view: int) -> tuple[int, int]:
        """(height, width) of the picture turned as in this view."""
        return self.size[::-1] if views(self.views)[view].quarter_turns % 2 else self.size


class RequestBank:
    """An immutable list of requests that were encoded with the same weights.

    Attributes:
      requests: the requests, in order.
      fingerprint: of the weights that encoded them (`fingerprint`).
    """

    def __init__(self, requests: Iterable[Request], *, fingerprint: str = ""):
        self.requests = tuple(requests)
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    def __add__(self, other: "RequestBank") -> "RequestBank":
        """Both lists. Raises `WeightsError` when other weights encoded `other`."""
        if other.fingerprint != self.fingerprint:
            raise WeightsError(
                "the request banks were encoded with different weights; encode the pictures again"
            )
        return RequestBank(self.requests + other.requests, fingerprint=self.fingerprint)

    def check(self, fingerprint: str, *, what: str) -> None:
        """Raise `WeightsError` unless weights of this fingerprint encoded the requests (`what`: in words)."""
        if self.fingerprint != fingerprint:
            raise WeightsError(
                "the request bank was encoded with other weights, or for another system (--model); "
                f"encode its {what} again"
            )

    @property
    def labels(self) -> list[str]:
        """The labels, each once, in order of first appearance: index = class id of a detection."""
        return list(dict.fromkeys(request.label for request in self.requests))

    def templates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Every view of every picture: templates (n, t, t, d), class ids, request and view indices."""
        ids = {label: index for index, label in enumerate(self.labels)}
        rows = [(ids[r.label], i, v) for i, r in enumerate(self.requests) for v in range(len(r.template))]
        table = np.array(rows, np.int64).reshape(-1, 3)
        stacked = [request.template for request in self.requests]
        return np.concatenate(stacked) if stacked else np.zeros((0, 1, 1, 1), np.float32), *table.T

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file, replacing it at once or not at all; raises `ConfigError` if it cannot."""
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        tensors, entries = {}, []
        for index, request in enumerate(self.requests):
            tensors[f"{index}/template"] = np.ascontiguousarray(request.template, np.float32)
            tensors[f"{index}/preview"] = np.ascontiguousarray(request.preview, np.uint8)
            entries.append(
                {
                    "label": request.label,
                    "views": request.views,
                    "size": list(request.size),
                    "threshold": request.threshold,
                    "source": request.source,
                    "text": request.text,
                }
            )
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        metadata = {"format": FORMAT, "fingerprint": self.fingerprint, "requests": json.dumps(entries)}
        try:
            save_file(tensors, partial, metadata=metadata)
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{path}: the request bank cannot be written ({error})") from error

    @classmethod
    def load(cls, path: str | os.PathLike) -> "RequestBank":
        """Read what `save` wrote. Raises `ConfigError` when the file is missing or is something else."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as archive:
                metadata = archive.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ConfigError(f"{path}: not a request bank (no '{FORMAT}' in its header)")
                entries, fingerprint = json.loads(metadata["requests"]), metadata["fingerprint"]
                requests = [
                    Request(
                        label=entry["label"],
                        template=archive.get_tensor(f"{index}/template"),
                        views=entry["views"],
                        size=tuple(entry["size"]),
                        threshold=entry["threshold"],
                        source=entry["source"],
                        preview=archive.get_tensor(f"{index}/preview"),
                        text=entry.get("text", ""),
                    )
                    for index, entry in enumerate(entries)
                ]
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{path}: cannot be read as a request bank ({error})") from error
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}: damaged request bank ({error})") from error
        return cls(requests, fingerprint=fingerprint)


def fingerprint(tree) -> str:
    """A short hash of every name and value of a tree of arrays (nested dicts)."""
    digest = hashlib.sha256()

    def add(path, node):
        if isinstance(node, dict):
            for key in sorted(node):
                add(f"{path}/{key}", node[key])
        else:
            array = np.asarray(node)
            digest.update(f"{path} {array.dtype} {array.shape};".encode())
            digest.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)

    add("", tree)
    return digest.hexdigest()[:32]
