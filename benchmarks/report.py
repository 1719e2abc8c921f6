"""The benchmark's results as text."""

from typing import Any

HEADING = ("levels", "locations", "images", "classes", "chunk", "candidates", "phrases", "width")
HEADING += ("requests", "fusion", "proposals")


def environment(facts: dict[str, Any], options: dict[str, Any]) -> None:
    """What ran where."""
    print(", ".join(f"{name} {facts[name]}" for name in ("date", "python", "jax", "jaxlib", "flax", "numpy")))
    print(f"{facts['processor']}; {facts['cores']} cores; jax on {facts['jax_device']}")
    print(f"float32 products: jax {facts['jax_matmul_precision']}")
    if "torch_device" in facts:
        print(f"PyTorch {facts['torch']}, torchvision {facts['torchvision']}, on {facts['torch_device']}")
        print(f"PyTorch: {facts['torch_threads']} threads, TF32 {facts['torch_tf32']}")
    names = {"dtype": "features", "head_dtype": "head", "model": "model"}
    print(", ".join(f"{shown} {options[name]}" for name, shown in names.items() if name in options))
    load = facts["load_average"]
    print(f"load average {'unknown' if load is None else format(load, '.1f')}, {options['rounds']} rounds")
    print(flush=True)


def row(values: dict[str, Any], *, clock: str) -> None:
    """One measurement: a heading, then a line for each implementation."""
    parts = [values["what"]]
    if "size" in values:
        parts.append("{1} x {0}".format(*values["size"]))
    for name in HEADING:
        if name in values:
            parts.append(f"{name} {values[name]}")
    print(", ".join(parts))
    width = max(map(len, values["times"]))
    for name, times in values["times"].items():
        line = f"  {name:{width}}"
        for kind in ("cpu", "wall"):
            line += f"  {kind} {times[f'{kind}_median_ms']:9.2f} ms (min {times[f'{kind}_min_ms']:.2f})"
        if name in values.get("ratio", {}):
            line += f"  ours / {name} = {values['ratio'][name]:.3f} ({clock})"
        if name in values.get("images_per_second", {}):
            per = "images per second of CPU time" if clock == "cpu" else "images/s"
            line += f"  {values['images_per_second'][name]:.1f} {per}"
        if name in values.get("share_of_peak", {}):
            line += f"  {100 * values['share_of_peak'][name]:.0f} % of peak"
        print(line)
    for line in _facts(values):
        print(f"    {line}")
    print(flush=True)


def _facts(values: dict[str, Any]) -> list[str]:
    lines = []
    for name, difference in values.get("agreement", {}).items():
        if not isinstance(difference, dict):
            lines.append(f"{name}: {difference}")
        elif "ours" in difference:
            lines.append(f"{name}: ours {difference['ours']:.6g}, eager {difference['eager']:.6g}")
        else:
            shown = ", ".join(f"{key} {value:.1e}" for key, value in difference.items())
            lines.append(f"largest difference to {name}: {shown}")
    memory = []
    if values.get("temp_mb") is not None:
        memory.append(f"{values['temp_mb']:.1f} MB temporary")
    if values.get("temp_per_cell") is not None:
        memory.append(f"{values['temp_per_cell'] / 1e3:.2f} KB temporary per location and class")
    extra = values.get("extra_mb", {}).items()
    memory += [f"{name} +{mb:.0f} MB resident" for name, mb in extra if mb is not None]
    if memory:
        lines.append("memory: " + ", ".join(memory))
    if "compile_s" in values:
        lines.append(f"compiled in {values['compile_s']:.1f} s (wall)")
    return lines


def footnotes(clock: str) -> None:
    """How to read the lines."""
    print(f"ratio: our {clock} time over theirs in the same round, median; below 1: ours is faster")
    print("temporary memory: the compiler's figure; resident: rise of the process's peak memory in one call")
