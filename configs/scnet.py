"""SCNet: match the regions of two pictures of a class by appearance and geometry (ICCV 2017).

    python train.py --config=configs/scnet.py:data=PATH

PATH is the folder of PF-PASCAL or PF-WILLOW, or a CSV or JSON of your own pairs (docs/own-data.md). With no
argument: SCNet-AG on generated pairs of drawn figures, from the packaged ResNet-50, on 2 CPU cores; regions
and the frozen trunk's features are computed once and kept in the cache folder.

Arguments follow a colon and are separated by commas, for example `configs/scnet.py:data=PATH,variant=AG`:

  runlocal          a run of a minute or two on 2 cores that exercises everything
  full              as published: VGG16, regions pooled to 7 x 7, embeddings of 2048, mirrored pairs, 200
                    epochs; for a GPU (an embedding of 51 million weights; some seconds a pair on 2 cores)
  data=PATH         the pairs; or "figures" (default)
  lists=DIR         folder of PF-PASCAL's CSV lists, where they do not lie in it
  leave_out=NAME    train on all categories but this one and evaluate on it ("car" of "car(S)"); how
                    PF-WILLOW, which has no training pairs, is trained on
  variant=NAME      A, AG (default) or AG+
  start=RUN         a trained run or file to start from; AG+ starts from an A, whose embedding it copies
  schedule=NAME     of AG+: freeze_a (default; only the geometry embedding learns), alternate, joint
  backbone=NAME     vgg16, resnet50 (default), resnet101, googlenet-4d, googlenet-4e, googlenet-5b
  weights=NAME      of the backbone: registered name or path; "" for the usual ones of each
  method=NAME       evaluate.py: "model" (default), or nam, phm or lom on the features below
  features=NAME     hog, pool (default; the trunk's, pooled) or embedding (the learnt ones)
  proposals=N       regions per picture (500 in training, 1000 in tests as published; default 300, full 500)
  roi=N             rows and columns that regions are pooled to (3; full 7)
  embed=N           channels of an embedding (512; full 2048)
  epochs=N          (10; full 200), steps=N to stop after so many pairs instead
  flips             mirrored pairs too

Cost on 2 cores, and what came out: docs/scnet-evaluation.md.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg
from sm_jax.errors import ConfigError
from sm_jax.settings import nearest

WEIGHT_DECAY = {"A": 5e-3, "AG": 5e-3, "AG+": 1e-2}
FULL = {"backbone": "vgg16", "proposals": 500, "roi": 7, "embed": 2048, "epochs": 200}
TWO_CORES = {"backbone": "resnet50", "proposals": 300, "roi": 3, "embed": 512, "epochs": 10}


def get_config(arg: str | None = None) -> ConfigDict:
    """The config for `arg` (see the module's docstring)."""
    args = parse_arg(
        arg,
        runlocal=False,
        full=False,
        data="figures",
        lists="",
        leave_out="",
        variant="AG",
        start="",
        schedule="freeze_a",
        backbone="",
        weights="",
        method="model",
        features="pool",
        proposals=0,
        roi=0,
        embed=0,
        epochs=0,
        steps=0,
        flips=False,
    )
    if args.variant not in WEIGHT_DECAY:
        raise ConfigError(f"variant={args.variant}: must be one of {', '.join(WEIGHT_DECAY)}")
    for name in ("proposals", "roi", "embed", "epochs", "steps"):
        if args[name] < 0:
            raise ConfigError(f"{name}={args[name]}: must be at least 1")
        if name in FULL and not args[name]:
            args[name] = (FULL if args.full else TWO_CORES)[name]
    args.backbone = args.backbone or (FULL if args.full else TWO_CORES)["backbone"]
    config = _published()
    config.data.update(
        source=args.data,
        lists=args.lists,
        leave_out=args.leave_out,
        proposals=args.proposals,
        flips=args.flips or args.full,
    )
    config.model.update(
        variant=args.variant,
        backbone=args.backbone,
        roi_size=args.roi,
        embed=args.embed,
        agplus_schedule=args.schedule,
    )
    config.init.model = args.start
    config.init.backbone = "" if args.start else args.weights or _usual_weights(args.backbone)
    config.optim.update(lr=1e-4 if args.full else 1e-3, weight_decay=WEIGHT_DECAY[args.variant])
    config.eval.update(method=args.method, features=args.features, centred=args.features != "embedding")
    if args.runlocal:
        _runlocal(config)
        args.epochs = min(args.epochs, 2)
    _by_data(config, epochs=args.epochs)
    if args.steps:
        config.steps = args.steps
    return config


def _usual_weights(backbone: str) -> str:
    """The registered weights of a backbone."""
    from sm_jax.systems.scnet.model import BACKBONES  # brings jax

    if backbone not in BACKBONES:
        raise ConfigError(f"backbone={backbone}: unknown{nearest(backbone, BACKBONES)}")
    return BACKBONES[backbone].weights


def _published() -> ConfigDict:
    """The constants of the published code."""
    return ConfigDict(
        {
            "system": "scnet",
            "seed": 0,
            "steps": 0,  # set with the data
            "batch_size": 1,
            "log_every": 20,
            "eval_every": 0,  # set with the data: once per epoch where there are validation pairs
            "eval_first": False,
            "model": {
                "variant": "AG",
                "backbone": "vgg16",
                "embed": 2048,
                "roi_size": 7,
                "outer_relu": True,
                "vote_threshold": 0.4,
                "vote_bias": 0.01,
                "vote_grad": "exact",
                "input_norm": "imagenet",
                "agplus_schedule": "freeze_a",
                "trainable": "heads",
                "image_size": (224, 224),
                "dtype": "float32",
            },
            "objective": {"positive_iou": 0.5, "negative_iou": 0.2},  # the paper: 0.6, 0.4
            "init": {"model": "", "backbone": ""},
            "data": {
                "source": "figures",
                "lists": "",
                "convention": "edges",
                "leave_out": "",
                "proposals": 500,
                "proposal_method": "prim",
                "proposal_seed": 0,
                "proposal_folder": "",  # of "precomputed": folder of the .npy files; beside the pictures
                "flips": True,
                "workers": 0,
                "cache_dir": "",
                "cache_trunk": True,
                "figures": {"num_train": 120, "num_val": 24, "num_test": 60, "seed": 0},
            },
            "optim": {
                "name": "sgd",
                "lr": 1e-4,  # the paper: 1e-3, which a short run on 2 cores takes
                "momentum": 0.9,
                "weight_decay": 5e-3,
                "schedule": "constant",
                "milestones": (),
                "gamma": 0.1,
                "warmup": 0,
                "clip_norm": 0.0,
                "alternate": (),  # set with the data: the embeddings take turns by epochs
                "alternate_every": 0,
                "loss_scale": "auto",
                "reload_best_at_drop": False,
                "accumulate": 1,
                "ema": 0.0,
            },
            "mesh": {"data": -1, "fsdp": 1},
            "distributed": False,
            "checkpoint": {"every": 0, "keep": 1, "keep_best": 0, "best_metric": "", "mode": "max"},
            "eval": {
                "splits": ("test",),
                "method": "model",
                "features": "pool",
                "centred": True,
                "norms": (),
                "alphas": (0.01, 0.05, 0.1, 0.15),
                "max_pairs": 0,
                "force_overlap": False,
                "pictures": 8,
            },
        }
    )


def _runlocal(config: ConfigDict) -> None:
    """Everything once, on a few figures."""
    config.update(log_every=2, eval_first=True)
    config.model.update(embed=32, roi_size=2)
    config.data.update(proposals=60, figures={"num_train": 8, "num_val": 4, "num_test": 4, "seed": 0})
    config.eval.update(pictures=2)


def _by_data(config: ConfigDict, *, epochs: int) -> None:
    """The schedule counted in epochs, and what is evaluated while training: the validation pairs.

    An epoch is taken to be all listed pairs. Pairs that teach nothing are known with the regions of their
    pictures only; where there are some, the first lines of a run say how long its epochs are.

    The best epoch is chosen by them (area under the PCR curve); without any, as when a category is left out,
    nothing is evaluated before the end and the last epoch is taken.
    """
    from sm_jax.data import make_pairs
    from sm_jax.errors import DataError

    if not config.data.source:
        raise ConfigError("data=PATH: give the path of the pairs, or figures")
    try:
        count = len(make_pairs(config.data, "train")) * (1 + config.data.flips)
    except DataError:
        count = 0  # PF-WILLOW as it is: to evaluate on; training says that there is no split "train"
    every = -(-count // config.batch_size)
    config.steps = max(1, epochs * every)
    config.checkpoint.every = every
    if config.model.variant == "AG+" and config.model.agplus_schedule == "alternate":
        config.optim.update(alternate=("fc", "fc_geometry"), alternate_every=max(1, every))
    validated = not config.data.leave_out
    if validated:
        try:
            make_pairs(config.data, "val")
        except DataError:
            validated = False
    if validated:
        config.eval.splits = ("val",)
        config.eval_every = every
        config.checkpoint.update(keep_best=1, best_metric="val/PCR_AuC")
