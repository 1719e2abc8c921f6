"""The command `sm-jax`: detect | match | data check, preview, build | weights ..."""

import argparse
import re
import sys
from collections.abc import Sequence

import sm_jax
from sm_jax.errors import run_main

EXIT_CODES = """\
exit codes: 0 all well; 1 done, but some picture could not be read or some result not be written (named on
stderr), or a check found problems; 2 nothing done (one line on stderr says why)."""

DETECT_OPTIONS = {
    "--image": {"nargs": "+", "required": True, "metavar": "PATH", "help": "pictures to search, or folders"},
    "--query": {
        "nargs": "+",
        "metavar": "PATH",
        "help": "pictures of one thing each, or folders of them: found by os2d, or by --model ssm",
    },
    "--text": {
        "nargs": "+",
        "metavar": "PHRASE",
        "help": "instead of --query: phrases, each in quotes; what they describe is found by crossmodal",
    },
    "--text-file": {"metavar": "FILE", "help": "phrases, one a line"},
    "--bank": {
        "metavar": "FILE",
        "help": "instead of --query: queries that --save-bank kept, encoded with the same weights",
    },
    "--save-bank": {
        "metavar": "FILE",
        "help": "keep the encoded queries for --bank (or sm_jax.RequestBank.load)",
    },
    "--model": {
        "choices": ("os2d", "crossmodal", "ssm"),
        "help": "os2d finds the very thing, ssm members of its class; default: os2d for --query, crossmodal "
        "for --text",
    },
    "--label": {
        "nargs": "+",
        "metavar": "NAME",
        "help": "a name for each query, or one for all (default: file names, or the phrases); queries of one "
        "name compete",
    },
    "--out": {"metavar": "DIR", "help": "write each image with its detections, and detections.json"},
    "--json": {
        "action": "store_true",
        "help": "print one JSON document on stdout; all else goes to stderr",
    },
    "--scales": {
        "nargs": "+",
        "type": float,
        "metavar": "X",
        "help": "os2d: search the image at these sizes, 1 = as it is; an object is found where it is about "
        "240 pixels large (default: objects from a tenth of the image, or a quarter of the query if that is "
        "larger, up to twice the query or the whole image)",
    },
    "--rotations": {"action": "store_true", "help": "os2d: also search the queries turned by 90, 180, 270"},
    "--mirrored": {"action": "store_true", "help": "os2d: also search their mirror images"},
    "--threshold": {
        "type": float,
        "metavar": "S",
        "help": "only scores above it (default: 0.55; with phrases 0.5; ssm: coverage above 0.5)",
    },
    "--max": {
        "type": int,
        "default": 100,
        "metavar": "N",
        "help": "at most so many per name and image (default: 100)",
    },
    "--top-k": {
        "type": int,
        "metavar": "N",
        "help": "crossmodal: then only the best so many of each image, all names together",
    },
    "--iou": {
        "type": float,
        "metavar": "R",
        "help": "os2d, ssm: of two detections of one name that overlap more, the better one stays (default: "
        "0.3; ssm: 0.5)",
    },
    "--across-labels": {
        "action": "store_true",
        "help": "os2d: different names compete too: at most one detection for each object",
    },
    "--postprocess": {
        "choices": ("default", "released", "grouprect"),
        "help": "ssm: how cells become boxes: voting and suppression (default), as in the published script, "
        "or as in DetectNet",
    },
    "--tiles": {
        "action": "store_true",
        "help": "ssm: search the image as it is, in overlapping windows (default: all of it, scaled to fit)",
    },
    "--weights": {
        "metavar": "W",
        "help": "name (sm-jax weights list), file, or folder of a training run (default: for os2d the "
        "packaged ImageNet features, whose templates are not deformed; for crossmodal crossmodal-shapes; for "
        "ssm ssm-shelves)",
    },
    "--transform": {
        "metavar": "FILE",
        "help": "os2d: weights of the transformation network from another file",
    },
}

MATCH_OPTIONS = {
    "--source": {"required": True, "metavar": "PATH", "help": "the picture whose regions are looked for"},
    "--target": {"required": True, "metavar": "PATH", "help": "the picture in which they are looked for"},
    "--points": {
        "nargs": "+",
        "metavar": "X,Y",
        "help": "points of the source, in pixels, to find in the target",
    },
    "--out": {
        "metavar": "DIR",
        "help": "write matches.json, flow.npz, warped.png (target onto source), matches.png (side by side)",
    },
    "--json": {
        "action": "store_true",
        "help": "print one JSON document on stdout; all else goes to stderr",
    },
    "--method": {
        "choices": ("nam", "phm", "lom", "a", "ag", "ag+"),
        "help": "how matches are scored (default: lom, or a trained model's own: a, ag, ag+)",
    },
    "--features": {
        "metavar": "NAME",
        "help": "what regions are compared by without training: resnet50 (default), googlenet-4d, "
        "googlenet-4e, googlenet-5b, vgg16, resnet101, hog",
    },
    "--proposals": {"type": int, "metavar": "N", "help": "regions per picture (default: 1000)"},
    "--smooth": {"action": "store_true", "help": "a smooth flow of all pixels; takes longer"},
    "--weights": {
        "metavar": "W",
        "help": "a trained model: folder of a training run, or file; or weights of a backbone",
    },
}

