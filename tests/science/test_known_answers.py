"""Attacks on models whose worst case is known: linear ones, and one without gradients."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from s3ta.batch import Batch, Conditions, to_unit
from s3ta.engine import Engine
from s3ta.evaluation import AttackRun
from s3ta.fab import FAB
from s3ta.hits import NEVER
from s3ta.settings import AttackSettings, EngineSettings, Goal, Gradient, Loss, Rule
from s3ta.tally import Rows
from s3ta.trajectory import trajectories

SHAPE = (1, 4, 6)
PIXELS = 24
CONDITIONS = Conditions(classes=4, seed=3, tile=4)
PLAIN = EngineSettings(fold=False, channels_last=False)
WEIGHTS = torch.linspace(-1.0, 1.1, PIXELS)  # none is zero
UNTARGETED: dict[str, Any] = {"goal": Goal.untargeted}


class _Linear(nn.Module):
    """Class 0 where w (x - 1/2) is below the offset, else class 1; 2 and 3 never."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset

    def forward(self, images: Tensor) -> Tensor:
        score_B = (images.flatten(1) - 0.5) @ WEIGHTS - self.offset
        never_B = torch.full_like(score_B, -50)
        return torch.stack([-score_B, score_B, never_B, never_B - 1], dim=1)


class _Step(nn.Module):
    """Class 1 where more than half of the weighted pixels are bright; no gradient anywhere."""

    def forward(self, images: Tensor) -> Tensor:
        bright_B = (images.flatten(1) > 0.5).float().mean(dim=1)
        zeros = 0 * images.flatten(1)[:, :4]
        return zeros + torch.stack([0.4 - bright_B, bright_B - 0.4, bright_B - 9, bright_B - 9], 1)


def _images(values: Tensor, label: int) -> Batch:
    n = len(values)
    return Batch(
        images_BCHW=values.view(n, *SHAPE).numpy(),
        labels_B=np.full(n, label),
        image_ids_B=np.arange(n) + 10,
    )


NEAR_GREY = _images(
    0.45 + 0.1 * torch.rand(4, PIXELS, generator=torch.Generator().manual_seed(0)), 0
)


def _attacked(model: nn.Module, batch: Batch, attack: dict[str, Any]) -> tuple[Rows, Tensor]:
    trajectory = trajectories(AttackSettings(**attack))[0]
    engine = Engine(model, model, PLAIN, folded=False)
    run = AttackRun(
        engine, batch, replace(trajectory, until_success=False), CONDITIONS, keep_attacked=True
    )
    rows = run.run()
    assert run.attacked_NCHW is not None
    return rows, torch.from_numpy(run.attacked_NCHW)


@pytest.mark.parametrize(
    "attack",
    [
        {"rule": Rule.apgd, **UNTARGETED},
        {"rule": Rule.apgd, "loss": Loss.dlr, "goal": Goal.likeliest, "targets": 1},
        {"rule": Rule.adam, "loss": Loss.difference, **UNTARGETED},
        {"momentum": 1.0, **UNTARGETED},
        {"gradient": Gradient.spsa, "spsa_pairs": 512, "loss": Loss.difference, **UNTARGETED},
        {"loss": Loss.dlr, **UNTARGETED},
    ],
    ids=["apgd-ce", "apgd-t", "adam", "momentum", "spsa", "dlr"],
)
def test_on_a_linear_model_the_end_is_the_corner_of_the_ball(attack: dict[str, Any]) -> None:
    """Where no weight is zero, all pixels go to the edge that raises the other class."""
    epsilon = 8 / 255
    settings = {"epsilon_255": 8, "readings": [60], **attack}
    _, attacked = _attacked(_Linear(3.0), NEAR_GREY, settings)
    images = to_unit(NEAR_GREY.images_BCHW)
    corner = images + epsilon * WEIGHTS.sign().view(1, *SHAPE)
    wrong = (attacked - corner).abs().flatten(1) > 1e-6
    # SPSA sees the sign of a small weight wrongly now and then, and steps back the next time.
    allowed = (
        WEIGHTS.abs() < 0.2 if attack.get("gradient") else torch.zeros(PIXELS, dtype=torch.bool)
    )
    assert not wrong[:, ~allowed].any()


def test_square_finds_the_corner_on_a_linear_model_of_one_row() -> None:
    """Its squares flip the pixels one by one; what it keeps is never worse than the stripes."""
    settings = {"rule": Rule.square, "loss": Loss.difference, "epsilon_255": 8, **UNTARGETED}
    few, many = (
        _attacked(_Linear(3.0), NEAR_GREY, {**settings, "readings": [n]})[0]["margin"]
        for n in (20, 1500)
    )
    images = to_unit(NEAR_GREY.images_BCHW)
    corner = images + 8 / 255 * WEIGHTS.sign().view(1, *SHAPE)
    logits = _Linear(3.0)(corner)
    lowest = (logits[:, 0] - logits[:, 1]).numpy()
    assert (many < few).all()
    assert many == pytest.approx(lowest, abs=0.02)


