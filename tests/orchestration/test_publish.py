"""What a trial's run in MLflow says about its training."""

from types import SimpleNamespace
from typing import Any

import pytest
from tiny import model

from s3ta.settings import Objective, TrainAttackSettings, TrainSettings
from s3ta_platform.publish import _params, _tags


@pytest.mark.parametrize(
    ("objective", "steps"),
    [
        (Objective.adversarial, 7),
        (Objective.plain, 0),
        (Objective.alp, 7),
        (Objective.llr, 7),
    ],
)
def test_the_objective_and_the_steps_it_attacks_with_are_said(
    objective: Objective, steps: int
) -> None:
    train = TrainSettings(objective=objective, attack=TrainAttackSettings(steps=7))
    experiment = SimpleNamespace(model=model(), train=train)
    trial: Any = SimpleNamespace(experiment=experiment, name="S3TA-2", key="k", ready=None)
    assert _tags(trial)["train_objective"] == _params(trial)["train_objective"] == objective.name
    assert _tags(trial)["train_pgd_steps"] == str(steps)
    assert _params(trial)["train_pgd_steps"] == steps
