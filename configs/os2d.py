"""OS2D: one-shot detection by dense 4-D correlation (ECCV 2020).

    python train.py --config=configs/os2d.py

With no argument: a V1 model on generated shelves, from the packaged ImageNet features, on 2 CPU cores in
about 15 minutes; it prints AP on classes it never saw, before training (identity transform) and after.

Arguments follow a colon and are separated by commas, for example `configs/os2d.py:full,recipe=v2`:

  runlocal          a run of a few minutes on 2 cores that exercises everything
  full              the published budget (200,000 steps of 4 crops of 600x600 and 15 classes); needs a GPU
  data=PATH         your own pictures: COCO JSON, Pascal VOC folder, OS2D CSV, or a folder per class
  dataset=NAME      a published data set, searched as in the paper (implies full): grozi, instre-s1,
                    instre-s2; without training dairy, paste-v, paste-f, repmet. It is built/NAME, which
                    `sm-jax data build NAME` makes; data=PATH if it is elsewhere
  recipe=NAME       v1 (default) | v2-init (affine of weakalign, not trained further) | v2 | the baselines
                    without training: sliding-square (V1's start), sliding-ar (the query's own shape)
  backbone=NAME     registry name or path of the backbone weights; "random" for none (default: those of the
                    depth, resnet50-caffe-c4 or resnet101-tv)
  depth=50|101      ResNet depth
  transform=PATH    TransformNet weights that V2 starts from (a weakalign file)
  weights=PATH      a whole trained model, such as the released ones, instead of backbone= and transform=; it
                    is evaluated, not trained
  single_scale      evaluate at one scale instead of the pyramid of seven
  steps=N           number of steps
  size=PIXELS       object size that the pictures are brought to (240: the template's own size)

The paper's tables, one command per cell in docs/reproduce.md. Each implies full, dataset=grozi (table4: name
one of instre-s1 and instre-s2) and transform=weakalign for V2, and sets what the others do not:

  table1=RUN        columns 0..11 (the model, objective and schedule)
  table2=ROW        backbones, with recipe=: r50-scratch, r50-imagenet, r50-caffe, r50-caffe-gn, r50-coco,
                    r101-imagenet, r101-caffe, r101-landmarks, r101-coco, r101-alignment
  table3=MODEL      v1-train, v2-init, v2-train, sliding-square, sliding-ar
  table4=MODEL      the same models with Caffe weights, with depth= and dataset=

Expected on GroZi-3.2k val-new-cl (figures of the paper, not ours): V1 88.7, V2-init 86.1, V2 90.7 mAP@0.50.
"""

from ml_collections import ConfigDict

from configs.common import DATASETS, TEST_ONLY, parse_arg, use_dataset
from sm_jax.errors import ConfigError

UNTRAINED = ("v2-init", "sliding-square", "sliding-ar")
PYRAMID = (0.5, 0.625, 0.8, 1.0, 1.2, 1.4, 1.6)
BACKBONES = {  # row of Table 2 -> depth, weights
    "r50-scratch": (50, "random"),
    "r50-imagenet": (50, "resnet50-tv"),
    "r50-caffe": (50, "resnet50-caffe-c4"),
    "r50-caffe-gn": (50, "resnet50-caffe-gn"),
    "r50-coco": (50, "resnet50-coco"),
    "r101-imagenet": (101, "resnet101-tv"),
    "r101-caffe": (101, "resnet101-caffe"),
    "r101-landmarks": (101, "resnet101-gl18"),
    "r101-coco": (101, "resnet101-coco"),
    "r101-alignment": (101, "weakalign"),
}
MODELS = {"v1-train": "v1", "v2-init": "v2-init", "v2-train": "v2"}  # of Tables 3 and 4 -> recipe
MODELS |= {name: name for name in ("sliding-square", "sliding-ar")}


def get_config(arg: str | None = None) -> ConfigDict:
    """The config for `arg` (see the module's docstring)."""
    args = parse_arg(
        arg,
        runlocal=False,
        full=False,
        data="",
        dataset="",
        recipe="",
        table1=-1,
        table2="",
        table3="",
        table4="",
        backbone="",
        depth=0,
        transform="",
        weights="",
        single_scale=False,
        steps=0,
        size=240,
    )
    if args.steps < 0:
        raise ConfigError(f"steps={args.steps}: must not be negative")
    _table(args)
    recipe = args.recipe or "v1"
    config = _published()
    _recipe(config, recipe, args.transform)
    if args.table1 != -1:
        _table1(config, args.table1, args.transform)
    if args.transform and not (config.init.transform or args.weights):
        raise ConfigError(f"transform={args.transform}: only V2 starts from it; leave it out")
    if args.table2 == "r50-caffe-gn":
        config.model.norm = "group_norm"
    config.data.mining.enabled |= args.table3 == "v2-train"
    backbone = args.backbone or ("resnet101-tv" if args.depth == 101 else "resnet50-caffe-c4")
    config.init.backbone = "" if backbone == "random" else backbone
    config.model.depth = args.depth or 50
    config.data.source = args.data or "shelves"
    config.data.object_size = args.size
    if not args.full:
        _two_cores(config)
    if args.dataset:
        _dataset(config, args)
    if args.runlocal:
        _runlocal(config)
    if args.single_scale:
        config.eval.scales = (1.0,)
    if args.weights:
        config.init.update(model=args.weights, backbone="", transform="")
    if recipe in UNTRAINED or args.weights or args.dataset in TEST_ONLY:
        config.steps = 0
    if args.steps:
        config.steps = args.steps
    return config


