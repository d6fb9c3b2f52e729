"""What a trial costs, in multiply-adds, from its settings and numbers of images. Imports no torch.

A forward pass is counted exactly (s3ta.cost). A gradient towards the images costs as much again,
one towards images and weights twice as much: so a step of PGD is 2 passes, an update 3.
"""

from dataclasses import dataclass, replace

from s3ta.cost import multiply_adds, parameter_count
from s3ta.schedules import stage_at
from s3ta.settings import AttackSettings, ModelSettings, Objective, TrainSettings
from s3ta.trajectory import Trajectory, trajectories
from s3ta_platform.schema_evaluate import EvaluateSettings
from s3ta_platform.shards import shard_size

UPDATE = 3
LLR_TANGENT, LLR_UPDATE = 2, 9
"""Of local linearity regularisation: the plane, and an update that backpropagates twice."""


@dataclass(frozen=True, kw_only=True)
class AttackCost:
    """One attack on one model."""

    name: str
    readings: tuple[int, ...]
    runs: int
    passes: int
    """Forward passes per image, gradients counted as such."""
    shards: int
    multiply_adds: int
    """Over all images."""


@dataclass(frozen=True, kw_only=True)
class TrialCost:
    """One trial."""

    parameters: int
    forward: int
    """Multiply-adds of one image's forward pass."""
    training: int
    """Multiply-adds of the whole training; 0 for a model that is not trained."""
    attacks: tuple[AttackCost, ...]

    @property
    def evaluation(self) -> int:
        """Multiply-adds of all attacks."""
        return sum(attack.multiply_adds for attack in self.attacks)


def trial_cost(
    model: ModelSettings,
    train: TrainSettings | None,
    evaluate: EvaluateSettings,
    *,
    size: int,
    classes: int,
    train_images: int,
    test_images: int,
) -> TrialCost:
    """The cost of one of our models; without `train` it is trained already."""
    forward = multiply_adds(model, size, classes)
    return TrialCost(
        parameters=parameter_count(model, classes),
        forward=forward,
        training=_training(model, train, size, classes, train_images) if train else 0,
        attacks=tuple(
            _attack(a, model, evaluate, size, classes, test_images)
            for a in evaluate.attacks.values()
        ),
    )


def _training(
    model: ModelSettings, train: TrainSettings, size: int, classes: int, images: int
) -> int:
    """Over all epochs; a curriculum's stages have their own unroll and steps."""
    per_epoch = train.steps_per_epoch(images) * train.batch
    total = 0
    for epoch in range(train.epochs):
        stage = stage_at(train, epoch)
        unrolled = replace(model, unroll=stage.unroll or model.unroll)
        passes = update_passes(train, stage.attack.steps)
        total += per_epoch * passes * multiply_adds(unrolled, size, classes)
    return total


def update_passes(train: TrainSettings, attack_steps: int) -> int:
    """Forward passes that one image costs in one update, its attack included."""
    attack = 2 * attack_steps
    return {
        Objective.plain: UPDATE,
        Objective.adversarial: attack + UPDATE,
        Objective.alp: attack + 2 * UPDATE,
        Objective.llr: attack + LLR_TANGENT + LLR_UPDATE,
    }[train.objective]


def _attack(
    attack: AttackSettings,
    model: ModelSettings,
    evaluate: EvaluateSettings,
    size: int,
    classes: int,
    images: int,
) -> AttackCost:
    runs = trajectories(attack)
    attacked_through = attack.unroll if attack.unroll is not None else model.unroll
    longest = max(attacked_through, model.unroll)  # judged by the deployed unroll all the same
    through = replace(model, unroll=longest)
    passes = sum(run.steps * run.passes_per_step for run in runs)
    return AttackCost(
        name=attack.name,
        readings=tuple(attack.readings),
        runs=len(runs),
        passes=passes,
        shards=sum(shards_of(run, evaluate, images) for run in runs),
        multiply_adds=passes * images * multiply_adds(through, size, classes),
    )


def shards_of(run: Trajectory, evaluate: EvaluateSettings, images: int) -> int:
    """How many shards a run over so many images is cut into."""
    return -(-images // shard_size(evaluate, run))


def in_words(count: int) -> str:
    """`46.2 G`: a number of multiply-adds, three digits and a prefix."""
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {prefix}"
    return f"{count / 1000:.3g} k"


def short_count(number: int) -> str:
    """Three digits or so: `912`, `148 k`, `60.2 M`."""
    if number < 1000:
        return str(number)
    return f"{number / 1e3:.0f} k" if number < 999_500 else f"{number / 1e6:.1f} M"
