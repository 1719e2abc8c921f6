"""What a command settles before jax is used: the platform, the compile cache, quiet logs.

A library import never calls this; `train.py`, `evaluate.py` and `sm-jax` do, first of all.
"""

import hashlib
import importlib.util
import logging
import os
import platform as host
import sys
from pathlib import Path

from sm_jax.errors import ConfigError

_NVIDIA_NODES = tuple(f"/dev/{name}" for name in ("nvidia0", "nvidiactl", "nvidia-caps", "dxg", "nvhost-gpu"))
_CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


def setup(*, compile_cache: bool = True) -> None:
    """Prepare this process for a command: platform, persistent compile cache, and no library chatter.

    Call it before jax is imported. What the environment says (`JAX_PLATFORMS`, `TF_CPP_MIN_LOG_LEVEL`,
    `JAX_COMPILATION_CACHE_DIR`, `JAX_ENABLE_COMPILATION_CACHE`) is left alone.
    """
    if choose_platform() == "cpu" or not (_cuda_installed() and nvidia_device_present()):
        # jaxlib 0.10 logs an ERROR for each CPU program from the cache, about two pseudo features of the
        # processor ("prefer-no-gather") that XLA itself added; failures still come as exceptions.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if compile_cache:
        enable_compile_cache()
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax and grain report normal events as warnings


def choose_platform() -> str:
    """Settle on the CPU where CUDA wheels are installed but no NVIDIA device is there; return what was set.

    Without this the CUDA plugin logs an ERROR with a traceback before jax falls back to the CPU. Returns ""
    when jax is left to choose.
    """
    chosen = os.environ.get("JAX_PLATFORMS", "")
    if chosen:
        return chosen
    if not _cuda_installed() or _installed("libtpu") or nvidia_device_present():
        return ""
    os.environ["JAX_PLATFORMS"] = "cpu"  # for worker processes
    _configure("jax_platforms", "cpu")  # for this one, where jax may have been imported already
    return "cpu"


def nvidia_device_present() -> bool:
    """Whether an NVIDIA device can be seen (device nodes, not hidden by `CUDA_VISIBLE_DEVICES`)."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "NoDevFiles"):
        return False
    return any(os.path.exists(node) for node in _NVIDIA_NODES)


def cache_folder() -> Path:
    """This user's cache folder for sm_jax (not created): `SM_JAX_CACHE`, else the system's usual place."""
    if os.environ.get("SM_JAX_CACHE"):
        return Path(os.environ["SM_JAX_CACHE"]).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "sm_jax"


def enable_compile_cache() -> Path | None:
    """Keep compiled programs under `cache_folder()`; return the folder, or None where that is not possible.

    The folder's name carries the processor, because a home folder may be shared by unlike machines and CPU
    programs are compiled for one instruction set.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    if os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "true").lower() in ("0", "false"):
        return None
    folder = cache_folder() / "compiled" / hashlib.sha256(_processor().encode()).hexdigest()[:12]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None  # a read-only home is no reason to stop
    _configure("jax_compilation_cache_dir", str(folder))
    return folder


def describe_devices() -> str:
    """One line on the devices in use, for example `8 x cpu (cpu)`; `ConfigError` when jax finds none."""
    import jax

    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX_PLATFORMS=cuda without a device: a bare assertion
        reason = (str(error).splitlines() or ["no reason given"])[0]
        wanted = os.environ.get("JAX_PLATFORMS", "")
        raise ConfigError(
            f"jax finds no device for JAX_PLATFORMS={wanted!r} ({reason}); unset it or set JAX_PLATFORMS=cpu"
        ) from error
    where = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}){where}"


def _configure(name: str, value: str) -> None:
    import jax  # only now: the environment must be settled before

    jax.config.update(name, value)


def _cuda_installed() -> bool:
    return any(map(_installed, _CUDA_PLUGINS))


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{host.machine()} {host.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    first = {line.split(":")[0].strip(): line for line in reversed(lines) if ":" in line}
    return " ".join(first[key] for key in wanted if key in first) or host.machine()
