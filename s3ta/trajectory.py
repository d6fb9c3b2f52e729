"""Which runs of projected steps an attack consists of. Imports no torch: a plan needs it too."""

from dataclasses import dataclass

from s3ta.settings import AttackSettings, Goal, Loss, Mode, TrainAttackSettings

FULL_STEP_SIZE_STEPS = 16
"""From this many steps on the step size no longer depends on the total."""


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One run of `steps` signed steps, read at `readings`; lengths in [0, 1] image units."""

    goal: Goal
    loss: Loss
    epsilon: float
    step_size: float
    steps: int
    readings: tuple[int, ...]
    restart: int = 0
    until_success: bool = False
    """Stop an image when the attack's own goal is met."""


def step_size(epsilon: float, steps: int) -> float:
    """epsilon max(1/16, 1/n): ten steps of 1.6/255 or a hundred of 1/255 at epsilon 16/255.

    The paper's values, written so that they hold for any epsilon (S3TA sec. 5, after [55]).
    """
    return epsilon * max(1 / FULL_STEP_SIZE_STEPS, 1 / steps)


def trajectories(attack: AttackSettings) -> list[Trajectory]:
    """Readings of one step size share a trajectory; those below 16 steps are runs of their own."""
    epsilon = attack.epsilon_255 / 255
    groups: dict[float, list[int]] = {}
    for reading in attack.readings:
        groups.setdefault(step_size(epsilon, reading), []).append(reading)
    return [
        Trajectory(
            goal=attack.goal,
            loss=attack.loss,
            epsilon=epsilon,
            step_size=size,
            steps=max(readings),
            readings=tuple(readings),
            until_success=attack.mode is Mode.until_success,
        )
        for size, readings in groups.items()
    ]


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
