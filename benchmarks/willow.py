"""Every method on the ordered pairs of PF-WILLOW, measured by the same code, a row each.

    python benchmarks/willow.py --data=PF-WILLOW [--out=willow.json] [--pairs=N] [--proposals=N] ROW ...

A ROW is METHOD:FEATURES, for example

    nam:hog phm:hog lom:hog        Proposal Flow on plain HOG
    lom:resnet50 lom:googlenet-4d  on a trunk's pooled features
    lom:vgg16-tv-conv43@vgg16      from weights other than its usual ones
    lom:resnet50+plain             features as they are, instead of less their mean over both pictures
    model:RUN,RUN,...              SCNet trained with leave_out, each RUN on the category that it left out
    lom:RUN,RUN,...                LOM on the embedding of such runs

Rows that the file has already are not measured again (delete them to do so); a stopped command goes on with
the row it was in. Everything is deterministic. Runs that leave out some categories give a row of these only.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

if not __package__:  # python benchmarks/willow.py
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from sm_jax import platform
from sm_jax.data import make_pairs, scnet
from sm_jax.data.sources.pair_records import KeypointPair, PairList, category_of
from sm_jax.errors import ConfigError, run_main

ALPHAS = (0.05, 0.1, 0.15)
PUBLISHED = {
    "Proposal Flow, LOM, whitened HOG": (0.284, 0.568, 0.682),
    "SCNet-A": (0.390, 0.725, 0.873),
    "SCNet-AG": (0.394, 0.721, 0.871),
    "SCNet-AG+": (0.386, 0.704, 0.853),
}
"""SCNet (ICCV 2017), table 2: trained on PF-PASCAL. From memory, not checked against the paper's table."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--data", required=True, help="folder of PF-WILLOW")
    parser.add_argument("--out", default="willow.json", help="file of the rows")
    parser.add_argument("--pairs", type=int, default=0, help="evenly spaced pairs instead of all 900")
    parser.add_argument("--proposals", type=int, default=500)
    parser.add_argument("--method", default="prim", help="of the proposals")
    parser.add_argument("--cache", default="", help="folder of cached proposals")
    args = parser.parse_args()
    platform.setup()
    out = Path(args.out)
    rows = json.loads(out.read_text()) if out.is_file() else {}
    section = ConfigDict({"source": args.data, "cache_dir": args.cache})
    section.update(proposals=args.proposals, proposal_method=args.method)
    every = make_pairs(section, "all")
    for row in args.rows:
        key = f"{row} {args.method}-{args.proposals} pairs-{args.pairs or len(every)}"
        if key not in rows:
            rows[key] = measure(row, section, every, count=args.pairs)
            _store(out, rows)
        print(_line(key, rows[key]), flush=True)
    print("\n".join(["", table(rows)]))
    return 0


def measure(row: str, section: Any, every: PairList, *, count: int = 0) -> dict[str, Any]:
    """One row: PCK by pairs and classes, regions, seconds.

    Raises:
      ConfigError: a row that says nothing; WeightsError, DataError.
    """
    from sm_jax.evaluators.correspondence import CorrespondenceEvaluator
    from sm_jax.evaluators.scnet import subset

    method, _, features = row.partition(":")
    if not method or not features:
        raise ConfigError(f"row {row!r}: expected METHOD:FEATURES, such as lom:hog")
    first = features.split(",")[0]
    if (Path(first) / "config.json").is_file():
        matches = _of_runs(method, features.split(","), section, every)
    else:
        matches = _of_features(method, features, section)
    pairs = [pair for pair in subset(every, count) if matches.covers(pair)]
    evaluator = CorrespondenceEvaluator(lambda _: matches, pairs, norms=("bbox",), progress=_progress)
    began = time.monotonic()
    values = dict(evaluator.run(None))
    seconds = time.monotonic() - began
    return {
        "pairs": len(pairs),
        "PCK": {f"{a:.2f}": values[f"bbox/PCK@{a:.2f}"] for a in ALPHAS},
        "class_PCK": {f"{a:.2f}": values[f"bbox/class_PCK@{a:.2f}"] for a in ALPHAS},
        "classes": evaluator.pck_by_class("bbox", 0.1)[1],
        "PCR_AuC": values["PCR_AuC"],
        "mIoU_AuC": values["mIoU_AuC"],
        "protocol": evaluator.protocol,
        "seconds": round(seconds, 1),
    }


