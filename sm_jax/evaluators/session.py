"""What `evaluate.py` does: choose the model, run the evaluators, report."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sm_jax import evaluators, pretrained
from sm_jax.data import GENERATED
from sm_jax.data.sources.files import outside
from sm_jax.errors import ConfigError
from sm_jax.evaluators import report
from sm_jax.training import commandline


def run(argv: Sequence[str], *, config: str, options: dict[str, Any], help: str) -> int:
    """Evaluate by a command line; see `evaluate.py` for the options. Returns the exit status."""
    line = commandline.read(argv, options=options, help=help)
    values = line.options
    if values["workdir"] and line.config:
        raise ConfigError(
            "give --workdir (a run and its config) or --config (what a run would start from), not both"
        )
    workdir = values["workdir"] or ("" if line.config else newest_run(Path("runs")))
    if workdir:
        settings, variables, name = _of_run(workdir, values["step"], line)
    elif values["step"]:
        raise ConfigError("--step needs --workdir: the run whose checkpoint it is")
    else:
        settings, variables, name = _of_config(line.load(config))
    with settings.unlocked():
        if values["data"]:
            settings.data.source = values["data"]
        if values["split"]:
            settings.eval.splits = (values["split"],)
        if values["protocol"]:
            settings.eval.protocol = values["protocol"]
    print(f"evaluating {name} on {settings.data.source}", flush=True)
    out = Path(values["out"] or Path(workdir or "runs") / "evaluation")
    if settings.data.source not in GENERATED:
        outside(out, settings.data.source)
    document = {"model": name, "data": settings.data.source, "splits": {}}
    with ExitStack() as stack:
        found = evaluators.make(settings, progress=_progress(stack))
        _make_folder(out)
        for split, evaluator in found.items():
            metrics = dict(evaluator.run(variables))
            print(f"{split}: {evaluator.table()}", flush=True)
            document["splits"][split] = {"metrics": report.numbers(metrics)} | evaluator.to_dict()
            if settings.eval.get("pictures", 0):
                evaluator.pictures(out / split, count=settings.eval.pictures)
    report.write(out / "results.json", document)
    drawn = f", pictures: {out}" if settings.eval.get("pictures", 0) else ""
    print(f"results: {out / 'results.json'}{drawn}")
    return 0


def newest_run(folder: Path) -> str:
    """The run below `folder` whose checkpoints changed last; "" without any."""
    runs = [
        path.parent
        for path in folder.glob("*/config.json")
        if any((path.parent / "checkpoints").glob("[0-9]*"))
    ]
    return str(max(runs, key=lambda run: (run / "checkpoints").stat().st_mtime)) if runs else ""


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: {path} cannot be made ({error.strerror})") from error


def _of_run(workdir: str, step: str, line: commandline.CommandLine):
    """(config, variables, description) of a checkpoint."""
    from sm_jax.training import restore_config, restore_variables

    config = restore_config(workdir)
    with config.unlocked():
        config.trained = ConfigDict(config.data.to_dict())  # which the options of this evaluation leave alone
    config = line.apply(config)
    variables, meta = restore_variables(workdir, int(step) if step.isdigit() else step or None)
    return config, variables, f"{workdir}, step {meta['step']}"


def _of_config(config: Any):
    """(config, variables, description) of what a run with this config would start from."""
    variables, lines = pretrained.begin(config)
    for line in lines:
        print(line, flush=True)
    return config, variables, "the start of a run (" + ", ".join(_named(config.init)) + ")"


def _named(init: Any) -> list[str]:
    named = [f"{part} {name}" for part, name in init.items() if name]
    return named or ["random weights"]


def _progress(stack: ExitStack):
    """A progress bar with rate and time left, on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    bars = stack.enter_context(Progress(console=console, transient=True))
    return lambda items, name: bars.track(list(items), description=name)
