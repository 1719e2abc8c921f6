"""Non-maximum suppression of one class's candidates from a whole pyramid, ours and PyTorch's."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import torch_os2d as eager
from benchmarks.measure import Call, Program, compiled
from benchmarks.peers import jax_call
from benchmarks.subjects import Level, Peers
from sm_jax import boxes as box_ops
from sm_jax.ops.nms import nms, nms_chunked

IOU, KEPT = 0.3, 1000


def candidates(peers: Peers, levels: list[Level], outputs: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4) in pixels of the first level and scores (n,) of class 0, level after level, as published.

    `outputs` are our head's, per level a list of chunks.
    """
    boxes, scores = [], []
    for level, parts in zip(levels, outputs, strict=True):
        found = np.asarray(parts[0].boxes, np.float32)[0, 0].reshape(-1, 4)
        found = box_ops.clip(found, level.size)
        factor = np.divide(levels[0].size[::-1], level.size[::-1]).astype(np.float32)
        some = (found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1])
        boxes.append(box_ops.scale(found, factor)[some])
        scores.append(np.asarray(parts[0].scores, np.float32)[0, 0].reshape(-1)[some])
    return np.concatenate(boxes), np.concatenate(scores)


def calls(peers: Peers, boxes: np.ndarray, scores: np.ndarray) -> tuple[dict[str, Call], Program]:
    """By name: "exact" keeps what greedy suppression keeps, "published" works in blocks of 10,000."""
    on_jax = jnp.asarray(boxes), jnp.asarray(scores)
    on_torch = tuple(torch.from_numpy(array.copy()).to(peers.device) for array in (boxes, scores))
    program = compiled(lambda b, s: nms(b, s, iou=IOU, size=KEPT), *on_jax)
    exact = {"chunk": max(1, len(scores))}
    return {
        "ours exact, NumPy": Call(lambda: nms_chunked(boxes, scores, iou=IOU, **exact), lambda kept: kept),
        f"ours exact, best {KEPT}, on the device": jax_call(lambda: program.call(*on_jax)),
        "eager exact": peers.torch_call(lambda: eager.greedy_nms(*on_torch, IOU)),
        "ours published, NumPy": Call(lambda: nms_chunked(boxes, scores, iou=IOU), lambda kept: kept),
        "eager published": peers.torch_call(lambda: eager.blocked_nms(*on_torch, IOU)),
    }, program


def agree(results: dict[str, Any]) -> dict[str, bool]:
    """Whether ours keep the same boxes in the same order as PyTorch's."""
    exact, published = (results[f"eager {name}"].cpu().numpy() for name in ("exact", "published"))
    indices, valid = (np.asarray(array) for array in results[f"ours exact, best {KEPT}, on the device"])
    return {
        "exact": bool(np.array_equal(results["ours exact, NumPy"], exact)),
        "on the device": bool(np.array_equal(indices[valid], exact[:KEPT])),
        "published": bool(np.array_equal(results["ours published, NumPy"], published)),
        "kept_exact": len(exact),
        "kept_published": len(published),
    }
