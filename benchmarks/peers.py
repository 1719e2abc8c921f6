"""What all sets of peers share: names, types, calls of both frameworks, arrays on their way to PyTorch."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch

from benchmarks.measure import Call

NAMES = ("ours", "eager", "tuned")
TORCH_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def jax_call(function: Callable[[], Any]) -> Call:
    """A call of ours: dispatch, then wait for the result."""
    return Call(function, jax.block_until_ready)


class OnDevice:
    """Base of the peers.

    Attributes:
      device: "cpu" or "cuda".
      autocast: type to which PyTorch casts by itself; "float32" for none.
    """

    device: str
    autocast: str = "float32"

    def to_torch(self, array: Any) -> torch.Tensor:
        """On PyTorch's device, floats as float32; maps (4 axes) become NCHW."""
        array = np.asarray(array)
        array = array if array.dtype.kind in "biu" else array.astype(np.float32)
        array = np.moveaxis(array, -1, 1) if array.ndim == 4 else array
        return torch.from_numpy(np.array(array, order="C")).to(self.device)

    def torch_call(self, function: Callable[[], Any]) -> Call:
        """A call without autograd."""

        def run():
            with torch.inference_mode(), self.precision():
                return function()

        return Call(run, self.wait)

    def precision(self):
        """Autocast to the type of the features."""
        kind = TORCH_TYPES[self.autocast]
        return torch.autocast(self.device, dtype=kind, enabled=kind != torch.float32)

    def wait(self, handle: Any) -> Any:
        """Until PyTorch's device is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return handle
