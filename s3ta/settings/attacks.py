"""Settings of attacks, and of how a model is computed while it is attacked."""

from dataclasses import dataclass, field
from enum import Enum

from s3ta.settings.checks import require, require_epsilon, require_positive


class Goal(Enum):
    """What an attack wants: any wrong class, or a certain one.

    `least_likely_target` is the class that the model thinks least of on the clean image;
    `given_target` names one per label. `likeliest` wants any wrong class, and is led towards each
    of the model's likeliest ones in turn: `targets` runs of their own.
    """

    untargeted = "untargeted"
    random_target = "random_target"
    least_likely_target = "least_likely_target"
    given_target = "given_target"
    likeliest = "likeliest"

    @property
    def targeted(self) -> bool:
        """Whether only a certain class is a success."""
        return self.name.endswith("target")


class Loss(Enum):
    """The per-example loss whose gradient an attack follows."""

    cross_entropy = "cross_entropy"
    margin = "margin"
    dlr = "dlr"
    difference = "difference"


class Rule(Enum):
    """How a step follows from the gradient: see `steps`, `apgd`, `fab`, `square`, `corners`."""

    sign = "sign"
    adam = "adam"
    apgd = "apgd"
    fab = "fab"
    square = "square"
    random = "random"

    @property
    def keeps_best(self) -> bool:
        """It uses up its whole budget and returns its best point: no readings on the way."""
        return self in (Rule.apgd, Rule.fab, Rule.square, Rule.random)


class Gradient(Enum):
    """Where the gradient comes from: backpropagation, or differences along random directions."""

    autograd = "autograd"
    spsa = "spsa"


class Start(Enum):
    """Where an attack starts: uniformly in the ball, or at the image."""

    noise = "noise"
    clean = "clean"


