"""Transfer: another model's gradients lead, the attacked model alone judges."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from s3ta.batch import Batch, Conditions
from s3ta.engine import Engine, make_engine
from s3ta.errors import UserError
from s3ta.evaluation import attack_images
from s3ta.settings import AttackSettings, EngineSettings, Goal, Loss, Mode, Rule, Through
from s3ta.trajectory import trajectories

SHAPE = (1, 2, 2)
EPSILON = 0.125
CONDITIONS = Conditions(classes=2, seed=1, tile=8)


class Plane(nn.Module):
    """z_0 - z_1 = 0.1 + w (x - 1/2)."""

    def __init__(self, *w: float) -> None:
        super().__init__()
        self.register_buffer("w", torch.tensor(w))

    def forward(self, x: Tensor) -> Tensor:
        margin_B = 0.1 + ((x.flatten(1) - 0.5) * self.get_buffer("w")).sum(1)
        return torch.stack([margin_B, 0 * margin_B], dim=1)


def engine(*w: float) -> Engine:
    return make_engine(Plane(*w), EngineSettings(), SHAPE, 8)


@pytest.mark.parametrize(
    ("source", "margin"),
    [
        ((1, 1, 1, 1), -0.4),  # the model's own: 0.1 - 4 / 8
        ((1, 1, 1, -1), -0.15),  # three of four signs are right: 0.1 - 2 / 8
        ((-1, -1, -1, -1), 0.6),  # the worst advice there is: 0.1 + 4 / 8
    ],
)
def test_the_point_is_the_sources_worst_and_the_answer_the_models_own(
    source: tuple[float, ...], margin: float
) -> None:
    own = engine(1, 1, 1, 1)
    batch = Batch(
        images_BCHW=np.full((3, *SHAPE), 0.5, np.float32),
        labels_B=np.zeros(3, np.int64),
        image_ids_B=np.arange(3),
    )
    (trajectory,) = trajectories(
        AttackSettings(
            goal=Goal.untargeted, loss=Loss.margin, epsilon_255=EPSILON * 255, readings=[40]
        )
    )
    led = replace(own, fast=engine(*source).fast)
    rows = attack_images(led, batch, trajectory, CONDITIONS)
    assert rows["margin"] == pytest.approx([margin] * 3, abs=1e-6)
    assert (rows["clean_prediction"] == 0).all()
    assert (rows["prediction"] == (0 if margin > 0 else 1)).all()
    assert (rows["attack_prediction"] == 1).all(), "the source is fooled in any case"
    assert ((rows["first_error_step"] >= 0) == (margin < 0)).all()


def test_each_source_is_a_run_of_its_own_with_all_starts_and_classes() -> None:
    attack = AttackSettings(
        goal=Goal.likeliest, targets=3, restarts=2, sources=["a", "b"], readings=[20, 40]
    )
    runs = trajectories(attack)
    assert [run.source for run in runs] == [*["a"] * 6, *["b"] * 6]
    assert [run.restart for run in runs] == list(range(12))
    assert [run.rank for run in runs] == [1, 2, 3] * 4
    alone = trajectories(replace(attack, sources=[]))
    assert [run.source for run in alone] == [""] * 6
    assert [replace(run, source="") for run in runs[:6]] == alone


def test_the_name_says_that_it_is_a_transfer() -> None:
    attack = AttackSettings(goal=Goal.untargeted, epsilon_255=8, sources=["a"])
    assert attack.name == "transfer_untargeted_eps8"
    until = replace(attack, mode=Mode.until_success, loss=Loss.margin)
    assert until.name == "transfer_untargeted_margin_until_success_eps8"
    assert replace(attack, rule=Rule.apgd, readings=[100]).name == "transfer_apgd_untargeted_eps8"


@pytest.mark.parametrize(
    "change",
    [
        lambda attack: replace(attack, sources=["a", "a"]),
        lambda attack: replace(attack, through=Through.readouts),
        lambda attack: replace(attack, unroll=2),
    ],
)
def test_sources_differ_and_lead_through_their_answer(
    change: Callable[[AttackSettings], AttackSettings],
) -> None:
    with pytest.raises(UserError, match=r"attack\.sources"):
        change(AttackSettings(sources=["a", "b"]))
