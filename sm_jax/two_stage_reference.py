"""What `sm_jax.two_stage` computes, as plain NumPy loops over the real boxes: for reading and for its tests.

Nothing is padded here: arguments and results hold real boxes only, and everything is float64.
"""

import numpy as np

from sm_jax import boxes as box_lib
from sm_jax.two_stage import WEIGHTS


def proposals(logits, codes, anchors, *, image_size, candidates, iou, size, min_side):
    """Boxes (k, 4) and confidences (k,), k <= size, as `two_stage.proposals`."""
    height, width = image_size
    x, y = (anchors[:, 0] + anchors[:, 2]) / 2, (anchors[:, 1] + anchors[:, 3]) / 2
    order = np.argsort(-np.where((x < width) & (y < height), logits, -np.inf), kind="stable")
    order = [a for a in order if x[a] < width and y[a] < height][:candidates]
    boxes = box_lib.clip(box_lib.decode(codes, anchors, weights=(1, 1, 1, 1)), image_size)
    order = [a for a in order if min(boxes[a, 2:] - boxes[a, :2]) >= min_side]
    kept = _suppress(boxes, order, iou)[:size]
    return boxes[kept], 1 / (1 + np.exp(-logits[kept]))


def match(candidates, boxes, *, difficult, positive_iou, negative_iou):
    """For each candidate the number of its annotated box, -1 (negative) or -2 (ignored)."""
    low, high = negative_iou
    found = []
    for candidate in candidates:
        overlaps = box_lib.iou(candidate[None], boxes)[0] if len(boxes) else np.zeros(1)
        best = int(np.argmax(overlaps))
        if overlaps[best] >= positive_iou and not difficult[best]:
            found.append(best)
        else:
            found.append(-1 if low <= overlaps[best] < high else -2)
    return np.array(found, np.int64)


def roi_loss(logits, codes, classes, target_codes, *, weight, beta):
    """Loss, and its two parts, of the valid slots (s, ...) of one batch, as `two_stage.roi_loss`."""
    cls_loss = box_loss = 0.0
    for row, code, number, target in zip(logits, codes, classes, target_codes, strict=True):
        cls_loss += np.log(np.sum(np.exp(row - row.max()))) + row.max() - row[number]
        if number == 0:
            continue
        for error in np.abs((code if code.ndim == 1 else code[number - 1]) - target):
            box_loss += 0.5 * error**2 / beta if error < beta else error - beta / 2
    count = max(len(logits), 1)
    return cls_loss / count + weight * box_loss / count, cls_loss / count, box_loss / count


def decode(codes, rois, image_size):
    """Boxes of codes (n, 4) or (n, c, 4) against rois (n, 4), as the boxes of `two_stage.decode_rois`."""
    if codes.ndim == 3:
        return np.stack([decode(codes[:, k], rois, image_size) for k in range(codes.shape[1])], axis=1)
    height, width = image_size
    found = []
    for (dx, dy, dw, dh), (x1, y1, x2, y2) in zip(codes / np.asarray(WEIGHTS), rois, strict=True):
        w, h = x2 - x1, y2 - y1
        x, y = (x1 + x2) / 2 + dx * w, (y1 + y2) / 2 + dy * h
        w, h = (side * np.exp(min(d, box_lib.MAX_LOG_RATIO)) / 2 for side, d in ((w, dw), (h, dh)))
        corners = np.clip([x - w, y - h, x + w, y + h], 0, [width, height, width, height])
        found.append(corners)
    return np.array(found).reshape(-1, 4)


def detections(boxes, scores, *, iou, score_threshold, max_detections):
    """List of (score, label, index) by descending score, equal ones by label, as `two_stage.detections`."""
    found = []
    for label in range(scores.shape[1]):
        own = boxes if boxes.ndim == 2 else boxes[:, label]
        order = np.argsort(-scores[:, label], kind="stable")
        order = [i for i in order if scores[i, label] > score_threshold and box_lib.nonempty(own[i])]
        found += [(scores[i, label], label, i) for i in _suppress(own, order, iou)[:max_detections]]
    return sorted(found, key=lambda row: -row[0])[:max_detections]


def _suppress(boxes, order, iou):
    """Greedy suppression of the boxes numbered `order`, best first."""
    kept = []
    for number in order:
        if all(box_lib.iou(boxes[number][None], boxes[k][None])[0, 0] <= iou for k in kept):
            kept.append(number)
    return kept
