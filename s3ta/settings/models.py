"""Settings of models."""

import math
from dataclasses import dataclass, field
from enum import Enum

from s3ta.settings.checks import require
from s3ta.settings.vision import VisionSettings


class Queries(Enum):
    """Where the attention's queries come from. All but the first are controls.

    The values are the words that follow `S3TA-k` in a name.
    """

    state = ""
    """Top-down, from the controller's last hidden state, as in the paper."""
    uniform = "uniform"
    """From nowhere: every map is 1 / P, so each step reads the average of the values."""
    fixed = "fixed queries"
    """Learned, the same at every step and for every image."""
    one_shot = "one-shot"
    """Learned, `unroll` x `heads` of them, all at once; an MLP reads the answers, no controller."""


class Basis(Enum):
    """The waves along each axis of which the spatial basis is made (s3ta.basis has the formulas).

    The values are words of a name, as those of Queries.
    """

    cosine = ""
    fourier = "fourier"
    """Cosines and sines: twice as many waves for the same frequencies."""


@dataclass(kw_only=True)
class AttentionSettings:
    """The recurrent top-down attention controller (S3TA sec. 3), and its controls.

    The last feature map's channels are split: the first `key_channels` are keys, the rest values.
    """

    queries: Queries = Queries.state
    heads: int = 4
    key_channels: int = 512
    # ASSUMPTION: the paper does not state the key/value split of its 2048 channels.
    basis: Basis = Basis.cosine
    # ASSUMPTION: the paper says "Fourier representation" and no more; cosines follow Mott et al.
    basis_frequencies: int = 8
    """Per axis: u and v in 1..n. 64 channels are 8 of cosines, or 4 of cosines and sines."""
    state: int = 1024
    """Of the LSTM; not used in one shot."""
    query_hidden: int = 1024
    """Of the query network; used only where queries come from the state."""
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

    @property
    def basis_channels(self) -> int:
        waves = self.basis_frequencies * (2 if self.basis is Basis.fourier else 1)
        return waves**2

    @property
    def query_length(self) -> int:
        """Key channels with the basis."""
        return self.key_channels + self.basis_channels


@dataclass(kw_only=True)
class ModelSettings:
    """A classifier of images in [0, 1]; normalisation lives inside.

    Without `attention` it is the plain ResNet, read by average pooling.
    """

    vision: VisionSettings = field(default_factory=VisionSettings)
    attention: AttentionSettings | None = None
    unroll: int = 1
    """k of S3TA-k: how many glances the controller takes before it answers."""
    mlp_head: list[int] = field(default_factory=list)
    """Hidden layers between average pooling and logits; none in a usual ResNet."""
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
            all(width >= 1 for width in self.mlp_head),
            "model.mlp_head",
            self.mlp_head,
            "a list of whole numbers of at least 1, or empty",
        )
        require(
            self.attention is None or not self.mlp_head,
            "model.mlp_head",
            self.mlp_head,
            "empty for a model with attention (attention.readout_hidden is its MLP)",
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
    def answer_length(self) -> int:
        """Value channels with the basis: what a head reads from the map."""
        assert self.attention is not None
        a = self.attention
        return self.vision.channels - a.key_channels + a.basis_channels

    @property
    def name(self) -> str:
        """What a reader calls the model: `S3TA-4`, `ResNet-152` by its layers, or the factory."""
        if self.factory is not None:
            return self.factory.partition(":")[2]
        if self.attention is None:
            return self.vision.name + (" MLP" if self.mlp_head else "")
        a = self.attention
        words = [f"S3TA-{self.unroll}", a.queries.value, a.basis.value, "scaled" * a.scaled]
        # The net is said where it is neither the paper's nor a plain one that is not ImageNet's.
        small = len(self.vision.depths) != 4 and self.vision.name == self.vision.plain_name
        if not small and self.vision.name != VisionSettings().name:
            words.append(f"on {self.vision.name}")
        return " ".join(filter(None, words))
