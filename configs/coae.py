"""CoAE: one-shot detection by co-attention and co-excitation (NeurIPS 2019), a baseline of the OS2D paper.

    python train.py --config=configs/coae.py

With no argument: on generated shelves, from the packaged ImageNet features, which stay as they are, on 2 CPU
cores in about 15 minutes; it prints AP on classes it never saw, before training and after.

Arguments follow a colon and are separated by commas, for example `configs/coae.py:full,data=PATH`:

  runlocal          a run of a few minutes on 2 cores that exercises everything
  full              the published budget (2000 epochs of GroZi-3.2k, or 100 of INSTRE-S1: about 300,000 steps
                    of 4 images); needs a GPU
  data=PATH         your own pictures: COCO JSON, Pascal VOC folder, OS2D CSV, or a folder per class
  dataset=NAME      a published data set, searched as in the paper (implies full): grozi, instre-s1,
                    instre-s2. It is built/NAME, which `sm-jax data build NAME` makes; data=PATH if it is
                    elsewhere
  backbone=NAME     registry name or path of the backbone weights; "random" for none (default: those of the
                    depth, resnet50-caffe-c4 or resnet101-tv)
  depth=50|101      ResNet depth
  steps=N           number of steps; the rate drops at one half and three quarters of them
  size=PIXELS       object size that the pictures are brought to (default 144; with `full` 225, which is a
                    shorter side of 900 pixels for GroZi-3.2k)
  annotated         evaluate as published: in an image only the classes that it shows are searched

Expected with dataset=grozi,depth=101,annotated (val-new-cl; figure of the OS2D paper, not ours): 88.2
mAP@0.50.
"""

from ml_collections import ConfigDict

from configs.common import TRAINED, check_dataset, parse_arg, use_dataset
from sm_jax.errors import ConfigError

EPOCHS = {"grozi": 2000, "instre-s1": 100, "instre-s2": 100}


