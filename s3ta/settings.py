"""Settings of models, attacks and training: what a YAML file says, checked. Imports no torch.

Values are validated when a dataclass is built, so that no work starts on a bad one. Enum members
are lower case because YAML names them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from s3ta.errors import UserError


class Block(Enum):
    """The residual block."""

    basic = "basic"
    bottleneck = "bottleneck"


class Goal(Enum):
    """What an attack wants: any wrong class, or one class drawn at random among the wrong ones."""

    untargeted = "untargeted"
    random_target = "random_target"


class Loss(Enum):
    """The per-example loss whose gradient an attack follows."""

    cross_entropy = "cross_entropy"
    margin = "margin"


class Mode(Enum):
    """How long an image is attacked: to the end, or until the attack's own goal is met."""

    full = "full"
    until_success = "until_success"


class Dtype(Enum):
    """What the attack's forward and backward passes compute in; the judge is always float32."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Schedule(Enum):
    """How the learning rate falls after the warm-up."""

    step = "step"
    cosine = "cosine"


class Augmentation(Enum):
    """What is done to a training image before the attack."""

    none = "none"
    flip = "flip"


def require(good: bool, name: str, value: object, constraint: str) -> None:
    """Raise a UserError that names the value and the constraint unless `good`."""
    if not good:
        raise UserError(f"{name} is {value!r}: it must be {constraint}. Change that setting.")


def _require_positive(name: str, values: Sequence[int]) -> None:
    require(
        bool(values) and all(v >= 1 for v in values),
        name,
        list(values),
        "a list of whole numbers of at least 1",
    )


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
            _require_positive(f"model.vision.{name}", getattr(self, name))
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


def _require_epsilon(name: str, value: float) -> None:
    require(0 < value <= 255, name, value, "above 0 and at most 255, in units of 1/255")


@dataclass(kw_only=True)
class AttackSettings:
    """Projected gradient descent in an L-infinity ball, with accuracy read at several steps."""

    goal: Goal = Goal.random_target
    loss: Loss = Loss.cross_entropy
    epsilon_255: float = 16.0
    """Radius in units of 1/255 of the image range."""
    readings: list[int] = field(default_factory=lambda: [10, 100])
    """Step counts at which accuracy is measured. Those below 16 are runs of their own (their step
    size depends on the total); all others share one trajectory."""
    mode: Mode = Mode.full
    """`until_success` stops an image when this attack's own goal is met: cheaper, and only the
    any-step measure of that goal means something."""

    def __post_init__(self) -> None:
        _require_epsilon("attack.epsilon_255", self.epsilon_255)
        _require_positive("attack.readings", self.readings)
        require(
            self.readings == sorted(set(self.readings)),
            "attack.readings",
            self.readings,
            "ascending and without repeats",
        )

    @property
    def name(self) -> str:
        """The attack's name in tables and in MLflow, with what tells it from its siblings."""
        goal = "targeted" if self.goal is Goal.random_target else "untargeted"
        loss = "" if self.loss is Loss.cross_entropy else f"_{self.loss.value}"
        mode = "" if self.mode is Mode.full else f"_{self.mode.value}"
        return f"pgd_{goal}{loss}{mode}_eps{self.epsilon_255:g}"


@dataclass(kw_only=True)
class EngineSettings:
    """How a model is computed while it is attacked. Answers are always judged by the model itself,
    in float32 and as it is; these decide only how fast the attack finds its way."""

    fold: bool = True
    """BatchNorm is folded into the convolution before it."""
    channels_last: bool = True
    """Images lie in memory with their channels innermost."""
    dtype: Dtype = Dtype.float32
    compile: bool = False
    """By torch.compile: for accelerators; on a CPU it gains little and needs a C++ compiler."""


@dataclass(kw_only=True)
class TrainAttackSettings:
    """The attack inside adversarial training: always with cross-entropy."""

    goal: Goal = Goal.random_target
    epsilon_255: float = 16.0
    steps: int = 10
    """0 trains on clean images."""
    clean_start_share: float = 0.2
    """Probability that a microbatch starts from its clean images instead of uniform noise."""

    def __post_init__(self) -> None:
        _require_epsilon("train.attack.epsilon_255", self.epsilon_255)
        require(self.steps >= 0, "train.attack.steps", self.steps, "at least 0")
        require(
            0 <= self.clean_start_share <= 1,
            "train.attack.clean_start_share",
            self.clean_start_share,
            "between 0 and 1",
        )


@dataclass(kw_only=True)
class TrainSettings:
    """Adversarial training. The defaults are the paper's ("following [55]", Xie et al.)."""

    attack: TrainAttackSettings = field(default_factory=TrainAttackSettings)
    epochs: int = 120
    batch: int = 1024
    """Images per update: a fixed list of microbatches, whatever the number of workers."""
    microbatch: int = 32
    """Images that BatchNorm normalises together."""
    learning_rate: float = 0.2
    warmup_epochs: float = 5.0
    """Linear, from `warmup_start` to `learning_rate`."""
    warmup_start: float = 0.1
    schedule: Schedule = Schedule.step
    # ASSUMPTION: where the decays fall in the paper's 120 epochs is not stated; these are [55]'s.
    decay_epochs: list[float] = field(default_factory=lambda: [35.0, 70.0, 95.0])
    decay: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    """On convolution and linear weights only."""
    label_smoothing: float = 0.1
    """In the training loss; none in the attack's."""
    batchnorm_decay: float = 0.9
    augmentation: Augmentation = Augmentation.flip
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "microbatch"):
            value = getattr(self, name)
            require(value >= 1, f"train.{name}", value, "at least 1")
        require(
            self.batch % self.microbatch == 0,
            "train.batch",
            self.batch,
            f"a multiple of train.microbatch ({self.microbatch})",
        )
        for name in ("learning_rate", "warmup_start", "decay"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"train.{name}", value, "positive and finite")
        for name in ("momentum", "label_smoothing", "batchnorm_decay"):
            value = getattr(self, name)
            require(0 <= value < 1, f"train.{name}", value, "at least 0 and below 1")
        for name in ("weight_decay", "warmup_epochs"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"train.{name}", value, "at least 0 and finite")
        rising = self.decay_epochs == sorted(set(self.decay_epochs))
        require(
            rising and all(0 <= epoch < math.inf for epoch in self.decay_epochs),
            "train.decay_epochs",
            self.decay_epochs,
            "ascending, without repeats, at least 0 and finite",
        )
        require(
            0 <= self.seed < 2**63, "train.seed", self.seed, "a whole number from 0 to 2^63 - 1"
        )

    @property
    def microbatches(self) -> int:
        """Microbatches per update."""
        return self.batch // self.microbatch

    def steps_per_epoch(self, images: int) -> int:
        """Whole batches only: which images an epoch leaves out differs from epoch to epoch."""
        return images // self.batch
