"""Settings of attacks, and of how a model is computed while it is attacked."""

from dataclasses import dataclass, field
from enum import Enum

from s3ta.settings.checks import require, require_epsilon, require_positive


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
        require_epsilon("attack.epsilon_255", self.epsilon_255)
        require_positive("attack.readings", self.readings)
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
