"""OS2D: one-shot detection by dense 4-D correlation (ECCV 2020).

    python train.py --config=configs/os2d.py

With no argument: a V1 model on generated shelves, from the packaged ImageNet features, on 2 CPU cores in
about 15 minutes; it prints AP on classes it never saw, before training (identity transform) and after.

Arguments follow a colon and are separated by commas, for example `configs/os2d.py:v2,steps=1000`:

  runlocal          a run of a few minutes on 2 cores that exercises everything
  full              the published budget (200,000 steps of 4 crops of 600x600 and 15 classes); needs a GPU
  data=PATH         your own pictures: COCO JSON, Pascal VOC folder, OS2D CSV, or a folder per class
  recipe=NAME       v1 (default) | v2-init (affine of weakalign, not trained further) | v2
  table1=RUN        column 0..11 of the paper's Table 1 (sets recipe, objective and schedule; implies full)
  backbone=NAME     registry name or path of the backbone weights; "random" for none (default: those of the
                    depth, resnet50-caffe-c4 or resnet101-tv)
  depth=50|101      ResNet depth
  transform=PATH    TransformNet weights that V2 starts from (a weakalign file)
  steps=N           number of steps
  size=PIXELS       object size that the pictures are brought to (240: the template's own size)

Expected on GroZi-3.2k val-new-cl (figures of the paper, not ours): V1 88.7, V2-init 86.1, V2 90.7 mAP@0.50.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg
from sm_jax.errors import ConfigError

PYRAMID = (0.5, 0.625, 0.8, 1.0, 1.2, 1.4, 1.6)


def get_config(arg: str | None = None) -> ConfigDict:
    """The config for `arg` (see the module's docstring)."""
    args = parse_arg(
        arg,
        runlocal=False,
        full=False,
        data="shelves",
        recipe="v1",
        table1=-1,
        backbone="",
        depth=50,
        transform="",
        steps=0,
        size=240,
    )
    if args.steps < 0:
        raise ConfigError(f"steps={args.steps}: must not be negative")
    config = _published()
    _recipe(config, args.recipe, args.transform)
    if args.table1 != -1:
        if args.recipe != "v1":
            raise ConfigError(f"table1={args.table1} sets the recipe; leave recipe={args.recipe} out")
        _table1(config, args.table1, args.transform)
    backbone = args.backbone or ("resnet101-tv" if args.depth == 101 else "resnet50-caffe-c4")
    config.init.backbone = "" if backbone == "random" else backbone
    config.model.depth = args.depth
    config.data.source = args.data
    config.data.object_size = args.size
    if args.table1 < 0 and not args.full:
        _two_cores(config)
    if args.runlocal:
        _runlocal(config)
    if args.recipe == "v2-init":
        config.steps = 0
    if args.steps:
        config.steps = args.steps
    return config


def _published() -> ConfigDict:
    """V1 with the published constants (spec of the original's configuration defaults and its V1 launcher)."""
    return ConfigDict(
        {
            "system": "os2d",
            "seed": 0,
            "steps": 200_000,
            "batch_size": 4,
            "log_every": 50,
            "eval_every": 1000,
            "eval_first": True,
            "model": {
                "depth": 50,
                "norm": "frozen_bn",
                "simplified": True,
                "inverse": False,
                "query_size": 240,
                "freeze_bn_transform": False,
                "frozen_blocks": 0,
                "train_features": True,
                "dtype": "float32",
                "head_dtype": "float32",
                "remat": False,
            },
            "objective": {
                "class_objective": "RLL",
                "positive_margin": 0.6,
                "negative_margin": 0.5,
                "loc_weight": 0.2,
                "class_neg_weight": 1.0,
                "neg_to_pos_ratio": 3.0,
                "rll_neg_weight_ratio": 0.001,
                "positive_iou": 0.5,
                "negative_iou": 0.1,
                "remap": True,
                "remap_positive_iou": 0.8,
                "remap_negative_iou": 0.4,
                "train_transform_on_negs": False,
                "class_weights": (),
            },
            "init": {"backbone": "", "transform": "", "model": ""},
            "data": {
                "source": "shelves",
                "class_batch_size": 15,
                "crop": (600, 600),
                "scale_jitter": 0.7,
                "aspect_jitter": 0.9,
                "min_coverage": 0.7,
                "cut_coverage": 0.3,
                "object_size": 240,
                "max_boxes": 64,
                "flips": False,
                "color": False,
                "query_crops": False,
                "mining": {
                    "enabled": False,
                    "every": 5000,
                    "patches": 10,
                    "scales": 2,
                    "random_classes": 200,
                    "nms_iou": 0.5,
                },
                "mine_extra_class_images": False,
                "scale": 0.0,  # of stored pixels; 0: measured on the training split
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
                "name": "sgd",
                "lr": 1e-4,
                "momentum": 0.9,
                "weight_decay": 1e-4,
                "clip_norm": 100.0,
                "schedule": "multistep",
                "milestones": (100_000, 150_000),
                "gamma": 0.1,
                "warmup": 0,
                "lr_end": 0.0,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                "loss_scale": "auto",
                "reload_best_at_drop": True,
                "accumulate": 1,
                "ema": 0.0,
            },
            "mesh": {"data": -1, "fsdp": 1},
            "distributed": False,
            "checkpoint": {
                "every": 1000,
                "keep": 2,
                "keep_best": 1,
                "best_metric": "val/mAP@0.50",
                "mode": "max",
            },
            "eval": {
                "protocol": "default",  # "requests": objects of the images are the requests
                "splits": ("val",),
                "scales": PYRAMID,
                "views": "",
                "nms_iou": 0.3,
                "nms": "exact",
                "nms_across_classes": False,
                "score_threshold": float("-inf"),
                "iou_thresholds": (0.5,),
                "points": "all",
                "joint": "aligned",
                "max_detections": 1000,
                "max_images": 0,
                "pictures": 8,
                "requests": {
                    "threshold": 0.55,
                    "max_requests": 20,
                    "negatives": 1000,
                    "min_side": 16.0,
                    "iou_rule": "fixed",
                    "validation": "",
                    "validation_share": 0.3,
                    "seed": 0,
                    "shelf_classes": 24,
                },
            },
        }
    )


def _recipe(config: ConfigDict, name: str, transform: str) -> None:
    """The three models of the paper: V1-train, V2-init and V2-train."""
    if name not in ("v1", "v2", "v2-init"):
        raise ConfigError(f"recipe={name}: there are v1, v2 and v2-init")
    if name == "v1":
        return
    config.model.update(simplified=False, inverse=True, freeze_bn_transform=True)
    config.objective.loc_weight = 0.0
    config.init.transform = transform


def _table1(config: ConfigDict, run: int, transform: str) -> None:
    """The columns of Table 1, all on ResNet-50 with Caffe weights and seed 0."""
    if not 0 <= run <= 11:
        raise ConfigError(f"table1={run}: the columns are 0 to 11")
    if run in (6, 7, 8, 9, 10, 11):
        _recipe(config, "v2", transform)
    if run in (4, 5):
        config.model.update(simplified=False, inverse=run == 4)
    config.data.mining.enabled = run in (3, 5, 8)
    if run == 6:
        config.objective.loc_weight = 0.2
    if run in (0, 9, 10):
        config.objective.update(class_objective="contrastive", positive_margin=1.0)
    config.objective.remap = run not in (0, 1, 9, 11)


def _two_cores(config: ConfigDict) -> None:
    """A budget that 2 CPU cores finish in about 15 minutes.

    Features stay as they are and TransformNet learns alone, from small crops. AdamW with a cosine gets
    further in hundreds of steps than the published SGD, which is meant for 200,000. One pyramid level is
    evaluated.
    """
    config.update(steps=800, batch_size=3, log_every=25, eval_every=200)
    config.model.train_features = False
    config.data.update(crop=(384, 384), class_batch_size=6, max_boxes=32)
    config.data.shelves.update(
        num_train=2000, num_val=16, num_test=16, image_size=(480, 640), object_size=(120.0, 330.0)
    )
    config.optim.update(name="adamw", lr=5e-4, clip_norm=10.0, schedule="cosine", warmup=50)
    config.checkpoint.every = 200
    config.eval.update(scales=(1.0,), iou_thresholds=(0.5, 0.75), max_detections=200)


def _runlocal(config: ConfigDict) -> None:
    """Everything once, in a few minutes on 2 cores: the published optimizer and trained features too."""
    config.update(steps=6, batch_size=2, log_every=2, eval_every=3)
    config.model.update(train_features=True, frozen_blocks=8)
    config.data.update(crop=(256, 256), class_batch_size=4, max_boxes=32)
    config.data.shelves.update(num_train=16, num_val=2, num_test=2, image_size=(320, 384))
    config.optim.update(name="sgd", lr=1e-4, clip_norm=100.0, schedule="multistep", warmup=0, milestones=(4,))
    config.checkpoint.every = 3
    config.eval.update(scales=(1.0,), max_images=2, max_detections=50, pictures=2)
