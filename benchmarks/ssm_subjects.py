"""One semantic matcher, pictures and cached requests for ours and for PyTorch, and the calls to compare.

Three implementations: "ours"; "eager", the PyTorch modules as they are (NCHW, the head not collapsed);
"tuned", channels last with merged convolutions and the collapsed head.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import material
from benchmarks import torch_ssm as peer
from benchmarks.measure import Call, Program, compiled
from benchmarks.peers import TORCH_TYPES, OnDevice, jax_call
from sm_jax import weights
from sm_jax.data.transforms import bgr_minus_mean
from sm_jax.systems.ssm import model, predict

EAGER_CHUNK = 8  # requests at a time where the head is not collapsed


@dataclasses.dataclass
class Peers(OnDevice):
    """One set of weights in all implementations, and pictures.

    Attributes:
      config: our model; `dtype` is that of all three (PyTorch's by autocast).
      device: "cpu" or "cuda".
      variables: our weights.
      eager, tuned: PyTorch's, in evaluation mode.
      images, requests: f32 "b H W 3" and "b h w 3", BGR minus 127.
    """

    config: model.ModelConfig
    device: str
    variables: Any
    eager: peer.SSM
    tuned: peer.SSM
    images: np.ndarray
    requests: np.ndarray

    @property
    def autocast(self) -> str:
        """PyTorch computes in the type of our features."""
        return self.config.dtype


class Compared(NamedTuple):
    """The calls that are compared, and our programs: the time to compile and the memory are theirs."""

    calls: dict[str, Call]
    program: Program


def make_variables(config: model.ModelConfig, backbone: str) -> Any:
    """Variables in NumPy: the named branches ("": random), a random head whose offsets are some pixels."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(functools.partial(model.init, config), jax.random.key(0))

    def draw(path, leaf):
        return material.random_leaf(rng, path[-1].key, leaf.shape)

    drawn = jax.tree.map_with_path(draw, shapes)
    return weights.initialize(drawn, {"backbone": backbone, "model": ""})[0]


def make(*, side: int, images: int, fusion: str, backbone: str, device: str, dtype: str) -> Peers:
    """Weights of one `fusion`, `images` pictures of `side` pixels and as many requests of `side / 4`."""
    config = model.ModelConfig(
        fusion=fusion, dropout=0.0, image_size=(side,) * 2, request_size=(side // 4,) * 2, dtype=dtype
    )
    variables = make_variables(config, backbone)
    rng = np.random.default_rng(1)

    def pictures(size):
        return np.stack([bgr_minus_mean(material.make_picture(rng, size)) for _ in range(images)])

    eager = peer.load(variables, gap=not config.aligned).eval().to(device)
    pairs = pictures(config.image_size), pictures(config.request_size)
    return Peers(config, device, jax.device_put(variables), eager, peer.tuned(eager), *pairs)


def _layouts(peers: Peers, array: np.ndarray) -> dict[str, torch.Tensor]:
    plain = peers.to_torch(array)
    return {"eager": plain, "tuned": plain.to(memory_format=torch.channels_last)}


def _branch(peers: Peers, name: str, pictures: np.ndarray, ours) -> Compared:
    on_jax, on_torch = jax.device_put(pictures), _layouts(peers, pictures)
    program = compiled(ours, peers.variables, on_jax)
    calls = {"ours": jax_call(lambda: program.call(peers.variables, on_jax))}
    for other in ("eager", "tuned"):
        run = getattr(getattr(peers, other), name)
        calls[other] = peers.torch_call(functools.partial(run, on_torch[other]))
    return Compared(calls, program)


def features(peers: Peers, images: int) -> Compared:
    """The test branch on some pictures."""
    extract = functools.partial(model.extract, peers.config)
    return _branch(peers, "image", peers.images[:images], lambda v, x: extract(v, {"image": x}))


def encode(peers: Peers, count: int) -> Compared:
    """What is kept of some requests."""
    ours = functools.partial(model.encode, peers.config)
    return _branch(peers, "encode", peers.requests[:count], lambda v, x: ours(v, {"request": x})["request"])


# search


def bank(peers: Peers, count: int) -> jax.Array:
    """So many cached requests on our device: "n h w 1024", or "n 1024" with the gap fusions, non-negative."""
    shape = (count, *(peers.config.request_cells if peers.config.aligned else ()), model.CHANNELS)
    dtype = peers.config.dtype if peers.config.aligned else "float32"

    def draw(key):
        return jax.nn.relu(jax.random.normal(key, shape, dtype))

    return jax.block_until_ready(jax.jit(draw)(jax.random.key(2)))


def search(peers: Peers, requests: jax.Array, *, repeats: int = 1, eager: bool = True) -> Compared:
    """Logits and offsets of one picture with cached `requests`, the picture's features included.

    The requests are read `repeats` times: as many requests as that, without the memory for all of them. What
    returns is the result of the last time. PyTorch's tuned form reads the same memory as ours.

    Args:
      peers: the implementations.
      requests: of `bank`.
      repeats: passes over them.
      eager: also the head that is not collapsed.
    """
    config = peers.config
    image = jax.device_put(peers.images[:1])
    linear = jax.jit(functools.partial(model.collapse, config))(peers.variables)
    extract = compiled(lambda v, x: model.extract(config, v, {"image": x})[0], peers.variables, image)
    maps = extract.call(peers.variables, image)
    match = compiled(functools.partial(model.head_many, config), linear, maps, requests)

    def ours():
        maps = extract.call(peers.variables, image)
        return [match.call(linear, maps, requests) for _ in range(repeats)][-1]

    pictures = _layouts(peers, peers.images[:1])
    shared = torch.from_dlpack(requests)
    shared = shared.permute(0, 3, 1, 2) if config.aligned else shared[..., None, None]
    # Autocast does not reach sums and products: the collapsed head is computed in the type of the features.
    kind = TORCH_TYPES[config.dtype]
    with torch.no_grad():
        weight, bias = (part.to(kind) for part in peers.eager.head.collapse())
    kept = shared.to(kind)

    def tuned():
        maps = peers.tuned.image(pictures["tuned"])
        return [peer.match_collapsed(weight, bias, maps, kept) for _ in range(repeats)][-1]

    calls = {"ours": jax_call(ours)}
    if eager:
        plain = shared.contiguous()

        def uncollapsed():
            maps = peers.eager.image(pictures["eager"])
            return [peers.eager.match(maps, plain, chunk=EAGER_CHUNK) for _ in range(repeats)][-1]

        calls["eager"] = peers.torch_call(uncollapsed)
    calls["tuned"] = peers.torch_call(tuned)
    program = Program(
        None,
        extract.compile_seconds + match.compile_seconds,
        None if match.temp_bytes is None else max(extract.temp_bytes, match.temp_bytes),
    )
    return Compared(calls, program)


def predictor(peers: Peers, requests: jax.Array) -> dict[str, Call]:
    """`Predictor.search` of one picture's features, with requests kept on the device and given as NumPy."""
    made = predict.Predictor(peers.config)
    maps = np.asarray(
        jax.jit(functools.partial(model.extract, peers.config))(peers.variables, {"image": peers.images[:1]})
    )
    given = np.array(requests)
    kept = made.keep(given)
    return {
        name: Call(functools.partial(made.search, peers.variables, maps, form), lambda result: result)
        for name, form in (("kept", kept), ("given", given))
    }


def batched(peers: Peers, images: int) -> Compared:
    """Logits and offsets of some pictures, all with the same one cached request; features included."""
    config, request = peers.config, bank(peers, 1)
    pictures = jax.device_put(peers.images[:images])
    linear = jax.jit(functools.partial(model.collapse, config))(peers.variables)

    def find(variables, linear, pictures, request):
        maps = model.extract(config, variables, {"image": pictures})
        found = jax.vmap(lambda one: model.head_many(config, linear, one, request))(maps)
        return jax.tree.map(lambda x: x[:, 0], found)

    arguments = (peers.variables, linear, pictures, request)
    program = compiled(find, *arguments)
    theirs = _layouts(peers, peers.images[:images])
    cached = peers.to_torch(request)
    cached = cached if config.aligned else cached[..., None, None]
    layout = {"memory_format": torch.channels_last}
    with torch.no_grad():
        weight, bias = peers.eager.head.collapse()
        weight, near = weight[..., None, None].contiguous(**layout), cached.contiguous(**layout)

    def eager():
        return peers.eager.head(peers.eager.image(theirs["eager"]) * cached)

    def tuned():
        return F.conv2d(peers.tuned.image(theirs["tuned"]) * near, weight, bias)

    calls = {
        "ours": jax_call(lambda: program.call(*arguments)),
        "eager": peers.torch_call(eager),
        "tuned": peers.torch_call(tuned),
    }
    return Compared(calls, program)


# agreement


def to_numpy(result: Any) -> np.ndarray:
    """A result of any implementation as f32: maps of ours as NCHW, logits and offsets as "n 5 h w"."""
    if isinstance(result, dict):
        parts = (np.asarray(result["logits"])[..., None], np.asarray(result["offsets"]))
        return np.moveaxis(np.concatenate(parts, -1), -1, 1)
    if isinstance(result, torch.Tensor):
        return result.float().cpu().numpy()
    result = np.asarray(result, np.float32)
    return np.moveaxis(result, -1, 1) if result.ndim == 4 else result[..., None, None]


def difference(calls: dict[str, Call], name: str) -> dict[str, dict[str, float]]:
    """The largest difference of every PyTorch form to ours, of the largest value; for a search, of the logits
    and of the offsets."""
    results = {key: to_numpy(call()) for key, call in calls.items()}
    ours, found = results.pop("ours"), {}
    for other, theirs in results.items():
        parts = {"logit": slice(0, 1), "offset": slice(1, 5)} if ours.shape[1] == 5 else {name: slice(None)}
        found[other] = {part: _relative(ours[:, at], theirs[:, at]) for part, at in parts.items()}
    return found


def _relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), np.finfo(np.float32).tiny))
