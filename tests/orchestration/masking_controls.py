"""Small models of which the masking verdict is known, on images made here: factories for a test.

A bright blob on a grey ground of noise: its quadrant is the class. So a model has to find it, and
an attack may hide it and make another. The weights, beside this file, are what running it leaves
there: two minutes on one core.
"""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from s3ta.model import S3TA, build
from s3ta.settings import AttentionSettings, Block, ModelSettings, VisionSettings
from s3ta.vision import batchnorms

WEIGHTS = Path(__file__).with_suffix(".safetensors")
SIDE, BLOB, CLASSES = 12, 3, 4
EPSILON = 0.08
SEEDS = (0, 1, 2)
KINDS = ("plain", "resnet", "s3ta")
STEPS, BATCH, RATE = 500, 64, 4e-3


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, 1, 12, 12) and labels (N,)."""
    random = np.random.Generator(np.random.Philox(seed))
    pixels = 0.35 + 0.06 * random.standard_normal((count, 1, SIDE, SIDE))
    labels = random.integers(CLASSES, size=count)
    half = SIDE // 2
    corners = random.integers(half - BLOB + 1, size=(count, 2))
    for image, label, (row, column) in zip(pixels, labels, corners, strict=True):
        top, left = row + half * (label // 2), column + half * (label % 2)
        image[0, top : top + BLOB, left : left + BLOB] += 0.35
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8), labels


def settings(kind: str) -> ModelSettings:
    vision = VisionSettings(
        block=Block.basic,
        depths=[1],
        widths=[12],
        strides=[1],
        stem_channels=12,
        stem_kernel=3,
        stem_stride=2,
        stem_pool=False,
    )
    attention = AttentionSettings(
        heads=2, key_channels=4, basis_frequencies=2, state=16, query_hidden=16, readout_hidden=16
    )
    recurrent = kind == "s3ta"
    return ModelSettings(
        vision=vision,
        attention=attention if recurrent else None,
        unroll=2 if recurrent else 1,
        mlp_head=[] if recurrent else [16],
        mean=[0.35],
        std=[0.1],
    )


def train(kind: str, seed: int) -> nn.Module:
    """Adam on cross-entropy; but for `plain` on images that 4 steps of PGD have moved."""
    model, random = build(settings(kind), CLASSES, seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    pixels, labels = images(STEPS * BATCH, seed=100 + seed)
    for step in range(STEPS):
        part = slice(step * BATCH, (step + 1) * BATCH)
        x, y = torch.from_numpy(pixels[part]).float() / 255, torch.from_numpy(labels[part])
        # First on clean images: from the start the attack would leave nothing to learn.
        epsilon = 0.0 if kind == "plain" else EPSILON * min(1.0, max(0.0, 3 * step / STEPS - 1))
        moved = attacked(model.eval(), x, y, epsilon, random) if epsilon else x
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / STEPS)
        optimizer.zero_grad()
        F.cross_entropy(model.train()(moved), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for norm in batchnorms(model):
            assert norm.seen is not None
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.lerp_(norm.seen[0], 0.1)
            norm.running_var.lerp_(norm.seen[1], 0.1)
    return model.eval()


def attacked(
    model: nn.Module, x: Tensor, y: Tensor, epsilon: float, random: torch.Generator
) -> Tensor:
    moved = x + epsilon * (2 * torch.rand(x.shape, generator=random) - 1)
    for _ in range(4):
        moved = moved.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(moved), y), moved)
        moved = moved + epsilon / 2 * gradient.sign()
        moved = moved.clamp(x - epsilon, x + epsilon).clamp(0, 1)
    return moved.detach()


def honest(kind: str, seed: int) -> nn.Module:
    """As it was trained."""
    model, start = build(settings(kind), CLASSES, seed=0), f"{kind}{seed}."
    stored = load_file(WEIGHTS)
    model.load_state_dict({n.removeprefix(start): t for n, t in stored.items() if start in n})
    return model.eval()


class Quantised(nn.Module):
    """Sees 8 levels of grey: no gradient passes through the rounding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x * 7).round() / 7)  # type: ignore[no-any-return]


class Saturated(Quantised):
    """Logits times 100: the softmax has no gradient left."""

    def forward(self, x: Tensor) -> Tensor:
        return 100 * self.model(x)  # type: ignore[no-any-return]


class Noisy(Quantised):
    """Answers to the image and some noise, another one at each call."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x + 0.1 * torch.randn_like(x))  # type: ignore[no-any-return]


def sharpened(model: nn.Module) -> nn.Module:
    """Attention logits times 30: the maps have no gradient left."""
    model = copy.deepcopy(model)
    assert isinstance(model, S3TA)
    assert model.query is not None
    last = model.query[-1]  # type: ignore[index]
    with torch.no_grad():
        last.weight.mul_(30)
        last.bias.mul_(30)
    return model


def quantised() -> nn.Module:
    return Quantised(honest("resnet", 0))


def saturated() -> nn.Module:
    return Saturated(honest("plain", 0))


def noisy() -> nn.Module:
    return Noisy(honest("resnet", 0))


def sharp() -> nn.Module:
    return sharpened(honest("s3ta", 0))


def __getattr__(name: str) -> Callable[[], nn.Module]:
    """`plain0` to `s3ta2`: a factory is a name in a module."""
    kind, seed = name[:-1], name[-1:]
    if kind not in KINDS or seed not in map(str, SEEDS):
        raise AttributeError(name)
    return partial(honest, kind, int(seed))


if __name__ == "__main__":
    torch.set_num_threads(1)
    tensors = {
        f"{kind}{seed}.{name}": tensor.contiguous()
        for kind in KINDS
        for seed in SEEDS
        for name, tensor in train(kind, seed).state_dict().items()
    }
    save_file(tensors, WEIGHTS)
