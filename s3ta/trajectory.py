"""Which runs of steps an attack consists of. Imports no torch: a plan needs it too."""

from dataclasses import dataclass

from s3ta.errors import UserError
from s3ta.settings import (
    AttackSettings,
    Goal,
    Gradient,
    Loss,
    Mode,
    Rule,
    Start,
    Through,
    TrainAttackSettings,
)

DLR_CLASSES = 4
"""So many the targeted DLR loss needs; untargeted, three would do."""
SEARCHES = (Rule.square, Rule.random)
"""Rules that ask for no gradient."""
FULL_STEP_SIZE_STEPS = 16
"""From this many steps on the step size no longer depends on the total."""


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One run of `steps` steps, read at `readings`; lengths in [0, 1] image units."""

    goal: Goal
    loss: Loss
    epsilon: float
    step_size: float
    """Of signed steps, or Adam's rate; 0 where the rule has its own."""
    steps: int
    readings: tuple[int, ...]
    restart: int = 0
    until_success: bool = False
    """Stop an image when the attack's own goal is met."""
    rule: Rule = Rule.sign
    momentum: float = 0.0
    clean_start: bool = False
    rank: int = 0
    """Led to the class of that rank among the wrong ones, 1 for the likeliest; 0 for none."""
    target_of_label: tuple[int, ...] = ()
    gradient: Gradient = Gradient.autograd
    spsa_pairs: int = 0
    spsa_delta: float = 0.0
    through: Through = Through.answer
    attention_weight: float = 0.0
    unroll: int | None = None
    source: str = ""
    """Digest of another model whose gradients lead the attack; empty for the attacked one's own."""

    @property
    def passes_per_step(self) -> int:
        """What one image's step costs, in forward passes; one back to the image costs as much."""
        if self.gradient is Gradient.spsa:
            return 2 * self.spsa_pairs + 1
        if self.through is Through.held_maps:
            return 3  # it asks for the deployed answer, too
        return 1 if self.rule in SEARCHES else 2

    @property
    def work(self) -> int:
        """What one image costs, in steps of plain PGD."""
        return max(1, self.steps * self.passes_per_step // 2)


def step_size(epsilon: float, steps: int) -> float:
    """epsilon max(1/16, 1/n): ten steps of 1.6/255 or a hundred of 1/255 at epsilon 16/255.

    The paper's values, written so that they hold for any epsilon (S3TA sec. 5, after [55]).
    """
    return epsilon * max(1 / FULL_STEP_SIZE_STEPS, 1 / steps)


def trajectories(attack: AttackSettings) -> list[Trajectory]:
    """All runs of an attack: readings that one run can give share it, starts and guides don't."""
    return [
        _run(attack, size, readings, index)
        for size, readings in _groups(attack)
        for index in range(attack.runs)
    ]


def _groups(attack: AttackSettings) -> list[tuple[float, list[int]]]:
    """Step sizes, with the readings of one run each."""
    epsilon, share = attack.epsilon_255 / 255, attack.step_of_epsilon
    if attack.rule.keeps_best:
        return [(0.0, [reading]) for reading in attack.readings]
    if attack.rule is Rule.adam:
        return [(attack.adam_rate, attack.readings)]
    if share is not None:
        return [(epsilon * share, attack.readings)]
    groups: dict[float, list[int]] = {}
    for reading in attack.readings:
        groups.setdefault(step_size(epsilon, reading), []).append(reading)
    return list(groups.items())


def _run(attack: AttackSettings, size: float, readings: list[int], index: int) -> Trajectory:
    a, spsa = attack, attack.gradient is Gradient.spsa
    return Trajectory(
        goal=a.goal,
        loss=a.loss,
        epsilon=a.epsilon_255 / 255,
        step_size=size,
        steps=max(readings),
        readings=tuple(readings),
        restart=index,
        until_success=a.mode is Mode.until_success or a.rule.keeps_best,
        rule=a.rule,
        momentum=a.momentum,
        clean_start=a.start is Start.clean,
        rank=index % a.targets + 1 if a.goal is Goal.likeliest else 0,
        target_of_label=tuple(a.target_of_label),
        gradient=a.gradient,
        spsa_pairs=a.spsa_pairs if spsa else 0,
        spsa_delta=a.spsa_delta if spsa else 0.0,
        through=a.through,
        attention_weight=a.attention_weight if a.through is Through.attention else 0.0,
        unroll=a.unroll,
        source=a.sources[index // a.runs_per_source] if a.sources else "",
    )


def training_trajectory(attack: TrainAttackSettings) -> Trajectory:
    """The attack inside adversarial training; nothing is read."""
    epsilon = attack.epsilon_255 / 255
    return Trajectory(
        goal=attack.goal,
        loss=Loss.cross_entropy,
        epsilon=epsilon,
        step_size=step_size(epsilon, attack.steps) if attack.steps else 0.0,
        steps=attack.steps,
        readings=(),
    )


def require_classes(trajectory: Trajectory, classes: int) -> None:
    """UserError if an attack can't be made with so many classes."""
    if trajectory.loss is Loss.dlr and classes < DLR_CLASSES:
        raise UserError(
            f"attack.loss is dlr and there are {classes} classes: it must be at least "
            f"{DLR_CLASSES}, for the loss divides by a difference to the third and fourth largest "
            "logit. Use cross_entropy or margin."
        )
    if trajectory.rank >= classes:
        raise UserError(
            f"attack.targets is {trajectory.rank} or more and there are {classes} classes: it must "
            f"be at most {classes - 1}, the number of wrong ones. Lower it."
        )
    given = trajectory.target_of_label
    if given and (len(given) != classes or not all(0 <= t < classes for t in given)):
        raise UserError(
            f"attack.target_of_label is {list(given)}: it must name one of the {classes} classes "
            f"for each of the {classes} labels. Correct the list."
        )
