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
    imagenet = "imagenet"
    """Random crop, colour and flip of colour photos ([55]): see s3ta/augmentation.py."""


class Objective(Enum):
    """What training minimises: each is defined in s3ta/objectives.py."""

    adversarial = "adversarial"
    """Cross-entropy on attacked images."""
    plain = "plain"
    """Cross-entropy on clean images."""
    alp = "alp"
    """Adversarial logit pairing ([27]): both, and the distance between their logits."""
    llr = "llr"
    """Local linearity regularisation ([42]): clean images, and how far the loss around them is from
    its tangent plane."""


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
    """0 trains on clean images. For llr: of its search for the worst place in the ball."""
    clean_start_share: float = 0.2
    """Probability that a microbatch starts from its clean images instead of uniform noise."""

    def __post_init__(self) -> None:
        require_epsilon("train.attack.epsilon_255", self.epsilon_255)
        known = self.goal in (Goal.untargeted, Goal.random_target)
        require(known, "train.attack.goal", self.goal.name, "untargeted or random_target")
        require(self.steps >= 0, "train.attack.steps", self.steps, "at least 0")
        require(
            0 <= self.clean_start_share <= 1,
            "train.attack.clean_start_share",
            self.clean_start_share,
            "between 0 and 1",
        )


@dataclass(kw_only=True)
class LinearitySettings:
    """Weights of local linearity regularisation ([42]); its ball and its steps are the attack's.

    The authors' public code, for CIFAR-10, has 2, 4 and 4 * 0.3, with 10 steps at 8/255.
    """

    # ASSUMPTION: the values for ImageNet are from memory, with 2 steps at 4/255 (train/llr.yaml).
    loss_weight: float = 1.0
    """Of the cross-entropy on clean images."""
    nonlinearity_weight: float = 3.0
    """Of |l(x + d) - l(x) - d grad l(x)|, for the d in the ball where it is largest."""
    slope_weight: float = 6.0
    """Of |d grad l(x)|, for the same d."""
    search_rate: float = 0.1
    """Adam's, in the search for d; in [0, 1] image units."""

    def __post_init__(self) -> None:
        for name in ("loss_weight", "nonlinearity_weight", "slope_weight"):
            value = getattr(self, name)
            require(
                0 <= value < math.inf, f"train.linearity.{name}", value, "at least 0 and finite"
            )
        require(
            0 < self.search_rate < math.inf,
            "train.linearity.search_rate",
            self.search_rate,
            "positive and finite",
        )


@dataclass(kw_only=True)
class StageSettings:
    """One stage of a curriculum. What it leaves out is as model.unroll and train.attack say."""

    from_epoch: int = 0
    """The first epoch of the stage; it lasts until the next stage's."""
    unroll: int | None = None
    attack_steps: int | None = None
    epsilon_255: float | None = None

    def __post_init__(self) -> None:
        name = "train.curriculum"
        require(self.from_epoch >= 0, f"{name}.from_epoch", self.from_epoch, "at least 0")
        for what, least in (("unroll", 1), ("attack_steps", 0)):
            value = getattr(self, what)
            good = value is None or value >= least
            require(good, f"{name}.{what}", value, f"at least {least}, or null")
        if self.epsilon_255 is not None:
            require_epsilon(f"{name}.epsilon_255", self.epsilon_255)


@dataclass(kw_only=True)
class TrainSettings:
    """Training. The defaults are the paper's ("following [55]", Xie et al.), but for augmentation:
    theirs, `imagenet`, is for photos."""

    objective: Objective = Objective.adversarial
    attack: TrainAttackSettings = field(default_factory=TrainAttackSettings)
    pairing_weight: float = 0.5
    """For alp: of the mean squared difference between clean and attacked logits ([27])."""
    linearity: LinearitySettings = field(default_factory=LinearitySettings)
    """For llr."""
    curriculum: list[StageSettings] = field(default_factory=list)
    """What changes from epoch to epoch; by default nothing."""
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
    """torch.compile; not for llr, whose gradient backpropagates twice."""

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
        for name in ("weight_decay", "warmup_epochs", "pairing_weight"):
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
        require(
            not (self.compile and self.objective is Objective.llr),
            "train.compile",
            self.compile,
            "false where train.objective is llr: a compiled model can't be backpropagated twice",
        )
        self._check_curriculum()
        stages = [stage.attack_steps for stage in self.curriculum] or [None]
        least = min(self.attack.steps if steps is None else steps for steps in stages)
        require(
            self.objective not in (Objective.alp, Objective.llr) or least >= 1,
            "train.attack.steps",
            least,
            f"at least 1, in every stage, where train.objective is {self.objective.name} "
            "(plain trains on clean images)",
        )

    def _check_curriculum(self) -> None:
        starts = [stage.from_epoch for stage in self.curriculum]
        require(
            not starts or (starts[0] == 0 and starts == sorted(set(starts))),
            "train.curriculum",
            starts,
            "stages whose from_epoch ascends, without repeats, from 0 at the first",
        )
        require(
            not starts or starts[-1] < self.epochs,
            "train.curriculum",
            starts,
            f"stages that begin before the end: from_epoch is below train.epochs ({self.epochs})",
        )

    @property
    def microbatches(self) -> int:
        """Microbatches per update."""
        return self.batch // self.microbatch

    @property
    def adds_exactly(self) -> bool:
        """Whether microbatches are added up in two rows of float64: a single one is not."""
        return self.sums is Sums.exact and self.microbatches > 1

    def steps_per_epoch(self, images: int) -> int:
        """Whole batches only: which images an epoch leaves out differs from epoch to epoch."""
        return images // self.batch
