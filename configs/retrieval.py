"""Retrieval: pictures as descriptors, one half of the baseline "detector + retrieval" (OS2D, ECCV 2020).

    python train.py --config=configs/retrieval.py

With no argument: on generated shelves, from the packaged ImageNet features, on 2 CPU cores. The features stay
as they are, and are computed once for every crop and kept on disk (in the cache folder; the next run reads
them); the pooling and the whitening learn. It prints how class pictures and crops of objects find each other
on classes that no training saw. docs/baselines-retrieval.md says what it gives, and how a detector joins in.

Arguments follow a colon and are separated by commas, for example `configs/retrieval.py:full,data=PATH`:

  runlocal          a run of a few minutes on 2 cores that exercises everything
  full              the published budget: 100 epochs of 2000 queries, everything trains; needs a GPU
  data=PATH         your own pictures: COCO JSON, Pascal VOC folder, OS2D CSV, or a folder per class
  dataset=NAME      a published data set, searched as in the paper (implies full): grozi, instre-s1,
                    instre-s2; with `untrained` also dairy, paste-v, paste-f. It is built/NAME, which
                    `sm-jax data build NAME` makes; data=PATH if it is elsewhere
  detector=RUN      run or exported file of a detector: then both are evaluated together
  untrained         the paper's row "retrieval not trained": ImageNet features and pooling, no whitening
  whitening=NAME    what the whitening starts from: pairs | pca (computed from training crops) | random
                    (default pairs, with `full` random)
  backbone=NAME     registry name or path of the backbone weights; "random" for none (default: those of the
                    depth, resnet50-caffe-c4 or resnet101-tv)
  depth=50|101      ResNet depth
  steps=N           number of steps
"""

import math

from ml_collections import ConfigDict

from configs.common import DATASETS, TRAINED, check_dataset, parse_arg, use_dataset
from sm_jax.errors import ConfigError

EPOCH = 400  # steps of 5 queries
PASTE_F_SCALE = 3500 / 1280  # of the authors' baseline; they searched it with OS2D at 2000


def get_config(arg: str | None = None) -> ConfigDict:
    """The config for `arg` (see the module's docstring)."""
    args = parse_arg(
        arg,
        runlocal=False,
        full=False,
        data="",
        dataset="",
        detector="",
        untrained=False,
        whitening="",
        backbone="",
        depth=50,
        steps=0,
    )
    if args.steps < 0:
        raise ConfigError(f"steps={args.steps}: must not be negative")
    if args.untrained and args.whitening:
        raise ConfigError(f"untrained has no whitening; leave whitening={args.whitening} out")
    if args.dataset:
        everything = tuple(name for name in DATASETS if name != "repmet")
        check_dataset(args.dataset, everything if args.untrained else TRAINED)
        args.full = True
    config = _published()
    backbone = args.backbone or ("resnet101-tv" if args.depth == 101 else "resnet50-caffe-c4")
    config.init.backbone = "" if backbone == "random" else backbone
    config.model.depth = args.depth
    config.data.source = args.data or "shelves"
    config.eval.detector = args.detector
    if not args.full:
        _two_cores(config)
    metric = "mAP@0.50" if args.detector else "mAP"
    config.checkpoint.best_metric = f"val/{metric}"
    if args.dataset:
        use_dataset(config, args.dataset, data=args.data, metric=metric)
    if args.dataset == "paste-f":
        config.data.scale = PASTE_F_SCALE
    if args.runlocal:
        _runlocal(config)
    if args.whitening:
        config.data.whitening = args.whitening
    if args.untrained:
        config.model.whiten = False
        config.steps = 0
    if not config.init.backbone:  # random features that stay teach nothing
        config.model.train_features = True
        config.data.cache_trunk = False
    if args.steps:
        config.steps = args.steps
    return config


def _published() -> ConfigDict:
    """The published constants (specification of OS2D's baselines, cnnimageretrieval v1.1)."""
    return ConfigDict(
        {
            "system": "retrieval",
            "seed": 0,
            "steps": 100 * EPOCH,
            "batch_size": 5,
            "log_every": 50,
            "eval_every": 5 * EPOCH,
            "eval_first": True,
            "model": {
                "depth": 50,
                "norm": "frozen_bn",
                "p": 3.0,
                "whiten": True,
                "dim": 0,
                "image_size": 240,
                "train_features": True,
                "frozen_blocks": 0,
                "dtype": "float32",
                "remat": False,
            },
            "objective": {"margin": 0.85},
            "init": {"backbone": "", "whiten": "", "model": ""},
            "data": {
                "source": "shelves",
                "train_split": "train",
                "scale": 0.0,  # for the detector's pyramid; 0: measured on the training split
                "object_size": 240,
                "negatives": 5,
                "queries": 2000,
                "pool": 20_000,
                "random_crops": 10,
                "positive_iou": 0.7,
                "negative_iou": 0.3,
                "min_side": 16.0,
                "whitening": "random",
                "cache_trunk": False,
                "workers": 2,
                "cache_dir": "",
                "shelves": {
                    "num_train": 4000,
                    "num_val": 100,
                    "num_test": 100,
                    "image_size": (960, 1280),
                    "object_size": (180.0, 400.0),
                },
            },
            "optim": {
                "name": "adam",
                "lr": 1e-6,
                "momentum": 0.9,
                "weight_decay": 1e-4,
                "part_lr": {"pool": 10.0},
                "no_decay": ("pool",),
                "clip_norm": 0.0,
                "schedule": "exponential",
                "gamma": math.exp(-0.01),
                "decay_every": EPOCH,
                "warmup": 0,
                "lr_end": 0.0,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                "loss_scale": "auto",
                "accumulate": 1,
                "ema": 0.0,
            },
            "mesh": {"data": -1, "fsdp": 1},
            "distributed": False,
            "checkpoint": {
                "every": EPOCH,
                "keep": 2,
                "keep_best": 1,
                "best_metric": "val/mAP",
                "mode": "max",
            },
            "eval": {
                "protocol": "default",
                "detector": "",  # run or exported file of a detector: then both are evaluated together
                "splits": ("val",),
                "max_images": 0,
                "query_size": 240,
                "descriptor_scales": (1.0, 1 / math.sqrt(2), 0.5),
                "scales": (0.5, 0.625, 0.8, 1.0, 1.2, 1.4, 1.6),
                "views": "",  # "data": those that a published data set is searched with
                "detector_score": 0.1,
                "detector_iou": 0.3,
                "proposals": 1000,
                "nms_iou": 0.3,
                "score_threshold": float("-inf"),
                "max_detections": 1000,
                "iou_thresholds": (0.5,),
                "points": "all",
                "joint": "aligned",
                "pictures": 8,
            },
        }
    )


def _two_cores(config: ConfigDict) -> None:
    """A budget for 2 CPU cores: stored features of small crops, one scale per descriptor."""
    config.update(steps=600, batch_size=20, log_every=25, eval_every=200)
    config.model.update(train_features=False, image_size=160)
    config.data.update(queries=1000, pool=4000, random_crops=4, whitening="pairs", cache_trunk=True)
    config.data.shelves.update(  # val and test as in configs/os2d.py
        num_train=300, num_val=16, num_test=16, image_size=(480, 640), object_size=(120.0, 330.0)
    )
    config.optim.update(name="adamw", lr=1e-4, schedule="cosine", warmup=20)
    config.checkpoint.every = 200
    config.eval.update(
        query_size=160,
        descriptor_scales=(1.0,),
        scales=(1.0,),
        iou_thresholds=(0.5, 0.75),
        max_detections=200,
    )


def _runlocal(config: ConfigDict) -> None:
    """Everything once, in a few minutes on 2 cores: the published optimizer and trained features too."""
    config.update(steps=6, batch_size=2, log_every=2, eval_every=3)
    config.model.update(train_features=True, frozen_blocks=12, image_size=64)
    config.data.update(queries=6, pool=16, random_crops=2, negatives=2, cache_trunk=False)
    config.data.shelves.update(num_train=6, num_val=2, num_test=2, image_size=(320, 384))
    config.optim.update(name="adam", lr=1e-6, schedule="exponential", warmup=0, decay_every=3)
    config.checkpoint.every = 3
    config.eval.update(query_size=64, max_images=2, max_detections=50, pictures=1)
