"""The learning rate as a pure function of training's progress."""

import math

from s3ta.settings import Schedule, TrainSettings


def learning_rate(settings: TrainSettings, epoch: float) -> float:
    """The rate at a point of training, in epochs done (a fraction within an epoch)."""
    s = settings
    if epoch < s.warmup_epochs:
        return s.warmup_start + (s.learning_rate - s.warmup_start) * epoch / s.warmup_epochs
    if s.schedule is Schedule.step:
        return s.learning_rate * s.decay ** sum(epoch >= boundary for boundary in s.decay_epochs)
    done = (epoch - s.warmup_epochs) / max(s.epochs - s.warmup_epochs, 1e-9)
    return s.learning_rate * (1 + math.cos(math.pi * min(done, 1.0))) / 2
