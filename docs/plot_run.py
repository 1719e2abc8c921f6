"""Draw a run's curves (needs matplotlib): python docs/plot_run.py RUN OUT.png"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from sm_jax.training import metrics


def main(run: str, out: str) -> None:
    """AP of the evaluations on unseen classes, and the localisation loss of the reports, by step."""
    evaluations = {int(k): v for k, v in json.loads((Path(run) / "evaluations.json").read_text()).items()}
    lines = [line for line in metrics.read(Path(run)) if "loc_loss" in line]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for name in ("val/mAP@0.50", "val/mAP@0.75"):
        left.plot(list(evaluations), [v[name] for v in evaluations.values()], marker="o", label=name)
    left.set(xlabel="step", ylabel="AP, unseen classes", ylim=(0, 1), title="0: identity transformation")
    left.legend()
    right.plot([line["step"] for line in lines], [line["loc_loss"] for line in lines])
    right.set(xlabel="step", ylabel="localisation loss (training)", ylim=(0, None))
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
