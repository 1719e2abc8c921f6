"""Does the answer of SSM depend on where the object lies? The same object at two places of an empty image.

    python -m benchmarks.ssm_position --weights runs/NAME [--objects 60] [--shift 160]

Objects are class pictures of the generated shelves' test split, whose classes no training saw, on the grey
that is 0 to the network; the request is the same picture, a little smaller. An object lies once `--shift`
pixels (of 512; less on smaller images in proportion) left of where it lies the other time. With
`product_aligned` a cell of the image meets the request's cell of the same place, so the answer depends on it;
with the gap fusions it should not (specification, sec. 10).
"""

import argparse
import json
import sys
from typing import NamedTuple

import numpy as np

from sm_jax import boxes as box_ops
from sm_jax import platform
from sm_jax.errors import run_main


class Position(NamedTuple):
    """Means over objects.

    Attributes:
      coverage: mean coverage inside the object's box, (left, right).
      difference: mean over the object's cells of the absolute difference of coverage between the two places.
      found: share of the objects with a detection of IoU > 0.5, (left, right).
      both: share found at both places.
    """

    coverage: tuple[float, float]
    difference: float
    found: tuple[float, float]
    both: float


def measure(config, variables, pictures, *, shift: int = 160, threshold: float = 0.5) -> Position:
    """Put every picture at two places and search it.

    Args:
      config, variables: of an SSM (`systems.ssm.model`).
      pictures: uint8 (h, w, 3) each, objects.
      shift: pixels between the places on an image 512 wide.
      threshold: of the detections.
    """
    from sm_jax.data import images, transforms
    from sm_jax.systems.ssm import model, postprocess
    from sm_jax.systems.ssm.predict import Predictor

    predictor = Predictor(config)
    height, width = config.image_size
    step = round(shift * width / 512 / model.STRIDE)  # whole cells
    size = height * 3 // 8 // model.STRIDE * model.STRIDE
    top = (height - size) // 2 // model.STRIDE * model.STRIDE
    middle = (width - size) // 2 // model.STRIDE
    lefts = [(middle - step // 2) * model.STRIDE, (middle - step // 2 + step) * model.STRIDE]
    coverage, difference, found = [], [], []
    for picture in pictures:
        h, w = picture.shape[:2]
        factor = size / max(h, w)
        fitted = images.resize(picture, (max(16, round(h * factor)), max(16, round(w * factor))))
        smaller = images.resize(picture, (max(16, h * 3 // 4), max(16, w * 3 // 4)))
        request = predictor.encode(variables, [smaller])
        maps, hits = [], []
        for left in lefts:
            canvas = np.full((height, width, 3), 127, np.uint8)
            canvas[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
            box = np.float32([[left, top, left + fitted.shape[1], top + fitted.shape[0]]])
            features = predictor.features(variables, transforms.bgr_minus_mean(canvas)[None])
            values, boxes = predictor.search(variables, features, request)
            rows = slice(top // model.STRIDE, -(-(top + fitted.shape[0]) // model.STRIDE))
            columns = slice(left // model.STRIDE, -(-(left + fitted.shape[1]) // model.STRIDE))
            maps.append(values[0, 0][rows, columns])
            detected, _ = postprocess.detect(values[0, 0], boxes[0, 0], threshold=threshold)
            hits.append(bool(len(detected)) and bool((box_ops.iou(detected, box) > 0.5).any()))
        coverage.append([part.mean() for part in maps])
        difference.append(np.abs(maps[0] - maps[1]).mean())
        found.append(hits)
    found = np.array(found, bool)
    return Position(
        tuple(np.mean(coverage, axis=0).tolist()),
        float(np.mean(difference)),
        tuple(found.mean(axis=0).tolist()),
        float(found.all(axis=1).mean()),
    )


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True, help="folder of a run, or an exported file")
    parser.add_argument("--objects", type=int, default=60)
    parser.add_argument("--shift", type=int, default=160, help="pixels on an image 512 wide")
    arguments = parser.parse_args(argv)
    platform.setup()
    from sm_jax import pretrained
    from sm_jax.data.synthetic import ShelvesSource
    from sm_jax.systems.ssm.model import ModelConfig

    trained = pretrained.trained(arguments.weights, system="ssm")
    config = ModelConfig.create(trained.config.model)
    source = ShelvesSource("test", num_scenes=1, num_classes=arguments.objects)
    pictures = (source.query(label) for label in range(arguments.objects))
    result = measure(config, trained.variables, pictures, shift=arguments.shift)
    print(json.dumps({"fusion": config.fusion, "objects": arguments.objects} | result._asdict()))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
