"""Attacks through a recurrent model's glances: which answers make up the loss, and who judges."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from s3ta.batch import Batch, Conditions, to_unit
from s3ta.engine import Engine
from s3ta.errors import UserError
from s3ta.evaluation import attack_images
from s3ta.model import S3TA
from s3ta.objective import attack_loss
from s3ta.settings import AttackSettings, Goal, Loss, Through
from s3ta.tally import Rows
from s3ta.trajectory import Trajectory, trajectories
from s3ta.views import losses_of

Batches = Callable[..., Batch]
Engines = Callable[..., Engine]
Models = Callable[..., S3TA]
Same = Callable[[Rows, Rows], None]
LABELS = torch.tensor([0, 1, 2, 3])
TARGETS = torch.tensor([1, 2, 3, 4])
CONDITIONS = Conditions(classes=5, seed=3, tile=8)
UNROLL = 2


def _trajectory(**attack: Any) -> Trajectory:
    return trajectories(AttackSettings(readings=[20], **attack))[0]


@pytest.fixture(scope="module")
def engine(tiny_engine: Engines) -> Engine:
    return tiny_engine(UNROLL, 8, fold=False, channels_last=False)


@pytest.fixture(scope="module")
def points(tiny_batch: Batches) -> torch.Tensor:
    return to_unit(tiny_batch(4, first_id=50).images_BCHW)


@pytest.fixture(scope="module")
def images(tiny_batch: Batches) -> torch.Tensor:
    return to_unit(tiny_batch(4).images_BCHW)


@pytest.mark.parametrize(
    ("attack", "read_outs"),
    [
        ({}, [2]),
        ({"through": Through.readouts}, [1, 2]),
        ({"unroll": 1}, [1]),
        ({"unroll": 4}, [4]),
        ({"unroll": 4, "through": Through.readouts}, [1, 2, 3, 4]),
    ],
)
def test_the_loss_is_the_sum_over_the_chosen_answers_and_the_logits_are_the_deployed_ones(
    attack: dict[str, Any],
    read_outs: list[int],
    engine: Engine,
    tiny_model: Models,
    images: torch.Tensor,
    points: torch.Tensor,
) -> None:
    losses = losses_of(engine, _trajectory(**attack), images, LABELS, TARGETS)
    logits_BC, losses_B = losses(points, None)
    model = tiny_model(UNROLL)
    expected_B = sum(
        attack_loss(Loss.cross_entropy, model(points, unroll=k), LABELS, TARGETS) for k in read_outs
    )
    torch.testing.assert_close(losses_B, expected_B)
    torch.testing.assert_close(logits_BC, model(points))
    some = losses(points[[3, 1]], torch.tensor([3, 1]))[1]
    torch.testing.assert_close(some, losses_B[[3, 1]])


def test_moved_attention_lowers_the_loss_by_the_share_of_its_mass(
    engine: Engine, tiny_model: Models, images: torch.Tensor, points: torch.Tensor
) -> None:
    """At the clean image nothing is moved; elsewhere it is half the sum of |A - A_clean|."""
    model, weight = tiny_model(UNROLL), 3.0
    trajectory = _trajectory(through=Through.attention, attention_weight=weight)
    losses = losses_of(engine, trajectory, images, LABELS, None)
    plain_B = attack_loss(Loss.cross_entropy, model(images), LABELS, None)
    torch.testing.assert_close(losses(images, None)[1], plain_B)
    with torch.no_grad():
        maps, clean = (model.trace(x).maps_BTQHW for x in (points, images))
    moved_B = torch.stack([(maps[b] - clean[b]).abs().sum() / 2 / (2 * 2) for b in range(4)])
    assert (moved_B > 0.01).all()
    assert (moved_B < 1).all()
    plain_B = attack_loss(Loss.cross_entropy, model(points), LABELS, None)
    torch.testing.assert_close(losses(points, None)[1], plain_B - weight * moved_B)


def test_an_attack_through_the_deployed_unroll_is_the_plain_one(
    engine: Engine, tiny_batch: Batches, assert_same: Same
) -> None:
    rows = [
        attack_images(engine, tiny_batch(8), _trajectory(unroll=k), CONDITIONS)
        for k in (None, UNROLL, UNROLL + 1)
    ]
    assert_same(rows[1], rows[0])
    assert (rows[2]["loss"] != rows[0]["loss"]).any()


def test_attention_is_moved_further_by_the_attack_that_steers_it(
    engine: Engine, tiny_batch: Batches, tiny_model: Models
) -> None:
    from s3ta.evaluation import AttackRun

    batch, model, moved = tiny_batch(8), tiny_model(UNROLL), []
    for weight in (0.0, 50.0):
        trajectory = _trajectory(
            through=Through.attention, attention_weight=weight, goal=Goal.untargeted
        )
        run = AttackRun(engine, batch, trajectory, CONDITIONS, keep_attacked=True)
        run.run()
        assert run.attacked_NCHW is not None
        with torch.no_grad():
            ends = (torch.from_numpy(run.attacked_NCHW), to_unit(batch.images_BCHW))
            maps, clean = (model.trace(x).maps_BTQHW for x in ends)
        moved.append(float((maps - clean).abs().sum()))
    assert moved[1] > 1.2 * moved[0]


@pytest.mark.parametrize("attack", [{"through": Through.readouts}, {"unroll": 3}])
def test_a_model_without_glances_is_refused(
    attack: dict[str, Any], tiny_engine: Engines, tiny_batch: Batches
) -> None:
    trajectory, engine, batch = _trajectory(**attack), tiny_engine(None, 8), tiny_batch(2)
    with pytest.raises(UserError, match="must be an S3TA"):
        attack_images(engine, batch, trajectory, CONDITIONS)
    assert np.isfinite(attack_images(engine, batch, _trajectory(), CONDITIONS)["loss"]).all()
