"""Settings of models."""

import math
from dataclasses import dataclass, field
from enum import Enum

from s3ta.settings.checks import require, require_positive


class Block(Enum):
    """The residual block."""

    basic = "basic"
    bottleneck = "bottleneck"


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

    @property
    def channels(self) -> int:
        """Channels of the last feature map."""
        return self.widths[-1] * (4 if self.block is Block.bottleneck else 1)


@dataclass(kw_only=True)
class AttentionSettings:
    """The recurrent top-down attention controller (S3TA sec. 3).

    The last feature map's channels are split: the first `key_channels` are keys, the rest values.
    """

    heads: int = 4
    key_channels: int = 512
    # ASSUMPTION: the paper does not state the key/value split of its 2048 channels.
    basis_frequencies: int = 8
    """Cosines per axis, u and v in 1..n, so n^2 basis channels."""
    state: int = 1024
    query_hidden: int = 1024
    readout_hidden: int = 1024
    scaled: bool = False
    """Divide the attention logits by the root of the query's length. Off: as in the paper."""

    def __post_init__(self) -> None:
        for name in (
            "heads",
            "key_channels",
            "basis_frequencies",
            "state",
            "query_hidden",
            "readout_hidden",
        ):
            value = getattr(self, name)
            require(value >= 1, f"model.attention.{name}", value, "at least 1")


@dataclass(kw_only=True)
class ModelSettings:
    """A classifier of images in [0, 1]; normalisation lives inside.

    Without `attention` it is the plain ResNet, read by average pooling.
    """

    vision: VisionSettings = field(default_factory=VisionSettings)
    attention: AttentionSettings | None = None
    unroll: int = 1
    """k of S3TA-k: how many glances the controller takes before it answers."""
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    """Per channel, in units of `input_range`; as many as the images have channels."""
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    factory: str | None = None
    """`package.module:function` that gives any PyTorch classifier, to be attacked as it is."""
    input_range: list[float] = field(default_factory=lambda: [0.0, 1.0])
    """What black and white are to a factory's model, before `mean` and `std` are applied."""

    def __post_init__(self) -> None:
        if self.factory is not None:
            module, colon, function = self.factory.partition(":")
            require(
                bool(module and colon and function),
                "model.factory",
                self.factory,
                "written as package.module:function",
            )
            require(
                self.attention is None,
                "model.attention",
                "set",
                "absent where model.factory names a model of your own",
            )
        low_high = self.input_range
        require(
            len(low_high) == 2 and all(map(math.isfinite, low_high)) and low_high[0] < low_high[1],
            "model.input_range",
            low_high,
            "two finite numbers, black and white, such as [0, 255]",
        )
        require(
            self.factory is not None or low_high == [0.0, 1.0],
            "model.input_range",
            low_high,
            "[0, 1] unless model.factory names a model of your own",
        )
        require(self.unroll >= 1, "model.unroll", self.unroll, "at least 1")
        if self.attention is None:
            require(
                self.unroll == 1,
                "model.unroll",
                self.unroll,
                "1 for a model without attention (there is nothing to unroll)",
            )
        else:
            require(
                self.attention.key_channels < self.vision.channels,
                "model.attention.key_channels",
                self.attention.key_channels,
                f"less than the last feature map's {self.vision.channels} channels, "
                "so that some are left for values",
            )
        require(
            len(self.mean) == len(self.std) and len(self.mean) in (1, 3),
            "model.mean and model.std",
            [self.mean, self.std],
            "one number each per image channel (1 for grey, 3 for colour)",
        )
        finite = all(math.isfinite(m) for m in self.mean)
        require(finite, "model.mean", self.mean, "finite numbers")
        positive = all(0 < s < math.inf for s in self.std)
        require(positive, "model.std", self.std, "positive, finite numbers")

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return len(self.mean)

    @property
    def name(self) -> str:
        """What a reader calls the model: `S3TA-4`, `ResNet-152` by its layers, or the factory."""
        if self.factory is not None:
            return self.factory.partition(":")[2]
        if self.attention is not None:
            return f"S3TA-{self.unroll}"
        layers = sum(self.vision.depths) * (3 if self.vision.block is Block.bottleneck else 2) + 2
        return f"ResNet-{layers}"