def get_config(arg: str | None = None) -> ConfigDict:
    """The config for `arg` (see the module's docstring)."""
    args = parse_arg(
        arg,
        runlocal=False,
        full=False,
        data="",
        dataset="",
        backbone="",
        depth=50,
        steps=0,
        size=0,
        annotated=False,
    )
    for name in ("steps", "size"):
        if args[name] < 0:
            raise ConfigError(f"{name}={args[name]}: must not be negative")
    if args.dataset:
        check_dataset(args.dataset, TRAINED)
        args.full = True
    config = _published()
    backbone = args.backbone or ("resnet101-tv" if args.depth == 101 else "resnet50-caffe-c4")
    config.init.backbone = "" if backbone == "random" else backbone
    config.model.depth = args.depth
    config.data.source = args.data or "shelves"
    if not args.full:
        _two_cores(config)
    if args.dataset:
        _dataset(config, args)
    if args.runlocal:
        _runlocal(config)
    if args.size:
        config.data.object_size = args.size
    if args.annotated:
        config.eval.classes = "annotated"
    if args.steps:
        config.steps = args.steps
    config.optim.milestones = (config.steps // 2, config.steps * 3 // 4)
    return config


def _published() -> ConfigDict:
    """The published training as far as the paper and the OS2D paper's launcher tell it; the rest is OS2D's.

    Images of one size and a scale that varies take the place of whole images whose shorter side is drawn from
    900 times 0.5 to 1.6.
    """
    return ConfigDict(
        {
            "system": "coae",
            "seed": 0,
            "steps": 298_000,
            "batch_size": 4,
            "log_every": 50,
            "eval_every": 5000,
            "eval_first": True,
            "model": {
                "depth": 50,
                "norm": "frozen_bn",
                "query_size": 192,
                "attention": "softmax",
                "attention_width": 512,
                "excitation_ratio": 16,
                "anchor_scales": (4.0, 8.0, 16.0, 32.0),
                "anchor_aspects": (0.5, 1.0, 2.0),
                "rpn_width": 512,
                "head": "c5",
                "bins": 7,
                "head_width": 256,
                "compare_hidden": 8,
                "candidates": 2000,
                "proposals": 300,
                "proposal_iou": 0.7,
                "frozen_blocks": 4,  # stem and first stage, as usual for Faster R-CNN
                "train_features": True,
                "dtype": "float32",
                "remat": False,
            },
            "objective": {
                "rpn_positive_iou": 0.7,
                "rpn_negative_iou": 0.3,
                "rpn_positives": 128,
                "rois": 128,
                "roi_positive_fraction": 0.25,
                "roi_iou": 0.5,
                "rpn_weight": 1.0,
                "loc_weight": 1.0,
                "positive_margin": 0.7,
                "negative_margin": 0.3,
                "ranking_weight": 3.0,
                "rpn_beta": 1 / 9,
                "beta": 1.0,
            },
            "init": {"backbone": "", "model": ""},
            "data": {
                "source": "shelves",
                "crop": (900, 1200),
                "scale_jitter": 0.625,
                "aspect_jitter": 1.0,
                "min_coverage": 0.7,
                "pad_crops": True,  # else a picture smaller than the crop is enlarged to fill it
                "cut_coverage": 0.3,
                "object_size": 225,
                "max_boxes": 64,
                "flips": False,
                "color": False,
                "query_crops": False,
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
                "lr": 0.01,
                "momentum": 0.9,
                "weight_decay": 1e-4,
                "clip_norm": 100.0,
                "schedule": "multistep",
                "milestones": (),
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
                "every": 5000,
                "keep": 2,
                "keep_best": 1,
                "best_metric": "val/mAP@0.50",
                "mode": "max",
            },
            "eval": {
                "protocol": "default",
                "splits": ("val",),
                "views": "",  # "data": those that a published data set is searched with
                "classes": "all",  # "annotated": only those that an image shows, as published
                "scales": (1.0,),
                "nms_iou": 0.3,
                "score_threshold": float("-inf"),
                "iou_thresholds": (0.5,),
                "points": "all",
                "joint": "aligned",
                "max_detections": 100,
                "max_images": 0,
                "pictures": 8,
            },
        }
    )


def _dataset(config: ConfigDict, args: ConfigDict) -> None:
    """A published data set; the size of the crops, and so the budget, follows that of its pictures."""
    from sm_jax.data import published

    use_dataset(config, args.dataset, data=args.data)
    found = published.find(args.dataset)
    config.steps = found.counts["train"][0] * EPOCHS[args.dataset] // config.batch_size
    config.data.crop = tuple(side * found.eval_scale // 1280 for side in config.data.crop)


def _two_cores(config: ConfigDict) -> None:
    """A budget that 2 CPU cores finish in about 15 minutes.

    The features stay as they are; a light second stage and narrower layers learn from small crops. AdamW with
    a cosine gets further in hundreds of steps than the published SGD.
    """
    config.update(steps=800, batch_size=4, log_every=25, eval_every=400)
    config.model.update(
        train_features=False,
        attention_width=256,
        rpn_width=256,
        head="light",
        bins=5,
        candidates=500,
        proposals=64,
    )
    config.objective.update(rpn_positives=32, rois=32)
    config.data.update(crop=(320, 320), object_size=144, max_boxes=16, pad_crops=False)
    config.data.shelves.update(
        num_train=2000, num_val=16, num_test=16, image_size=(480, 640), object_size=(120.0, 330.0)
    )
    config.optim.update(name="adamw", lr=5e-4, clip_norm=10.0, schedule="cosine", warmup=50)
    config.checkpoint.every = 400
    config.eval.update(iou_thresholds=(0.5, 0.75))


def _runlocal(config: ConfigDict) -> None:
    """Everything once, in a few minutes on 2 cores: published optimizer and head, trained features too."""
    config.update(steps=6, batch_size=2, log_every=2, eval_every=3)
    config.model.update(
        train_features=True, frozen_blocks=8, head="c5", bins=3, candidates=100, proposals=16, query_size=96
    )
    config.objective.update(rpn_positives=8, rois=8)
    config.data.update(crop=(192, 192), object_size=96)
    config.data.shelves.update(num_train=16, num_val=2, num_test=2, image_size=(320, 384))
    config.optim.update(name="sgd", lr=1e-3, clip_norm=10.0, schedule="multistep", warmup=0)
    config.checkpoint.every = 3
    config.eval.update(max_images=2, max_detections=20, pictures=2)
