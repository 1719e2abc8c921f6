"""Cross-modal detection: find the objects that a phrase describes (Ferreira et al. 2023).

    python train.py --config=configs/crossmodal.py

With no argument: a model of less than 10 MB on generated scenes of coloured shapes, from packaged ImageNet
features, on 2 CPU cores: 1250 steps of 32 images. The first units of the backbone stay as they are; their
features are computed once and kept on disk (0.3 GB, in the cache folder; the next run reads them).

Arguments follow a colon and are separated by commas, for example `configs/crossmodal.py:full,epochs=20`:

  runlocal          a run of a minute or two on 2 cores that exercises everything
  full              the paper's: all of the backbone trains, widths 256; for a GPU
  data=PATH         your own pictures and phrases: a JSON file (docs/own-data.md); its training phrases give
                    the vocabulary. Or "shapes" (default), "shelves" (phrases about generated photo scenes)
  backbone=NAME     registry name or path of the backbone weights (default: mobilenetv2-tv); "random" for
                    none, and then all of it trains. mobilenetv2-tf gets the padding that it needs
  trainable=WHAT    of the backbone: all, lastN (the last N of its 19 units) or heads (nothing of it)
  epochs=N          default 10 (2 with runlocal); the rate falls by a tenth every 3 epochs, as in the paper
  steps=N           stop after so many steps instead
  batch=N           images of a batch (32; 4 with runlocal)
  p_absent=P        share of training scenes in which nothing is what the phrase asks for (0.1: a model that
                    never saw such a scene has never learnt to find nothing; 0 with `full`, as in the paper)
  p_union=P         share of phrases about two kinds ("the red circles and the squares"; 0)
  long_forms        also "circles that are red", "circles colored red"
  holdout=A+B       never ask for these in training, for example holdout=blue_triangle+red_square; evaluated
                    apart, as "pairs" (none for shapes; shelves hold some out by themselves)

The last four are about generated phrases: p_absent and holdout of shapes and shelves, the others of shapes.

Expected of the default on its 500 test scenes (2 cores of an AMD EPYC, 39 minutes, and 13 for the stored
features): all proposals P .986, R .998, IoU .911; aligned P .993, R 1.000, IoU .917; alignment 1.000.
The paper, on its own scenes: P .932, R .862, IoU .759; P .948, R .966, IoU .767; .996. docs/crossmodal.md
says what differs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.common import parse_arg
from sm_jax.data import GENERATED
from sm_jax.errors import ConfigError

EPOCHS, EPOCHS_RUNLOCAL = 10, 2
BATCH, BATCH_RUNLOCAL = 32, 4
EPOCHS_PER_DROP = 3
P_ABSENT = 0.1
GENERATED_PHRASES = ("p_absent", "p_union", "long_forms", "holdout")
TENSORFLOW = "mobilenetv2-tf"


def get_config(arg: str | None = None) -> ConfigDict:
    """The config for `arg` (see the module's docstring)."""
    defaults = {
        "runlocal": False,
        "full": False,
        "data": "shapes",
        "backbone": "mobilenetv2-tv",
        "trainable": "",
        "epochs": EPOCHS,
        "steps": 0,
        "batch": BATCH,
        "p_absent": None,
        "p_union": 0.0,
        "long_forms": False,
        "holdout": "",
    }
    args = parse_arg(arg, **defaults)
    if args.runlocal:
        args = parse_arg(arg, **defaults | {"epochs": EPOCHS_RUNLOCAL, "batch": BATCH_RUNLOCAL})
    _check(args, defaults)
    config = _published()
    config.data.source = args.data
    p_absent = args.p_absent
    if p_absent is None:
        p_absent = 0.0 if args.full else P_ABSENT
    config.data.shapes.update(p_absent=p_absent, p_union=args.p_union, long_forms=args.long_forms)
    config.data.shelf_phrases.p_absent = p_absent
    held = tuple(pair.replace("_", " ") for pair in args.holdout.split("+") if pair)
    config.data.shapes.holdout_pairs = held
    if held:
        config.data.shelf_phrases.holdout_pairs = held
    config.init.backbone = "" if args.backbone == "random" else args.backbone
    if _of_tensorflow(args.backbone):
        config.model.padding = "tf_same"
    config.batch_size = args.batch
    if not args.full:
        _two_cores(config)
    if args.runlocal:
        _runlocal(config)
    if not config.init.backbone:
        config.model.trainable = "all"  # frozen random features would teach nothing
    if args.trainable:
        config.model.trainable = args.trainable
    if config.data.source in GENERATED:
        # Their objects hardly overlap, so of two boxes that do one is wrong. Chosen on the validation scenes.
        config.eval.nms_iou = 0.2
    if config.data.source == "shelves":
        # The best of these overlaps an object of the scenes by 0.66, that of a lone 64 px square by 0.45.
        config.model.update(anchor_sizes=(72.0, 112.0), anchor_aspects=(0.75, 1.5))
    config.data.cache_trunk &= config.model.trainable != "all"
    _by_data(config, epochs=args.epochs)
    if args.steps:
        config.steps = args.steps
    return config


def _check(args: ConfigDict, defaults: Mapping[str, Any]) -> None:
    """`ConfigError` for values that make no sense, and for arguments that would do nothing."""
    for name in ("epochs", "batch"):
        if args[name] < 1:
            raise ConfigError(f"{name}={args[name]}: must be at least 1")
    if args.steps < 0:
        raise ConfigError(f"steps={args.steps}: must not be negative")
    if args.p_absent is not None and not (isinstance(args.p_absent, int | float) and 0 <= args.p_absent <= 1):
        raise ConfigError(f"p_absent={args.p_absent}: must be a number between 0 and 1")
    known = {"shapes": GENERATED_PHRASES, "shelves": ("p_absent", "holdout")}.get(args.data, ())
    for name in GENERATED_PHRASES:
        if name not in known and args[name] != defaults[name]:
            raise ConfigError(f"{name}: does nothing with data={args.data}; leave it out")
    if args.backbone in ("", "random") and args.trainable not in ("", "all"):
        raise ConfigError(
            f"trainable={args.trainable}: would freeze random units, which teach nothing; leave it out with "
            "backbone=random"
        )


def _of_tensorflow(backbone: str) -> bool:
    """Whether the weights are TensorFlow's, by their name or that of their file."""
    if not Path(backbone).suffix:
        return backbone == TENSORFLOW
    from sm_jax.weights.registry import REGISTRY  # brings jax

    return Path(backbone).name in REGISTRY[TENSORFLOW].files


def _published() -> ConfigDict:
    """The paper's constants, and where it has none those of our specification."""
    return ConfigDict(
        {
            "system": "crossmodal",
            "seed": 0,
            "steps": 0,  # set with the data
            "batch_size": 32,
            "log_every": 25,
            "eval_every": 0,  # set with the data: once per epoch
            "eval_first": False,
            "model": {
                "vocabulary": (),  # set with the data
                "text_length": 16,
                "anchor_sizes": (64.0,),
                "anchor_aspects": (1.0,),
                "rpn_width": 256,
                "roi": "align",
                "proposal_width": 256,
                "proposal_hidden": 256,
                "embed": 64,
                "text_encoder": "transformer",
                "text_features": 0,
                "text_width": 64,
                "text_heads": 2,
                "text_layers": 1,
                "text_ffn": 256,
                "dropout": 0.1,
                "align": "mlp",
                "align_hidden": 64,
                "trainable": "all",
                "freeze_bn": False,
                "image_size": (512, 512),
                "dtype": "float32",
                "padding": "torch",
            },
            "objective": {
                "positive_iou": 0.6,
                "negative_iou": 0.1,
                "force": "per_gt",
                "max_positives": 32,
                "rpn_weight": 1.0,
                "loc_weight": 1.0,
                "align_weight": 1.0,
                "align_boxes": "decoded",
                "gt_mix_steps": 125,  # set with the data: the first epoch
                "unk_rate": 0.01,
                "beta": 1.0,
            },
            "init": {"backbone": "", "model": ""},
            "data": {
                "source": "shapes",
                "max_boxes": 20,
                "flips": False,
                "workers": 2,
                "cache_dir": "",
                "cache_trunk": False,
                "text_features": "",  # .npz of sentence embeddings, for model.text_encoder=features
                "shapes": {
                    "seed": 0,
                    "num_train": 4000,
                    "num_val": 500,
                    "num_test": 500,
                    "image_size": (512, 512),
                    "count": (10, 20),
                    "size_range": (48, 80),
                    "max_iou": 0.0,
                    "triangle_box": "square",
                    "p_absent": 0.0,
                    "p_union": 0.0,
                    "long_forms": False,
                    "holdout_phrasing": 0.1,
                    "holdout_pairs": (),
                },
                "shelves": {"num_train": 2000, "num_val": 200, "num_test": 200},
                "shelf_phrases": {
                    "phrase_seed": 0,
                    "p_absent": 0.0,
                    "p_flavour": 0.2,
                    "holdout_phrasing": 0.1,
                },
            },
            "optim": {
                "name": "sgd",
                "lr": 1e-2,
                "momentum": 0.9,
                "weight_decay": 1e-5,
                "clip_norm": 10.0,
                "schedule": "multistep",
                "milestones": (),  # set with the data
                "gamma": 0.9,
                "warmup": 0,
                "lr_end": 0.0,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                "adam_parts": (),  # parts of the model that use Adam beside `name`
                "adam_lr": 1e-3,
                "loss_scale": "auto",
                "reload_best_at_drop": False,
                "accumulate": 1,
                "ema": 0.0,
            },
            "mesh": {"data": -1, "fsdp": 1},
            "distributed": False,
            # The paper takes the last epoch: nothing is selected by validation.
            "checkpoint": {"every": 0, "keep": 2, "keep_best": 0, "best_metric": "", "mode": "max"},
            "eval": {
                "splits": ("val",),
                "kinds": (),
                "min_conf": 0.5,
                "nms_iou": 0.5,
                "max_proposals": 100,
                "match_iou": 0.5,
                "align_threshold": 0.5,
                "score_threshold": 0.5,
                "iou_thresholds": (0.5,),
                "batch_size": 8,
                "max_phrases": 8,
                "max_images": 0,
                "pictures": 8,
            },
        }
    )


def _two_cores(config: ConfigDict) -> None:
    """A model of less than 10 MB in half precision, whose last units learn on stored features.

    Adam for phrases and alignment, and more weight on the boxes, get further in few epochs.
    """
    config.model.update(rpn_width=96, proposal_width=96, trainable="last4")
    config.data.cache_trunk = True
    config.objective.loc_weight = 10.0
    config.optim.adam_parts = ("text", "align")
    config.eval.max_images = 100  # while training; `evaluate.py --config.eval.max_images=0` takes all


def _runlocal(config: ConfigDict) -> None:
    """Everything once, on small pictures of a few shapes."""
    config.update(log_every=2, eval_first=True)
    config.model.update(rpn_width=32, proposal_width=32, image_size=(192, 192), trainable="last2")
    config.data.shapes.update(num_train=16, num_val=4, num_test=4, image_size=(192, 192), count=(2, 4))
    config.data.shelves.update(num_train=16, num_val=4, num_test=4)
    config.eval.update(max_images=4, pictures=2, batch_size=4)


def _by_data(config: ConfigDict, *, epochs: int) -> None:
    """What follows from the training data: the vocabulary, and the schedule counted in epochs.

    With N images an epoch is N / batch_size steps. The rate is multiplied by `gamma` every 3 epochs (StepLR
    in the paper), the alignment sees annotated boxes beside its own in the first, and each is evaluated.
    """
    from sm_jax.data import make_phrase_source  # reads the phrases; needs neither jax nor the pictures
    from sm_jax.text import words

    train = make_phrase_source(config.data, "train")
    config.model.vocabulary = tuple(train.vocabulary)
    longest = max(1 + len(words(phrase)) for phrase in train.phrases)
    config.model.text_length = max(config.model.text_length, longest)
    config.data.max_boxes = max(config.data.max_boxes, train.most_boxes)
    steps = max(1, -(-len(train) // config.batch_size))
    config.steps = epochs * steps
    config.eval_every = config.checkpoint.every = config.objective.gt_mix_steps = steps
    config.optim.milestones = tuple(range(EPOCHS_PER_DROP * steps, config.steps, EPOCHS_PER_DROP * steps))
