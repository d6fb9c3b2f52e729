"""ResNets (He et al.) whose block, depths, widths, strides and stem are settings.

Modules and weights carry torchvision's names, so its checkpoints load unmodified. The stride sits
on the 3 x 3 convolution, as in the paper's reference [55].
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from s3ta.settings import Block, VisionSettings


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm that leaves its running statistics alone in training.

    It normalises the microbatch it is given and keeps that one's mean and (unbiased) variance in
    `seen`; the training step updates the running ones once, from the mean over all microbatches.
    """

    seen: tuple[Tensor, Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the base class's name)
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        # With momentum 1 the kernel stores exactly this batch's statistics in the two buffers.
        output = F.batch_norm(input, mean, var, self.weight, self.bias, True, 1.0, self.eps)
        self.seen = (mean, var)
        return output


def batchnorms(module: nn.Module) -> Iterator[BatchNorm]:
    """All BatchNorm layers, in the order of the module tree."""
    return (m for m in module.modules() if isinstance(m, BatchNorm))


def recompute_blocks(module: nn.Module) -> None:
    """From now on residual blocks keep no activations in training."""
    for block in module.modules():
        if isinstance(block, _Residual):
            block.recompute = True


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class _Residual(nn.Module):
    """The shared part of both blocks: shortcut, sum, ReLU."""

    downsample: nn.Sequential | None
    recompute = False
    """Keep only the input in training, and compute what is inside again in the backward pass."""

    def branch(self, x: Tensor) -> Tensor:
        raise AssertionError("each block has its own branch")

    def forward(self, x: Tensor) -> Tensor:
        if self.recompute and self.training:
            # Done twice, BatchNorm notes the same statistics twice.
            return checkpoint(self._forward, x, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        # In place, here and below: nothing needs the sum itself, and fresh memory costs time.
        return F.relu(self.branch(x).add_(shortcut), inplace=True)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), BatchNorm(outputs))


class BasicBlock(_Residual):
    """Two 3 x 3 convolutions."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, width, 3, stride), BatchNorm(width)
        self.conv2, self.bn2 = _conv(width, width, 3), BatchNorm(width)
        self.downsample = _shortcut(inputs, width, stride)
        nn.init.zeros_(self.bn2.weight)  # [55]: a block starts as the identity

    def branch(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.bn2(self.conv2(out))  # type: ignore[no-any-return]


class Bottleneck(_Residual):
    """1 x 1, 3 x 3, 1 x 1 convolutions; four times the width goes out."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, width, 1), BatchNorm(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), BatchNorm(width)
        self.conv3, self.bn3 = _conv(width, 4 * width, 1), BatchNorm(4 * width)
        self.downsample = _shortcut(inputs, 4 * width, stride)
        nn.init.zeros_(self.bn3.weight)

    def branch(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        return self.bn3(self.conv3(out))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """Normalised images (B, C, H, W) -> feature map (B, channels, h, w), or logits (B, classes)."""

    def __init__(
        self, settings: VisionSettings, channels: int = 3, classes: int | None = None
    ) -> None:
        super().__init__()
        s = settings
        self.conv1 = _conv(channels, s.stem_channels, s.stem_kernel, s.stem_stride)
        self.bn1 = BatchNorm(s.stem_channels)
        self.pool = nn.MaxPool2d(3, 2, padding=1) if s.stem_pool else nn.Identity()
        block = Bottleneck if s.block is Block.bottleneck else BasicBlock
        inputs, self.stages = s.stem_channels, len(s.depths)
        for i, (depth, width, stride) in enumerate(
            zip(s.depths, s.widths, s.strides, strict=True), 1
        ):
            blocks: list[nn.Module] = []
            for j in range(depth):
                blocks.append(block(inputs, width, stride if j == 0 else 1))
                inputs = width * (4 if block is Bottleneck else 1)
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
        if classes is not None:
            self.fc = final_layer(inputs, classes)

    def features(self, x: Tensor) -> Tensor:
        """The last feature map (B, channels, h, w)."""
        x = self.pool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        for i in range(1, self.stages + 1):
            x = getattr(self, f"layer{i}")(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean(dim=(2, 3)))  # type: ignore[no-any-return]


def final_layer(inputs: int, classes: int) -> nn.Linear:
    """The layer that gives logits: weights from N(0, 0.01), bias 0 ([55])."""
    layer = nn.Linear(inputs, classes)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer
