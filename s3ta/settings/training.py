"""Settings of training."""

import math
from dataclasses import dataclass, field
from enum import Enum

from s3ta.settings.attacks import Dtype, Goal
from s3ta.settings.checks import require, require_epsilon


class Schedule(Enum):
    """How the learning rate falls after the warm-up."""

    step = "step"
    cosine = "cosine"


class Augmentation(Enum):
    """What is done to a training image before the attack."""

    none = "none"
    flip = "flip"


class Sums(Enum):
    """How the sums over a step's microbatches are kept."""

    exact = "exact"
    """The same bits for any number of workers."""
    fast = "fast"
    """In float32: a quarter of the traffic, and weights that depend on the number of workers."""


class OnNonfinite(Enum):
    """What follows a step whose loss or gradient is not finite."""

    stop = "stop"
    skip = "skip"
    """The step passes without an update."""
    rollback = "rollback"
    """Weights and momentum of the last epoch's end come back; the steps since then have passed."""


MOST_MICROBATCHES = 4096
"""What exact sums can hold: see s3ta/sums.py."""


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
        require_epsilon("train.attack.epsilon_255", self.epsilon_255)
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
    shuffle_window: int = 16384
    """Images that are shuffled together. A larger data set is read in windows of so many images,
    made of whole row groups in a new order each epoch."""
    sums: Sums = Sums.exact
    on_nonfinite: OnNonfinite = OnNonfinite.stop
    dtype: Dtype = Dtype.float32
    """bfloat16: forward and backward passes under autocast; weights and sums stay as they are."""
    recompute: bool = False
    """Keep no activations inside a residual block: less memory, one more forward pass."""
    compile: bool = False
    """torch.compile."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "microbatch", "shuffle_window"):
            value = getattr(self, name)
            require(value >= 1, f"train.{name}", value, "at least 1")
        require(
            self.batch % self.microbatch == 0,
            "train.batch",
            self.batch,
            f"a multiple of train.microbatch ({self.microbatch})",
        )
        require(
            self.microbatches <= MOST_MICROBATCHES,
            "train.batch",
            self.batch,
            f"at most {MOST_MICROBATCHES} times train.microbatch ({self.microbatch})",
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