NEGATIVE_POINT = re.compile(r"-[\d.][^-]*,.*")
"""What can only be meant as a point with a negative x."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: this process's); returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["match"]:  # argparse would take "-3,5" for an option; a blank before it makes it a value
        argv = [f" {word}" if NEGATIVE_POINT.fullmatch(word) else word for word in argv]
    arguments = parser(whole=argv[:1] == ["weights"]).parse_args(argv)
    return run_main(lambda: arguments.run(arguments))


def parser(*, whole: bool = True) -> argparse.ArgumentParser:
    """The parser; `whole=False` only names the commands whose options take long to import."""
    top = argparse.ArgumentParser(
        prog="sm-jax",
        description="Semantic matching: show it one example, it finds it everywhere.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"sm-jax {sm_jax.__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_detect(commands)
    _add_match(commands)
    _add_data(commands)
    if whole:
        from sm_jax.weights import cli as weights

        weights.add_parser(commands)
    else:
        commands.add_parser("weights", help="list, inspect, convert and check pretrained weights")
    return top


def _add_detect(commands) -> None:
    command = commands.add_parser(
        "detect",
        help="find what pictures show, or phrases describe, in other pictures",
        description="Find what the query pictures show, or the phrases describe, in the images.",
        epilog="examples: sm-jax detect --image shelf.jpg --query product.jpg --out found\n"
        '          sm-jax detect --image scene.png --text "the red circles" "a square" --out found\n\n'
        + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, options in DETECT_OPTIONS.items():
        command.add_argument(name, **options)
    command.set_defaults(run=_detect)


def _detect(arguments) -> int:
    from sm_jax import platform

    platform.setup()
    from sm_jax import detect_command  # after the platform is settled

    return detect_command.run(arguments)


def _add_match(commands) -> None:
    command = commands.add_parser(
        "match",
        help="find what of one picture lies where in another of the same kind of thing",
        description="Match the regions of two pictures; move points, and every pixel, from one to the other.",
        epilog="example: sm-jax match --source a.jpg --target b.jpg --points 40,62 110,35 --out matched\n\n"
        + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, options in MATCH_OPTIONS.items():
        command.add_argument(name, **options)
    command.set_defaults(run=_match)


def _match(arguments) -> int:
    from sm_jax import platform

    platform.setup()
    from sm_jax import match_command  # after the platform is settled

    return match_command.run(arguments)


def _add_data(commands) -> None:
    command = commands.add_parser("data", help="look at a data set before training on it")
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    action = actions.add_parser(
        "check", help="format, counts, sizes, and everything that is wrong; writes nothing"
    )
    action.add_argument(
        "path",
        help="COCO JSON, Pascal VOC folder, OS2D CSV, ILSVRC-DET, a folder per class, a JSON with phrases, "
        "or key-point pairs: CSV, JSON, PF-PASCAL, PF-WILLOW",
    )
    action.add_argument("--json", action="store_true", help="print the report as one JSON document")
    action.set_defaults(run=_data_check)
    action = actions.add_parser(
        "preview", help="a picture of the first scenes, with boxes and class pictures or phrases"
    )
    action.add_argument("out", nargs="?", help="the picture to write (.png or .jpg)")
    action.add_argument("--config", metavar="FILE[:ARGS]", help="preview the data of this config, into --out")
    action.add_argument("--out", dest="folder", metavar="DIR", help="folder for the scenes and their sheet")
    action.add_argument(
        "--data", default="shelves", metavar="PATH", help="a data set (default: generated shelves)"
    )
    action.add_argument("--split", default="train", help="default: train")
    action.add_argument("-n", type=int, default=6, help="number of scenes (default: 6)")
    action.set_defaults(run=_data_preview)
    action = actions.add_parser(
        "build",
        help="a published data set of OS2D, as the folder that data.source takes",
        description="Build a published data set from the files that its authors offer: grozi, dairy, "
        "paste-v, paste-f, instre-s1, instre-s2, repmet. Nothing is downloaded; docs/reproduce.md says what "
        "to get from where.",
    )
    action.add_argument("name", metavar="NAME", help="the data set")
    action.add_argument(
        "--manual-dir",
        default="data",
        metavar="DIR",
        help="the published files (default: data)",
    )
    action.add_argument(
        "--out", default="built", metavar="DIR", help="where to: DIR/NAME is made (default: built)"
    )
    action.add_argument(
        "--splits", nargs="+", default=[], metavar="SPLIT", help="only these (repmet: test, train, val-N)"
    )
    action.set_defaults(run=_data_build)


def _data_check(arguments) -> int:
    import json

    from sm_jax.data import check, pair_check, phrase_check
    from sm_jax.data.sources import phrase_json

    checker = check
    if phrase_json.recognised(arguments.path):
        checker = phrase_check
    elif pair_check.recognised(arguments.path):
        checker = pair_check
    if not arguments.json:
        return checker.run(arguments.path)
    report = checker.check(arguments.path)
    print(json.dumps(report.to_dict(), indent=2))
    return report.exit_code


def _data_build(arguments) -> int:
    from sm_jax.data.builders import published

    built = published.build(arguments.name, arguments.manual_dir, arguments.out, splits=arguments.splits)
    print(f"built: {built}")
    return 0


def _data_preview(arguments) -> int:
    from sm_jax.data import preview_command

    return preview_command.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
