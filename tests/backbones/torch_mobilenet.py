"""The reference: MobileNetV2 in PyTorch functions, written from the paper, over torchvision's names."""

import torch
from torch.nn import functional

STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def units(state, x, *, start=0, stop=19, train=False, same=False):
    """Outputs of the units `start` to `stop - 1` for `(b, c, h, w)`.

    `state` is changed by the running updates when `train`. `same` pads as TensorFlow does, with zeros,
    instead of 1 on every side.
    """

    def convolve(x, weight, stride, groups):
        size = weight.shape[-1]
        if size == 1:
            return functional.conv2d(x, weight)
        if not same:
            return functional.conv2d(x, weight, stride=stride, padding=1, groups=groups)
        pads = []
        for length in (x.shape[3], x.shape[2]):
            total = max((-(-length // stride) - 1) * stride + size - length, 0)
            pads += [total // 2, total - total // 2]
        return functional.conv2d(functional.pad(x, pads), weight, stride=stride, groups=groups)

    def conv_norm(x, conv, norm, *, stride=1, groups=1, relu6=True):
        x = convolve(x, state[f"{conv}.weight"], stride, groups)
        x = functional.batch_norm(
            x,
            state[f"{norm}.running_mean"],
            state[f"{norm}.running_var"],
            state[f"{norm}.weight"],
            state[f"{norm}.bias"],
            training=train,
            momentum=0.1,
            eps=1e-5,
        )
        return functional.relu6(x) if relu6 else x

    def inverted_residual(x, name, expansion, out, stride):
        y, at = x, 0
        if expansion > 1:
            y, at = conv_norm(y, f"{name}.0.0", f"{name}.0.1"), 1
        y = conv_norm(y, f"{name}.{at}.0", f"{name}.{at}.1", stride=stride, groups=y.shape[1])
        y = conv_norm(y, f"{name}.{at + 1}", f"{name}.{at + 2}", relu6=False)
        return x + y if stride == 1 and x.shape[1] == out else y

    steps = [lambda x: conv_norm(x, "features.0.0", "features.0.1", stride=2)]
    for expansion, out, repeats, first in STAGES:
        for i in range(repeats):
            options = (f"features.{len(steps)}.conv", expansion, out, 1 if i else first)
            steps.append(lambda x, options=options: inverted_residual(x, *options))
    steps.append(lambda x: conv_norm(x, "features.18.0", "features.18.1"))
    outputs = []
    for step in steps[start:stop]:
        x = step(x)
        outputs.append(x)
    return outputs


def tensors(arrays, *, dtype=torch.float32, grad=False):
    """NumPy arrays as tensors; the parameters ask for gradients if `grad`."""
    state = {name: torch.tensor(array, dtype=dtype) for name, array in arrays.items()}
    if grad:
        for name, value in state.items():
            value.requires_grad_(name.endswith(("weight", "bias")))
    return state


def nchw(array):
    """`(b, h, w, c)` as a tensor `(b, c, h, w)`."""
    return torch.tensor(array).permute(0, 3, 1, 2)
