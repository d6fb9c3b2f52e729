"""What changes while a model trains, as pure functions of training's progress."""

import math
from dataclasses import dataclass, replace

from s3ta.settings import Schedule, TrainAttackSettings, TrainSettings


def learning_rate(settings: TrainSettings, epoch: float) -> float:
    """The rate at a point of training, in epochs done (a fraction within an epoch)."""
    s = settings
    if epoch < s.warmup_epochs:
        return s.warmup_start + (s.learning_rate - s.warmup_start) * epoch / s.warmup_epochs
    if s.schedule is Schedule.step:
        return s.learning_rate * s.decay ** sum(epoch >= boundary for boundary in s.decay_epochs)
    done = (epoch - s.warmup_epochs) / max(s.epochs - s.warmup_epochs, 1e-9)
    return s.learning_rate * (1 + math.cos(math.pi * min(done, 1.0))) / 2


@dataclass(frozen=True)
class Stage:
    """What an epoch trains with."""

    unroll: int | None
    """Glances of the model, in the attack and in the update; None for the model's own."""
    attack: TrainAttackSettings


def stage_index(settings: TrainSettings, epoch: int) -> int:
    """Which of the curriculum's stages an epoch belongs to, from 0: the last one that has begun."""
    return max(0, sum(stage.from_epoch <= epoch for stage in settings.curriculum) - 1)


def stage_at(settings: TrainSettings, epoch: int) -> Stage:
    """The curriculum's stage of an epoch."""
    if not settings.curriculum:
        return Stage(None, settings.attack)
    stage, attack = settings.curriculum[stage_index(settings, epoch)], settings.attack
    if stage.attack_steps is not None:
        attack = replace(attack, steps=stage.attack_steps)
    if stage.epsilon_255 is not None:
        attack = replace(attack, epsilon_255=stage.epsilon_255)
    return Stage(stage.unroll, attack)
