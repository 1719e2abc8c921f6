"""Timing of several implementations against each other, fair on a shared machine.

The calls are interleaved in one process, in alternating order, and compared by the ratio of their times in
the same round. On a CPU that is process CPU time (all threads), which other people's load hardly touches; on
a GPU it is wall time with the device synchronised inside the timed region.
"""

import ctypes
import gc
import importlib.metadata
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]
SHORTEST = 2e-3  # seconds; shorter calls are repeated within one measurement


class Call(NamedTuple):
    """`run()` starts the work and returns a handle; `wait(handle)` returns when it is done."""

    run: Callable[[], Any]
    wait: Callable[[Any], Any]

    def __call__(self) -> Any:
        return self.wait(self.run())


class Times(NamedTuple):
    """Seconds per call, one entry per round."""

    wall: list[float]
    cpu: list[float]

    def summary(self) -> dict[str, float]:
        """Milliseconds: median and minimum of both clocks."""
        return {
            f"{name}_{kind}_ms": 1e3 * pick(values)
            for name, values in (("wall", self.wall), ("cpu", self.cpu))
            for kind, pick in (("median", statistics.median), ("min", min))
        }


def quiet_threads() -> None:
    """Let OpenMP's idle threads sleep: spinning would count as CPU time. Before PyTorch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # one GPU for both frameworks


def interleave(calls: Mapping[str, Call], *, rounds: int) -> dict[str, Times]:
    """Time `calls` against each other: two warm-up calls each, then `rounds` rounds in alternating order."""
    repeats = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        repeats[name] = min(100, max(1, math.ceil(SHORTEST / max(seconds, 1e-9))))
    times = {name: Times([], []) for name in calls}
    for number in range(rounds):
        for name in list(calls) if number % 2 == 0 else list(calls)[::-1]:
            wall, cpu = _timed(calls[name], repeats[name])
            times[name].wall.append(wall)
            times[name].cpu.append(cpu)
    return times


def _timed(call: Call, repeats: int) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(repeats - 1):
        call.run()
    call()
    return (time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats


def once(call: Call) -> tuple[Any, Times]:
    """What a call of many seconds returns, and its times: one round, without a warm-up."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    return result, Times([time.perf_counter() - wall], [time.process_time() - cpu])


def ratio(times: Mapping[str, Times], ours: str, other: str, *, clock: str) -> float:
    """Median over the rounds of the ratio of `ours` to `other`; `clock` is "cpu" or "wall"."""
    pairs = zip(getattr(times[ours], clock), getattr(times[other], clock), strict=True)
    return statistics.median(a / b for a, b in pairs)


def clock(device: str) -> str:
    """The clock that ratios use: "cpu" on a CPU, "wall" on a GPU."""
    return "cpu" if device == "cpu" else "wall"


def compare(what: str, calls: Mapping[str, Call], *, rounds: int, clock: str, **facts: Any) -> Row:
    """One row: the times of all `calls` and, where one is "ours", the ratios of ours to the others.

    With `images` among the `facts`, also images per second of each.
    """
    times = interleave(calls, rounds=rounds)
    row: Row = {"what": what, **facts, "times": {name: t.summary() for name, t in times.items()}}
    if "ours" in times:
        row["ratio"] = {name: ratio(times, "ours", name, clock=clock) for name in times if name != "ours"}
    if "images" in facts:
        row["images_per_second"] = {
            name: 1e3 * facts["images"] / shown[f"{clock}_median_ms"] for name, shown in row["times"].items()
        }
    return row


class Program(NamedTuple):
    """A compiled jax function: `call(*args)`, seconds to trace and compile, and temporary bytes (or None)."""

    call: Callable[..., Any]
    compile_seconds: float
    temp_bytes: int | None


def compiled(function: Callable[..., Any], *args: Any, **jit_options: Any) -> Program:
    """Trace and compile `function` for `args` (arrays or `ShapeDtypeStruct`)."""
    import jax

    start = time.perf_counter()
    program = jax.jit(function, **jit_options).lower(*args).compile()
    seconds = time.perf_counter() - start
    analysis = program.memory_analysis()
    return Program(program, seconds, None if analysis is None else int(analysis.temp_size_in_bytes))


def compiler_facts(program: Program) -> Row:
    """Of a row: seconds to compile, and temporary megabytes (None where unknown)."""
    bytes_used = program.temp_bytes
    return {"compile_s": program.compile_seconds, "temp_mb": None if bytes_used is None else bytes_used / 1e6}


def extra_megabytes(calls: Mapping[str, Call]) -> dict[str, float | None]:
    """`peak_extra` of each call in megabytes."""
    extra = {name: peak_extra(call) for name, call in calls.items()}
    return {name: None if value is None else value / 1e6 for name, value in extra.items()}


def peak_extra(call: Call) -> int | None:
    """Bytes by which the resident memory rises at most during `call()`, on Linux; None where unknown."""
    try:
        _release_memory()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except (OSError, KeyError):
        return None


def _release_memory() -> None:
    """Give free heap pages back: what an earlier call left behind would hide this one's need."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError) as error:
        raise OSError("no malloc_trim here") from error


def _status(field: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[field].split()[0])


def environment(device: str) -> dict[str, Any]:
    """Versions, device, threads and load, as far as they can be found; PyTorch's where it takes part."""
    import jax

    torch = sys.modules.get("torch")
    facts: dict[str, Any] = {"python": platform.python_version()}
    for package in ("jax", "jaxlib", "flax", "numpy", "torch", "torchvision"):
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    facts["processor"] = _processor()
    facts["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    first = jax.devices()[0]
    facts["jax_device"] = f"{first.device_kind} ({first.platform})"
    facts["jax_matmul_precision"] = str(jax.config.jax_default_matmul_precision)
    if torch is not None:
        facts["torch_threads"] = torch.get_num_threads()
        facts["torch_device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        facts["torch_tf32"] = bool(torch.backends.cuda.matmul.allow_tf32)
    facts["load_average"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    facts["date"] = time.strftime("%Y-%m-%d")
    return facts


def _processor() -> str:
    """Model and the widest vector instructions, without the machine's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    family = f"family {facts.get('cpu family', '?')} model {facts.get('model', '?')}"
    return f"{facts.get('model name', platform.machine())}, {family}, {' '.join(wide)}"
