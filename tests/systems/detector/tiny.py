"""The detector on a backbone of one convolution and 8 channels, in a fraction of a second."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from sm_jax.backbones import resnet
from sm_jax.backbones.common import hide, valid_cells
from sm_jax.data import transforms
from sm_jax.systems.detector import model
from tests.evaluators.fake_source import Squares

CHANNELS = 8


class Cells(nn.Module):
    """One 16x16 convolution of stride 16 in place of a ResNet, masked as that is."""

    @nn.compact
    def __call__(self, image, size=None, *, train=False):
        del train
        low = [(0, -side % 16) for side in image.shape[1:3]]
        image = jnp.pad(image, ((0, 0), *low, (0, 0)))
        x = nn.relu(nn.Conv(CHANNELS, (16, 16), strides=16, padding="VALID", name="conv1")(image))
        if size is None:
            return {"c4": x}
        return {"c4": hide(x, valid_cells(resnet.feature_size(size), x.shape[1:3]))}


def patch(monkeypatch):
    """Put `Cells` in the place of the ResNet."""
    monkeypatch.setattr(model, "backbone", lambda config: Cells())
    monkeypatch.setattr(model, "CHANNELS", CHANNELS)


def config(**options):
    small = {"anchor_sizes": (40.0, 80.0), "anchor_aspects": (1.0,), "rpn_width": 16}
    small |= {"roi_channels": 8, "roi_size": 3, "roi_hidden": 32, "shared_boxes": True}
    return model.ModelConfig.create(small | options)


def batch(count=2):
    """Images of `Squares` as a training batch, padded with a box that is none."""
    source = Squares(count)
    entries = [source.annotation(index) for index in range(count)]
    extra = np.float32([[0, 0, 190, 120]])
    return {
        "image": np.stack([transforms.normalize(source.image(index)) for index in range(count)]),
        "boxes": np.stack([np.concatenate([entry["boxes"], extra]) for entry in entries]),
        "labels": np.stack([np.append(entry["labels"], 0) for entry in entries]).astype(np.int32),
        "difficult": np.zeros((count, 3), bool),
        "boxes_valid": np.tile([True, True, False], (count, 1)),
        "valid": np.ones(count, bool),
    }