class Through(Enum):
    """Which answers of a recurrent model the attack's loss is made of.

    Its last one; the sum over all glances; the last one and, beside it, how far the attention maps
    are moved; or the last one with all maps held where they are on the clean image. Success is
    always judged by the last answer at the deployed unroll.
    """

    answer = "answer"
    readouts = "readouts"
    attention = "attention"
    held_maps = "held_maps"


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
    """Steps within an L-infinity ball: goal, loss, gradient and step rule are chosen separately.

    The defaults are the paper's targeted projected gradient descent (PGD).
    """

    goal: Goal = Goal.random_target
    loss: Loss = Loss.cross_entropy
    epsilon_255: float = 16.0
    """Radius in units of 1/255 of the image range."""
    readings: list[int] = field(default_factory=lambda: [10, 100])
    """Step counts at which accuracy is measured. Where the steps depend on the total (signed steps
    below 16, `apgd`, `square`) or only the best point counts, each is a run of its own; all others
    share one. Of `random`: how many random signs are tried."""
    mode: Mode = Mode.full
    """`until_success` stops an image when this attack's own goal is met: cheaper, and only the
    any-step measure of that goal means something. Rules that keep their best point always do."""
    rule: Rule = Rule.sign
    gradient: Gradient = Gradient.autograd
    start: Start = Start.noise
    """Of gradient steps; `fab` and `random` start at the image, `square` at stripes."""
    restarts: int = 1
    """Runs from different starts; an image withstands the attack if it withstands all of them."""
    step_of_epsilon: float | None = None
    """Length of a signed step as a share of epsilon; by default max(1/16, 1/steps)."""
    adam_rate: float = 0.1
    """Adam's step length, in [0, 1] image units."""
    momentum: float = 0.0
    """Of signed steps: the share of the last direction that is kept (Dong et al.)."""
    targets: int = 9
    """How many of the likeliest wrong classes `likeliest` tries."""
    target_of_label: list[int] = field(default_factory=list)
    """For `given_target`: one class per label, such as [1, 2, 0] for three classes."""
    spsa_pairs: int = 2048
    """Antithetic pairs of probes per gradient: 2048 are a batch of 4096."""
    spsa_delta: float = 0.01
    """How far a probe is from the image, in [0, 1] image units."""
    through: Through = Through.answer
    attention_weight: float = 1.0
    """For `through: attention`: what a map that is moved as a whole adds to the loss."""
    unroll: int | None = None
    """Attack through this many glances instead of the deployed number."""
    sources: list[str] = field(default_factory=list)
    """A transfer attack: the gradients are those of other models, here named as for `s3ta compare`,
    each in runs of its own. The judge is the attacked model all the same."""

    def __post_init__(self) -> None:
        require_epsilon("attack.epsilon_255", self.epsilon_255)
        require_positive("attack.readings", self.readings)
        require(
            self.readings == sorted(set(self.readings)),
            "attack.readings",
            self.readings,
            "ascending and without repeats",
        )
        self._require_numbers()
        self._require_combination()

    def _require_numbers(self) -> None:
        for name in ("restarts", "targets", "spsa_pairs"):
            value = getattr(self, name)
            require(value >= 1, f"attack.{name}", value, "at least 1")
        for name in ("adam_rate", "spsa_delta"):
            value = getattr(self, name)
            require(0 < value <= 1, f"attack.{name}", value, "above 0 and at most 1")
        share = self.step_of_epsilon
        good = share is None or 0 < share <= 2
        require(good, "attack.step_of_epsilon", share, "above 0 and at most 2, or null")
        require(self.momentum >= 0, "attack.momentum", self.momentum, "at least 0")
        weight = self.attention_weight
        require(weight >= 0, "attack.attention_weight", weight, "at least 0")
        good = self.unroll is None or self.unroll >= 1
        require(good, "attack.unroll", self.unroll, "at least 1, or null")

    def _require_combination(self) -> None:
        rule, given = self.rule, self.goal is Goal.given_target
        require(
            bool(self.target_of_label) == given,
            "attack.target_of_label",
            self.target_of_label,
            "one class per label where attack.goal is given_target, and empty elsewhere",
        )
        own = [label for label, target in enumerate(self.target_of_label) if target == label]
        require(not own, "attack.target_of_label", own, "another class than the label itself")
        for name, off in (("momentum", 0.0), ("step_of_epsilon", None)):
            value = getattr(self, name)
            good = value == off or rule is Rule.sign
            require(good, f"attack.{name}", value, f"{off} unless attack.rule is sign")
        spsa = self.gradient is Gradient.spsa
        require(
            not spsa or rule in (Rule.sign, Rule.adam),
            "attack.gradient",
            "spsa",
            f"autograd where attack.rule is {rule.name}",
        )
        random = self.start is Start.noise and rule is not Rule.fab
        require(
            self.restarts == 1 or random,
            "attack.restarts",
            self.restarts,
            "1 for an attack that starts at the image: all runs would be the same",
        )
        require(
            self.through is not Through.held_maps or self.unroll is None,
            "attack.unroll",
            self.unroll,
            "null where attack.through is held_maps: the clean image's maps are the deployed ones",
        )
        require(
            rule is not Rule.fab or (self.goal is Goal.likeliest and self.loss is Loss.difference),
            "attack.rule",
            "fab",
            "used with goal: likeliest and loss: difference",
        )
        require(
            not self.sources
            or (self.through is Through.answer and self.unroll is None and self.sources_differ),
            "attack.sources",
            self.sources,
            "empty, or different models, with attack.through: answer and no attack.unroll",
        )

    @property
    def sources_differ(self) -> bool:
        return len(set(self.sources)) == len(self.sources)

    @property
    def runs(self) -> int:
        """Starts, classes that it is led to and models whose gradients it follows, multiplied."""
        return self.runs_per_source * max(1, len(self.sources))

    @property
    def runs_per_source(self) -> int:
        return self.restarts * (self.targets if self.goal is Goal.likeliest else 1)

    @property
    def name(self) -> str:
        """The attack's name in tables and in MLflow, with what tells it from its siblings."""
        return f"{'_'.join([self._family, *self._words])}_eps{self.epsilon_255:g}"

    @property
    def _family(self) -> str:
        if self.sources:
            return "transfer"
        if self.rule.keeps_best:
            return self.rule.name
        if self.gradient is Gradient.spsa:
            return "spsa"
        one_step = self.readings == [1] and self.start is Start.clean
        return "fgsm" if one_step and self.rule is Rule.sign else "pgd"

    @property
    def _words(self) -> list[str]:
        """What differs from the family's usual form."""
        searches = dict.fromkeys((Rule.square, Rule.random), Loss.margin)
        usual_loss = {Rule.fab: Loss.difference, **searches}
        start = self.start is Start.clean and self._family != "fgsm" and not self.rule.keeps_best
        until = self.mode is Mode.until_success and not self.rule.keeps_best
        share, whole = self.step_of_epsilon, self._family == "fgsm"
        goal = "targeted" if self.goal is Goal.random_target else self.goal.name
        words = {
            goal: True,
            self.loss.name: self.loss is not usual_loss.get(self.rule, Loss.cross_entropy),
            "adam": self.rule is Rule.adam,
            f"rate{self.adam_rate:g}": self.rule is Rule.adam and self.adam_rate != 0.1,
            f"momentum{self.momentum:g}": self.momentum > 0,
            f"step{share or 0:g}": share is not None and not (whole and share == 1),
            "clean": start,
            f"{self.spsa_pairs}pairs": self.gradient is Gradient.spsa and self.spsa_pairs != 2048,
            f"{self.through.name}": self.through is not Through.answer,
            f"unroll{self.unroll}": self.unroll is not None,
            f"{self.targets}targets": self.goal is Goal.likeliest and self.targets != 9,
            f"{self.restarts}starts": self.restarts > 1,
            self.mode.value: until,
        }
        leads = [self.rule.name] if self.sources and self.rule.keeps_best else []
        return leads + [word for word, said in words.items() if said]


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
