"""Settings of the vision net."""

import math
from dataclasses import dataclass, field
from enum import Enum

from s3ta.settings.checks import require, require_positive


class Block(Enum):
    """The residual block."""

    basic = "basic"
    bottleneck = "bottleneck"


class Denoise(Enum):
    """By what a feature-denoising block weighs the places over which it takes means ([55])."""

    gaussian = "gaussian"
    """Softmax of the inner products of two embeddings."""
    dot_product = "dot_product"
    """The inner products of the features themselves, over the number of places."""


@dataclass(kw_only=True)
class VisionSettings:
    """A ResNet (He et al.). The defaults are the paper's: ResNet-152, stride 1 in all but block 2.

    One number per residual stage in `depths`, `widths` and `strides`. A bottleneck stage of width w
    gives 4 w channels.
    """

    block: Block = Block.bottleneck
    depths: list[int] = field(default_factory=lambda: [3, 8, 36, 3])
    widths: list[int] = field(default_factory=lambda: [64, 128, 256, 512])
    strides: list[int] = field(default_factory=lambda: [1, 2, 1, 1])
    stem_channels: int = 64
    stem_kernel: int = 7
    stem_stride: int = 2
    stem_pool: bool = True
    """Max-pooling 3 x 3 of stride 2 behind the stem, as for ImageNet."""
    widen: float = 1.0
    """Every width times this, the stem's too, rounded."""
    squeeze_reduction: int | None = None
    """Squeeze-and-excite in every block, with so many times fewer channels inside: 16 in [26]."""
    denoise: Denoise | None = None
    """Feature denoising after each stage ([55])."""

    def __post_init__(self) -> None:
        for name in ("depths", "widths", "strides"):
            require_positive(f"model.vision.{name}", getattr(self, name))
        lengths = {len(self.depths), len(self.widths), len(self.strides)}
        require(
            len(lengths) == 1,
            "model.vision",
            {"depths": self.depths, "widths": self.widths, "strides": self.strides},
            "given with as many depths as widths and strides, one each per stage",
        )
        for name in ("stem_channels", "stem_kernel", "stem_stride"):
            value = getattr(self, name)
            require(value >= 1, f"model.vision.{name}", value, "at least 1")
        require(
            self.stem_kernel % 2 == 1, "model.vision.stem_kernel", self.stem_kernel, "an odd number"
        )
        require(
            0 < self.widen < math.inf and min(self.stem_width, *self.stage_widths) >= 1,
            "model.vision.widen",
            self.widen,
            "positive and finite, and leave each width at least 1",
        )
        least = min(self.stage_channels)
        require(
            self.squeeze_reduction is None or 1 <= self.squeeze_reduction <= least,
            "model.vision.squeeze_reduction",
            self.squeeze_reduction,
            f"from 1 to {least}, the channels of the narrowest stage, or null",
        )
        require(
            self.denoise is not Denoise.gaussian or least >= 2,
            "model.vision.denoise",
            "gaussian",
            "null or dot_product where a stage has a single channel",
        )

    @property
    def stem_width(self) -> int:
        """Channels of the stem that is built."""
        return round(self.stem_channels * self.widen)

    @property
    def stage_widths(self) -> list[int]:
        """Widths of the stages that are built."""
        return [round(width * self.widen) for width in self.widths]

    @property
    def stage_channels(self) -> list[int]:
        """Channels that leave each stage."""
        expansion = 4 if self.block is Block.bottleneck else 1
        return [expansion * width for width in self.stage_widths]

    @property
    def channels(self) -> int:
        """Channels of the last feature map."""
        return self.stage_channels[-1]

    @property
    def plain_name(self) -> str:
        """`ResNet-152`, by its layers."""
        return f"ResNet-{sum(self.depths) * (3 if self.block is Block.bottleneck else 2) + 2}"

    @property
    def name(self) -> str:
        """Such as `SE-ResNet-152 (1,2,1,1) x1.25 denoise`.

        Strides are said where four stages have other ones than ImageNet's usual (1, 2, 2, 2); nets
        of fewer stages have no usual ones.
        """
        parts = [f"SE-{self.plain_name}" if self.squeeze_reduction else self.plain_name]
        if len(self.strides) == 4 and self.strides != [1, 2, 2, 2]:
            parts.append(f"({','.join(map(str, self.strides))})")
        if self.widen != 1:
            parts.append(f"x{self.widen:g}")
        if self.denoise is not None:
            parts.append("denoise" if self.denoise is Denoise.gaussian else "denoise-dot")
        return " ".join(parts)
