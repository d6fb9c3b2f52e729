"""ResNets (He et al.) whose block, depths, widths, strides, stem and extras are settings.

Modules and weights carry torchvision's names (and timm's for squeeze-and-excite), so checkpoints
load unmodified. The stride sits on the 3 x 3 convolution, as in the paper's reference [55].

B batch, C channels, P = H W places, E embedding channels.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from s3ta.settings import Block, Denoise, VisionSettings


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


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=bias)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class SqueezeExcite(nn.Module):
    """Channels times gates in (0, 1) that the means of all channels open ([26])."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        inside = channels // reduction
        self.fc1, self.fc2 = (
            _conv(*io, 1, bias=True) for io in ((channels, inside), (inside, channels))
        )

    def forward(self, x: Tensor) -> Tensor:
        means_BC11 = x.mean(dim=(2, 3), keepdim=True)
        gates_BC11 = torch.sigmoid(self.fc2(F.relu(self.fc1(means_BC11))))
        return x * gates_BC11


class Denoising(nn.Module):
    """Each place plus what a 1 x 1 convolution makes of a weighted mean over all places ([55]).

    The Gaussian form holds a P x P map per image: 39 MB in float32 at 56 x 56 places, about three
    times that while a gradient passes. (Fused attention kernels would not hold it. But on the CPU
    they ask for values as long as queries; on CUDA, PyTorch's notes say, their gradients may differ
    from call to call, and evaluations refuse such models.) The dot-product form multiplies in the
    order that holds less.
    """

    def __init__(self, channels: int, form: Denoise) -> None:
        super().__init__()
        self.form = form
        if form is Denoise.gaussian:
            self.theta = nn.Conv2d(channels, channels // 2, 1, bias=False)
            self.phi = nn.Conv2d(channels, channels // 2, 1, bias=False)
            for embedding in (self.theta, self.phi):
                nn.init.normal_(embedding.weight, std=0.01)
        self.conv, self.bn = _conv(channels, channels, 1), BatchNorm(channels)
        nn.init.zeros_(self.bn.weight)  # a block starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        x_BCP = x.flatten(2)
        means = self._gaussian(x, x_BCP) if self.form is Denoise.gaussian else _dot_product(x_BCP)
        return self.bn(self.conv(means.view_as(x))).add_(x)  # type: ignore[no-any-return]

    def _gaussian(self, x: Tensor, x_BCP: Tensor) -> Tensor:
        theta_BEP, phi_BEP = self.theta(x).flatten(2), self.phi(x).flatten(2)
        # Scaled before the product: the map is the largest tensor here.
        theta_BEP = theta_BEP * theta_BEP.shape[1] ** -0.5
        weights_BPP: Tensor = (theta_BEP.transpose(1, 2) @ phi_BEP).softmax(dim=-1)
        return (weights_BPP @ x_BCP.transpose(1, 2)).transpose(1, 2)


def _dot_product(x_BCP: Tensor) -> Tensor:
    """x (x^T x) / P without embeddings, by whichever of its two products is smaller."""
    channels, places = x_BCP.shape[1:]
    x_BPC = x_BCP.transpose(1, 2)
    if channels < places:
        return (x_BCP @ x_BPC) @ x_BCP / places
    return x_BCP @ (x_BPC @ x_BCP) / places


class _Residual(nn.Module):
    """The shared part of both blocks: shortcut, sum, ReLU."""

    downsample: nn.Sequential | None
    se: nn.Module
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
        return F.relu(self.se(self.branch(x)).add_(shortcut), inplace=True)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), BatchNorm(outputs))


def _squeeze(channels: int, reduction: int | None) -> nn.Module:
    """On the branch, behind its last BatchNorm and before the sum ([26], Figure 3)."""
    return nn.Identity() if reduction is None else SqueezeExcite(channels, reduction)


class BasicBlock(_Residual):
    """Two 3 x 3 convolutions."""

    def __init__(
        self, inputs: int, width: int, stride: int, squeeze_reduction: int | None = None
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, width, 3, stride), BatchNorm(width)
        self.conv2, self.bn2 = _conv(width, width, 3), BatchNorm(width)
        self.se = _squeeze(width, squeeze_reduction)
        self.downsample = _shortcut(inputs, width, stride)
        nn.init.zeros_(self.bn2.weight)  # [55]: a block starts as the identity

    def branch(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.bn2(self.conv2(out))  # type: ignore[no-any-return]


class Bottleneck(_Residual):
    """1 x 1, 3 x 3, 1 x 1 convolutions; four times the width goes out."""

    def __init__(
        self, inputs: int, width: int, stride: int, squeeze_reduction: int | None = None
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, width, 1), BatchNorm(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), BatchNorm(width)
        self.conv3, self.bn3 = _conv(width, 4 * width, 1), BatchNorm(4 * width)
        self.se = _squeeze(4 * width, squeeze_reduction)
        self.downsample = _shortcut(inputs, 4 * width, stride)
        nn.init.zeros_(self.bn3.weight)

    def branch(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        return self.bn3(self.conv3(out))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """Normalised images (B, C, H, W) -> feature map (B, channels, h, w), or logits (B, classes)."""

    def __init__(
        self,
        settings: VisionSettings,
        channels: int = 3,
        classes: int | None = None,
        hidden: Sequence[int] = (),
    ) -> None:
        super().__init__()
        s = settings
        self.conv1 = _conv(channels, s.stem_width, s.stem_kernel, s.stem_stride)
        self.bn1 = BatchNorm(s.stem_width)
        self.pool = nn.MaxPool2d(3, 2, padding=1) if s.stem_pool else nn.Identity()
        block = Bottleneck if s.block is Block.bottleneck else BasicBlock
        inputs, self.stages = s.stem_width, len(s.depths)
        stages = zip(s.depths, s.stage_widths, s.strides, s.stage_channels, strict=True)
        for i, (depth, width, stride, outputs) in enumerate(stages, 1):
            blocks: list[nn.Module] = []
            for j in range(depth):
                blocks.append(block(inputs, width, stride if j == 0 else 1, s.squeeze_reduction))
                inputs = outputs
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
            denoise = nn.Identity() if s.denoise is None else Denoising(outputs, s.denoise)
            setattr(self, f"denoise{i}", denoise)
        if classes is not None:
            # One layer alone has torchvision's name, `fc`.
            self.fc = mlp(inputs, hidden, classes) if hidden else final_layer(inputs, classes)

    def features(self, x: Tensor) -> Tensor:
        """The last feature map (B, channels, h, w)."""
        x = self.pool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        for i in range(1, self.stages + 1):
            x = getattr(self, f"denoise{i}")(getattr(self, f"layer{i}")(x))
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean(dim=(2, 3)))  # type: ignore[no-any-return]


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Linear layers with a ReLU behind each but the last, which gives logits."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, final_layer(inputs, outputs))


def final_layer(inputs: int, classes: int) -> nn.Linear:
    """The layer that gives logits: weights from N(0, 0.01), bias 0 ([55])."""
    layer = nn.Linear(inputs, classes)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer
