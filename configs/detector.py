"""Two-stage detector (Faster R-CNN): the first half of detector + retrieval, and the class detector.

    python train.py --config=configs/detector.py

With no argument: a detector of any object on generated shelves, with the packaged ImageNet features as they
are, on 2 CPU cores in about 10 minutes; it prints AP and recall of the objects, whose classes it never saw.

Arguments follow a colon and are separated by commas, for example `configs/detector.py:kind=classes`:

  runlocal          a run of a few minutes on 2 cores that exercises everything
  full              the published schedule (720,000 steps of 2 pictures, one GPU), all features trained
  data=PATH         your own pictures: COCO JSON, Pascal VOC folder, OS2D CSV, or a folder per class
  dataset=NAME      a published data set (implies full): grozi, instre-s1, instre-s2. It is built/NAME, which
                    `sm-jax data build NAME` makes; data=PATH if it is elsewhere
  kind=NAME         agnostic (default: any object) | classes (one score for each class of the training split)
  backbone=NAME     registry name or path of the backbone weights; "random" for none (default: those of the
                    depth, resnet50-caffe-c4 or resnet101-tv)
  depth=50|101      ResNet depth
  steps=N           number of steps
  size=PIXELS       object size that the pictures are brought to (default 120; with `full` 240, as in OS2D)

The published detector has a feature pyramid, this one anchors of four sizes on one level (docs/baselines.md).
Expected on GroZi-3.2k (figures of the OS2D paper, not ours): class detector 87.1 mAP@0.50 on val-old-cl.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs.common import TRAINED, check_dataset, parse_arg, use_dataset
from sm_jax.errors import ConfigError

PYRAMID = (0.5, 0.625, 0.8, 1.0, 1.2, 1.4, 1.6)
KINDS = ("agnostic", "classes")


def get_config(arg: str | None = None) -> ConfigDict:
    """The config for `arg` (see the module's docstring)."""
    args = parse_arg(
        arg,
        runlocal=False,
        full=False,
        data="",
        dataset="",
        kind="agnostic",
        backbone="",
        depth=50,
        steps=0,
        size=0,
    )
    if args.steps < 0:
        raise ConfigError(f"steps={args.steps}: must not be negative")
    if args.kind not in KINDS:
        raise ConfigError(f"kind={args.kind}: there are {' and '.join(KINDS)}")
    if args.dataset:
        check_dataset(args.dataset, TRAINED)
        if args.kind == "classes" and args.dataset != "grozi":
            raise ConfigError(f"kind=classes: no split of {args.dataset} shows the classes of its training")
        args.full = True
    config = _published()
    backbone = args.backbone or ("resnet101-tv" if args.depth == 101 else "resnet50-caffe-c4")
    config.init.backbone = "" if backbone == "random" else backbone
    config.model.depth = args.depth
    config.data.source = args.data or "shelves"
    config.data.object_size = args.size or (240 if args.full else 120)
    if not args.full:
        _two_cores(config)
    if args.dataset:
        use_dataset(config, args.dataset, data=args.data, metric="AP@0.50")
    if args.dataset == "grozi":  # any object of any class; `_classes` takes those of training
        config.eval.splits = ("val-all",)
        config.checkpoint.best_metric = "val-all/AP@0.50"
    if args.runlocal:
        _runlocal(config)
    if args.kind == "classes":
        _classes(config, args.dataset)
    if args.steps:
        config.steps = args.steps
    return config


def _published() -> ConfigDict:
    """Any object, with the constants of the published runs on one GPU (OS2D's launchers of
    maskrcnn-benchmark): there 720,000 steps of 2 pictures, divided by 10 at 480,000 and 640,000."""
    return ConfigDict(
        {
            "system": "detector",
            "seed": 0,
            "steps": 720_000,
            "batch_size": 2,
            "log_every": 50,
            "eval_every": 2000,
            "eval_first": False,
            "model": {
                "classes": 0,
                "depth": 50,
                "norm": "frozen_bn",
                "frozen_blocks": 4,  # stem and first stage, as published
                "train_features": True,
                "anchor_sizes": (64.0, 128.0, 256.0, 512.0),
                "anchor_aspects": (0.5, 1.0, 2.0),
                "rpn_width": 256,
                "roi_channels": 256,
                "roi_size": 7,
                "roi_hidden": 1024,
                "shared_boxes": False,
                "dtype": "float32",
                "remat": False,
            },
            "objective": {
                "anchor_positive_iou": 0.7,
                "anchor_negative_iou": 0.3,
                "anchor_samples": 256,
                "anchor_beta": 1 / 9,
                "candidates": 2000,
                "proposals": 1000,
                "proposal_iou": 0.7,
                "roi_samples": 512,
                "roi_fraction": 0.25,
                "roi_iou": 0.5,
                "roi_beta": 1.0,
                "roi_weight": 1.0,
            },
            "init": {"backbone": "", "model": ""},
            "data": {
                "source": "shelves",
                "crop": (800, 800),
                "scale_jitter": 0.5,
                "aspect_jitter": 0.9,
                "min_coverage": 0.7,
                "pad_crops": True,  # else a picture smaller than the crop is enlarged to fill it
                "object_size": 240,
                "max_boxes": 128,
                "flips": True,
                "color": False,
                "scale": 0.0,  # of stored pixels; 0: measured on the training split
                "workers": 2,
                "cache_dir": "",
                "shelves": {
                    "num_train": 4000,
                    "num_val": 100,
                    "num_test": 100,
                    "num_seen": 100,
                    "image_size": (960, 1280),
                    "object_size": (180.0, 400.0),
                },
            },
            "optim": {
                "name": "sgd",
                "lr": 0.0025,
                "momentum": 0.9,
                "weight_decay": 1e-4,
                "clip_norm": 0.0,
                "schedule": "multistep",
                "milestones": (480_000, 640_000),
                "gamma": 0.1,
                "warmup": 500,
                "lr_end": 0.0,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                "loss_scale": "auto",
                "reload_best_at_drop": False,
                "accumulate": 1,
                "ema": 0.0,
            },
            "mesh": {"data": -1, "fsdp": 1},
            "distributed": False,
            "checkpoint": {
                "every": 2000,
                "keep": 2,
                "keep_best": 1,
                "best_metric": "val/AP@0.50",
                "mode": "max",
            },
            "eval": {
                "protocol": "default",
                "splits": ("val",),
                "scales": PYRAMID,
                "candidates": 1000,
                "proposals": 300,  # of each level
                "nms_iou": 0.3,
                "score_threshold": float("-inf"),
                "iou_thresholds": (0.5,),
                "points": "all",
                "joint": "aligned",
                "max_detections": 1000,
                "max_images": 0,
                "pictures": 8,
            },
        }
    )


def _classes(config: ConfigDict, dataset: str) -> None:
    """A score for each class of the training split, measured on other pictures of the same classes."""
    from sm_jax import data
    from sm_jax.data import published

    if config.data.source == "shelves":
        # Generated classes come by the thousand; a class detector must see each of them often.
        config.data.shelves.num_classes = 40
        config.eval.splits = ("seen",)
        config.checkpoint.best_metric = "seen/mAP@0.50"
    elif dataset:
        config.eval.splits = ("val-old-cl",)
        config.checkpoint.best_metric = "val-old-cl/mAP@0.50"
    else:
        config.checkpoint.best_metric = "val/mAP@0.50"
    config.eval.score_threshold = 1e-3  # of hundreds of classes nearly all are below it for any box
    if dataset and not Path(config.data.source).exists():  # what uses the config says that it is not built
        config.model.classes = published.find(dataset).counts["train"][2]
    else:
        config.model.classes = data.make_source(config.data, "train").num_classes


def _two_cores(config: ConfigDict) -> None:
    """A budget that 2 CPU cores finish in about 10 minutes.

    Features stay as they are and both stages learn alone, with narrower layers, at half of the published
    scale (`_published` objects of 240 pixels would fill the small crops). AdamW with a cosine gets further in
    hundreds of steps than the published SGD, which is meant for 720,000. One pyramid level is evaluated.
    """
    config.update(steps=800, batch_size=4, log_every=25, eval_every=400)
    config.model.update(
        train_features=False,
        shared_boxes=True,
        anchor_sizes=(32.0, 64.0, 128.0, 256.0),
        rpn_width=128,
        roi_channels=128,
        roi_hidden=256,
    )
    config.objective.update(candidates=500, proposals=200, roi_samples=128, anchor_samples=128)
    config.data.update(crop=(256, 320), scale_jitter=0.7, max_boxes=32, pad_crops=False)
    config.data.shelves.update(
        num_train=2000,
        num_val=32,
        num_test=32,
        num_seen=32,
        image_size=(480, 640),
        object_size=(120.0, 330.0),
    )
    config.optim.update(name="adamw", lr=1e-3, clip_norm=10.0, schedule="cosine", warmup=50)
    config.checkpoint.every = 400
    config.eval.update(scales=(1.0,), iou_thresholds=(0.5, 0.75), proposals=200, max_detections=200)


def _runlocal(config: ConfigDict) -> None:
    """Everything once, in a few minutes on 2 cores: the published optimizer and trained features too."""
    config.update(steps=6, batch_size=2, log_every=2, eval_every=3)
    config.model.update(train_features=True, frozen_blocks=8, rpn_width=32, roi_channels=32, roi_hidden=32)
    config.objective.update(candidates=100, proposals=50, roi_samples=32, anchor_samples=64)
    config.data.update(crop=(192, 192), max_boxes=16)
    config.data.shelves.update(num_train=16, num_val=2, num_test=2, num_seen=2, image_size=(320, 384))
    config.optim.update(name="sgd", lr=0.0025, clip_norm=0.0, schedule="multistep", warmup=0, milestones=(4,))
    config.checkpoint.every = 3
    config.eval.update(scales=(1.0,), max_images=2, proposals=50, max_detections=50, pictures=2)