@pytest.mark.parametrize("offset", [0.2, 1.0])
def test_fab_finds_the_distance_to_a_linear_border(offset: float) -> None:
    """It is (offset - w (x - 1/2)) / |w|_1 in the maximum norm."""
    rows, _ = _attacked(
        _Linear(offset),
        NEAR_GREY,
        {
            "rule": Rule.fab,
            "goal": Goal.likeliest,
            "targets": 1,
            "loss": Loss.difference,
            "epsilon_255": 255,
            "readings": [60],
        },
    )
    images = torch.from_numpy(NEAR_GREY.images_BCHW).flatten(1)
    exact = (offset - (images - 0.5) @ WEIGHTS) / WEIGHTS.abs().sum() * 255
    assert (exact > 0).all()
    assert (rows["prediction"] == 1).all()
    assert (rows["linf_255"] >= exact.numpy() - 1e-3).all()
    assert rows["linf_255"] == pytest.approx(exact.numpy(), rel=0.02)


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_fab_counts_only_what_lies_in_the_ball(factor: float) -> None:
    """A ball that ends just before the border holds no error; one that ends just behind does."""
    images = torch.from_numpy(NEAR_GREY.images_BCHW).flatten(1)
    exact = ((0.5 - (images - 0.5) @ WEIGHTS) / WEIGHTS.abs().sum() * 255)[0]
    attack = {
        "rule": Rule.fab,
        "goal": Goal.likeliest,
        "targets": 1,
        "loss": Loss.difference,
        "epsilon_255": float(exact) * factor,
        "readings": [60],
    }
    rows, attacked = _attacked(_Linear(0.5), NEAR_GREY.part(0, 1), attack)
    assert (
        attacked - to_unit(NEAR_GREY.images_BCHW)[:1]
    ).abs().max() * 255 <= exact * factor + 1e-4
    assert rows["correct"].tolist() == [factor < 1]
    assert (rows["first_error_step"] != NEVER).tolist() == [factor > 1]


def test_fab_returns_most_of_the_way_once_and_then_crosses_again() -> None:
    """From an error it goes back to 0.9 of its distance, whatever is there, and steps on."""
    from s3ta.attacks import Look
    from s3ta.steps import Around
    from s3ta.threat import LinfBall

    (trajectory,) = trajectories(
        AttackSettings(
            rule=Rule.fab, goal=Goal.likeliest, targets=1, loss=Loss.difference, readings=[9]
        )
    )
    images = torch.full((1, 1, 1, 2), 0.5)
    around = Around(
        images, LinfBall.around(images, 0.3), np.arange(1), torch.zeros(1, dtype=torch.int64)
    )
    rule, points = FAB(trajectory, images), torch.tensor([0.7, 0.6]).view(1, 1, 1, 2)
    rule.begin(torch.arange(1))
    gradient = torch.tensor([-1.0, -1.0]).view(1, 1, 1, 2)
    wrong = Look(torch.tensor([[0.0, 1.0]]), torch.tensor([-0.1]), gradient)
    steps_B = torch.zeros(1, dtype=torch.int32)
    rule.observe(points, wrong, steps_B, around)
    rule.move(points, wrong, steps_B, around)
    assert points.flatten().tolist() == pytest.approx([0.68, 0.59])
    # There the loss is -0.07, still an error: now it crosses. The border is x + y = 1.2: 0.035 back
    # for both from here, 0.1 forward from the image. 1.05 of these, weighted by 0.9 and 0.1:
    again = Look(torch.tensor([[0.0, 1.0]]), torch.tensor([-0.07]), gradient)
    rule.observe(points, again, steps_B, around)
    rule.move(points, again, steps_B, around)
    expected = [0.9 * (x - 1.05 * 0.035) + 0.1 * (0.5 + 1.05 * 0.1) for x in (0.68, 0.59)]
    assert points.flatten().tolist() == pytest.approx(expected)
    assert rule.result(points, around).flatten().tolist() == pytest.approx([0.68, 0.59])


def test_without_gradients_pgd_stays_at_its_start_and_square_finds_what_there_is() -> None:
    dark = _images(torch.full((4, PIXELS), 0.48), 0)
    one, many = ({"readings": [n], "epsilon_255": 10, **UNTARGETED} for n in (1, 100))
    start, end = (_attacked(_Step(), dark, a)[1] for a in (one, many))
    assert torch.equal(start, end)
    square = {**many, "rule": Rule.square, "loss": Loss.margin}
    rows, _ = _attacked(_Step(), dark, square)
    assert (rows["first_error_step"] != NEVER).all()
    assert (rows["prediction"] == 1).all()
    out_of_reach = _attacked(_Step(), dark, {**square, "epsilon_255": 5})[0]
    assert (out_of_reach["first_error_step"] == NEVER).all()