def _table(args: ConfigDict) -> None:
    """Sets the arguments that a cell of the paper's tables implies.

    Raises:
      ConfigError: arguments that contradict the table, or each other.
    """
    given = [f"table{n}={args[f'table{n}']}" for n in (1, 2, 3, 4) if args[f"table{n}"] not in (-1, "")]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)}: give one table")
    if args.weights and (args.backbone or args.transform or args.steps):
        raise ConfigError(f"weights={args.weights} is a whole model; leave backbone, transform and steps out")
    if given:
        _cell(args, given[0])
    if args.dataset and args.dataset not in DATASETS:
        raise ConfigError(f"dataset={args.dataset}: there are {', '.join(DATASETS)}")
    if args.steps and args.recipe in UNTRAINED:
        raise ConfigError(f"recipe={args.recipe} is not trained; leave steps={args.steps} out")
    if args.steps and args.dataset in TEST_ONLY:
        raise ConfigError(f"dataset={args.dataset} has no training pictures; leave steps out")
    if args.weights and args.recipe.startswith("sliding-"):
        raise ConfigError(f"recipe={args.recipe} is not trained; give backbone= instead of weights=")
    args.full |= bool(args.dataset or given)


def _cell(args: ConfigDict, table: str) -> None:
    """`_table` for one table, `table` as it was given."""
    number = table[len("table")]
    sets = {"1": ("recipe", "depth"), "2": ("depth",), "3": ("recipe", "depth"), "4": ("recipe",)}[number]
    for name in sets:
        if args[name]:
            raise ConfigError(f"{table} sets the {name}; leave {name}={args[name]} out")
    weights = ""
    if number == "2":
        if args.table2 not in BACKBONES:
            raise ConfigError(f"{table}: the rows are {', '.join(BACKBONES)}")
        args.depth, weights = BACKBONES[args.table2]
    elif number in "34":
        model = args[f"table{number}"]
        if model not in MODELS:
            raise ConfigError(f"{table}: the models are {', '.join(MODELS)}")
        args.recipe = MODELS[model]
    if number == "3":
        args.depth, weights = BACKBONES["r50-caffe" if args.recipe.startswith("v2") else "r101-landmarks"]
    if number == "4":
        if not args.dataset.startswith("instre-"):
            raise ConfigError(f"{table}: add dataset=instre-s1 or dataset=instre-s2")
        if args.depth not in (50, 101):
            raise ConfigError(f"{table}: add depth=50 or depth=101")
        weights = BACKBONES[f"r{args.depth}-caffe"][1]
    if number in "12" and args.dataset not in ("", "grozi"):
        raise ConfigError(f"{table} is about grozi; leave dataset={args.dataset} out")
    if number == "3" and args.dataset.startswith(("instre-", "repmet")):
        raise ConfigError(f"{table} is about grozi, dairy, paste-v and paste-f, not {args.dataset}")
    if number == "3" and args.dataset not in ("", "grozi"):
        if args.recipe not in UNTRAINED and not args.weights:
            raise ConfigError(
                f"{table} is trained on grozi: evaluate that run with --workdir=RUN "
                f"--data=built/{args.dataset} --split=test, or give weights="
            )
    if not args.weights:
        args.backbone = args.backbone or weights
        args.transform = args.transform or ("weakalign" if _starts_aligned(args) else "")
    if not args.data:
        args.dataset = args.dataset or "grozi"


def _starts_aligned(args: ConfigDict) -> bool:
    """Whether the model of a table has the affine of weakalign from the start."""
    return args.recipe.startswith("v2") or 6 <= args.table1 <= 11


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
                "window": "",
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
                "protocol": "default",  # "requests": objects of the images are the requests; "episodes"
                "splits": ("val",),
                "scales": PYRAMID,
                "views": "",  # "data": those that a published data set is searched with
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
    """The three models of the paper, V1-train, V2-init and V2-train, and its sliding windows."""
    if name not in ("v1", "v2", *UNTRAINED):
        raise ConfigError(f"recipe={name}: there are v1, v2, {', '.join(UNTRAINED)}")
    if name.startswith("sliding-"):
        config.model.window = {"sliding-square": "square", "sliding-ar": "target"}[name]
    if name == "v1" or config.model.window:
        return
    config.model.update(simplified=False, inverse=True, freeze_bn_transform=True)
    config.objective.loc_weight = 0.0
    config.init.transform = transform


def _dataset(config: ConfigDict, args: ConfigDict) -> None:
    """What a published data set is evaluated on, and how; scale and class views come with what was built."""
    use_dataset(config, args.dataset, data=args.data)
    if args.dataset.startswith("instre-"):
        config.data.mine_extra_class_images = True
        config.eval_every = config.checkpoint.every = 5000
    if args.dataset == "repmet":
        config.eval.protocol = "episodes"
        config.checkpoint.best_metric = "test/AP_joint@0.50"


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