class _Of:
    """A `Match` that chooses by the category of the pair; "" stands for all."""

    def __init__(self, parts: dict[str, Callable]):
        self._parts = parts

    def covers(self, pair: KeypointPair) -> bool:
        return "" in self._parts or category_of(pair.class_name) in self._parts

    def __call__(self, pair: KeypointPair):
        return (self._parts.get("") or self._parts[category_of(pair.class_name)])(pair)


def _of_features(method: str, features: str, section: Any) -> _Of:
    """NAM, PHM or LOM on HOG or on an ImageNet trunk."""
    from configs import scnet as published
    from sm_jax import pretrained
    from sm_jax.evaluators import correspondence_methods as methods
    from sm_jax.systems.scnet.model import ModelConfig

    name, _, plain = features.partition("+")
    if plain not in ("", "plain"):
        raise ConfigError(f"features {features!r}: only +plain may follow")
    proposals = scnet.proposal_options(section)
    if name == "hog":
        kind, net, variables = "hog", ModelConfig(), None
    else:
        weights, _, backbone = name.rpartition("@")
        config = published.get_config(
            f"data={section.source},variant=A,backbone={backbone},weights={weights},roi=7,embed=1"
        )
        kind, net = "pool", ModelConfig.create(config.model)
        variables, _ = pretrained.begin(config)
    return _Of({"": methods.untrained(method, kind, net, proposals, centred=not plain)(variables)})


def _of_runs(method: str, runs: list[str], section: Any, every: PairList) -> _Of:
    """SCNet, or LOM and the like on its embedding, each run on what it left out."""
    from sm_jax.evaluators import scnet as evaluator
    from sm_jax.training import restore_config, restore_variables

    parts = {}
    for run in runs:
        config = restore_config(run)
        left_out = config.data.get("leave_out", "")
        if left_out in parts:
            raise ConfigError(f"{run}: another run left out {left_out!r} too")
        mine = every.leave_out(left_out)[1] if left_out else every
        for note in evaluator.overlap(config, mine):
            print(f"note: {note}", flush=True)
        with config.unlocked():
            config.data.update(section)
            config.eval.update(method=method, features="embedding", centred=False)
        variables, _ = restore_variables(run)
        parts[left_out] = evaluator.method(config)[0](variables)
    return _Of(parts)


def table(rows: dict[str, Any]) -> str:
    """All rows, and the published ones."""
    lines = [_line(key, row) for key, row in rows.items()]
    lines += [f"{name:<60} {_values(values)}   published" for name, values in PUBLISHED.items()]
    head = f"{'PF-WILLOW, PCK by the box of the key-points, mean over pairs':<60} @.05  @.10  @.15"
    return "\n".join([head, *lines])


def _line(key: str, row: dict[str, Any]) -> str:
    regions = f"PCR AuC {row['PCR_AuC']:.3f}  mIoU AuC {row['mIoU_AuC']:.3f}"
    return (
        f"{key:<60} {_values(row['PCK'].values())}   {regions}  {row['pairs']} pairs {row['seconds']:.0f} s"
    )


def _values(values: Any) -> str:
    return "  ".join(f"{value:.3f}".removeprefix("0") for value in values)


def _progress(items: Any, name: str) -> Any:
    began = last = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - last > 30:
            last = time.monotonic()
            print(f"  {done}/{len(items)} {name}, {(last - began) / done:.2f} s each", flush=True)
        yield item


def _store(path: Path, rows: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(rows, indent=1) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(run_main(main))
