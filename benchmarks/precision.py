"""How far scores and boxes move when parts of OS2D are computed in half precision.

    python -m benchmarks.precision [--scenes 6] [--classes 4] [--json FILE]

Two inputs: "planted", random features with copies of the templates in them, which reach high scores; and
"scenes", generated shelves through the packaged ResNet-50, with pictures of classes that are on the shelf.
TransformNet is random around the identity, unless --transform names a file. float32 everywhere is the
reference. The results stand in docs/performance.md. Any device; sums are float32 in every policy.
"""

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not __package__:  # python benchmarks/precision.py
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import material
from sm_jax.data.images import fit_to_area, resize
from sm_jax.data.synthetic import ShelvesSource
from sm_jax.data.transforms import normalize
from sm_jax.errors import run_main
from sm_jax.systems.os2d import model
from sm_jax.systems.os2d.predict import pad_to

POLICIES = {
    "head float16": {"head_dtype": "float16"},
    "head bfloat16": {"head_dtype": "bfloat16"},
    "features bfloat16": {"dtype": "bfloat16"},
    "features bfloat16, head float16": {"dtype": "bfloat16", "head_dtype": "float16"},
    "features bfloat16, head bfloat16": {"dtype": "bfloat16", "head_dtype": "bfloat16"},
}
QUERY_SIDE = 512  # pixels that every class picture is padded to
SANE = 1000.0  # pixels; boxes of nearly singular transformations are larger and say nothing


def planted(rng: np.random.Generator, classes: int, *, cells=(38, 50), copies: int = 6) -> tuple[Any, Any]:
    """Features (1, h, w, 1024) of noise and `copies` of every template; templates (c, 15, 15, 1024)."""
    features = np.abs(rng.normal(0, 0.1, (1, *cells, model.FEATURES))).astype(np.float32)
    shapes = np.maximum(rng.normal(size=(classes, 5, 5, model.FEATURES)), 0).astype(np.float32)
    shapes = shapes.repeat(3, axis=1).repeat(3, axis=2)  # neighbours resemble each other, as in real features
    for shape in shapes:
        for _ in range(copies):
            top, left = (int(rng.integers(0, side - 14)) for side in cells)
            features[0, top : top + 15, left : left + 15] += rng.uniform(0.5, 2.0) * shape
    return jnp.asarray(features), jnp.asarray(shapes / np.linalg.norm(shapes, axis=-1, keepdims=True))


def scenes(count: int, classes: int) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Generated scenes (1, h, w, 3), and up to `classes` class pictures each as `image` and `size`."""
    if not count:
        return
    source = ShelvesSource("val", num_scenes=count, image_size=(480, 640), object_size=(150.0, 260.0))
    for index in range(count):
        present = dict.fromkeys(source.annotation(index)["labels"].tolist())
        queries = [source.query(label) for label in list(present)[:classes]]
        queries = [resize(query, fit_to_area(query.shape[:2])) for query in queries]
        queries += [queries[-1]] * (classes - len(queries))
        yield (
            normalize(source.image(index))[None],
            {
                "image": np.stack([pad_to(normalize(query), (QUERY_SIDE,) * 2) for query in queries]),
                "size": np.asarray([query.shape[:2] for query in queries], np.int32),
            },
        )


def difference(ours: model.HeadOutput, exact: model.HeadOutput) -> dict[str, np.ndarray]:
    """|score| and |box| differences of every cell, and whether the best cell of each class is the same."""
    boxes = np.asarray(exact.boxes)
    sane = (np.abs(boxes) < SANE).all(-1)
    best = [np.asarray(o.scores).reshape(*o.scores.shape[:2], -1).argmax(-1).ravel() for o in (ours, exact)]
    return {
        "score": np.abs(np.asarray(ours.scores) - np.asarray(exact.scores)).ravel(),
        "box": np.abs(np.asarray(ours.boxes) - boxes).max(-1)[sane],
        "same": best[0] == best[1],
    }


def summary(parts: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Maximum and 99th percentile of the differences, and the share of classes with the same best cell."""
    score, box, same = (np.concatenate([part[key] for part in parts]) for key in ("score", "box", "same"))
    return {
        "score_max": float(score.max()),
        "score_p99": float(np.quantile(score, 0.99)),
        "box_max_px": float(box.max()),
        "box_p99_px": float(np.quantile(box, 0.99)),
        "same_best": float(same.mean()),
        "values": len(score),
    }


def run(options: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Input -> policy -> `summary`."""
    exact = model.ModelConfig(simplified=options.model == "v1", inverse=options.model == "v2")
    rng = np.random.default_rng(0)
    variables = jax.device_put(
        material.variables(exact, rng, backbone=options.backbone, transform=options.transform)
    )
    configs = {"float32": exact} | {
        name: dataclasses.replace(exact, **dtypes) for name, dtypes in POLICIES.items()
    }

    @functools.partial(jax.jit, static_argnums=0)
    def head(config, features, template):
        return model.head(config, variables, features, None, template)[0]

    @functools.partial(jax.jit, static_argnums=0)
    def whole(config, image, requests):
        features = model.extract(config, variables, image)[0]
        template = model.encode(config, variables, requests)["template"]
        return model.head(config, variables, features, None, template)[0]

    def compare(inputs, function, names):
        found = {name: [] for name in names}
        for arguments in inputs:
            reference = function(exact, *arguments)
            for name in names:
                found[name].append(difference(function(configs[name], *arguments), reference))
        return {name: summary(parts) for name, parts in found.items() if parts}

    heads = [name for name, dtypes in POLICIES.items() if "dtype" not in dtypes]
    return {
        "planted": compare([planted(rng, options.classes)], head, heads),
        "scenes": compare(scenes(options.scenes, options.classes), whole, list(POLICIES)),
    }


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision", description="Errors of half precision."
    )
    parser.add_argument("--scenes", type=int, default=6, help="generated scenes; 0: none")
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--model", choices=("v1", "v2"), default="v2")
    parser.add_argument("--backbone", default="resnet50-caffe-c4", help="registry name or path; '' random")
    parser.add_argument("--transform", default="", help="TransformNet weights; default: random")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(arguments)
    with jax.default_matmul_precision("highest"):
        result = run(options)
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, model {options.model}")
    print("| input | low precision | score max | score p99 | box max px | box p99 px | same best cell |")
    print("|---|---|---|---|---|---|---|")
    for source, policies in result.items():
        for name, row in policies.items():
            numbers = f"{row['score_max']:.1e} | {row['score_p99']:.1e} | {row['box_max_px']:.2f}"
            numbers += f" | {row['box_p99_px']:.3f} | {100 * row['same_best']:.0f} %"
            print(f"| {source} | {name} | {numbers} |")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
