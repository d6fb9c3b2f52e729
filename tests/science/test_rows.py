"""What a row says: what the model itself answers at the attacked image. And counts of rows."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from s3ta.batch import Batch, Conditions, draw_targets, to_unit
from s3ta.engine import Engine
from s3ta.evaluation import AttackRun, attack_images
from s3ta.model import S3TA, PlainResNet
from s3ta.objective import attack_loss, margin
from s3ta.settings import Dtype, Goal, Loss
from s3ta.tally import Rows, Tally
from s3ta.threat import LinfBall
from s3ta.trajectory import Trajectory

Models = Callable[..., PlainResNet | S3TA]
Batches = Callable[..., Batch]
Engines = Callable[..., Engine]
Trajectories = Callable[..., Trajectory]
CONDITIONS = Conditions(classes=5, seed=3, tile=32)
COLUMNS = {
    "image_id": "int64",
    "label": "int32",
    "target": "int32",
    "clean_prediction": "int32",
    "correct": "bool",
    "fooled": "bool",
    "restart": "int32",
    "step": "int32",
    "prediction": "int32",
    "attack_prediction": "int32",
    "loss": "float32",
    "margin": "float32",
    "linf_255": "float32",
    "pixel_min": "float32",
    "pixel_max": "float32",
    "first_error_step": "int32",
    "first_target_step": "int32",
}
KINDS: dict[str, dict[str, Any]] = {
    "folded": {},
    "plain": {"fold": False, "channels_last": False},
    "bfloat16": {"dtype": Dtype.bfloat16},
}


@pytest.mark.parametrize("loss", list(Loss))
@pytest.mark.parametrize("goal", [Goal.untargeted, Goal.random_target])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_say_what_the_model_itself_answers_at_the_attacked_image(
    kind: str,
    goal: Goal,
    loss: Loss,
    tiny_engine: Engines,
    tiny_model: Models,
    tiny_batch: Batches,
    trajectory: Trajectories,
) -> None:
    """Whatever the attack computed with; `tiny_model` is in float32 and has its BatchNorm."""
    engine, model, batch = tiny_engine(2, tile=8, **KINDS[kind]), tiny_model(2), tiny_batch(21)
    run = AttackRun(
        engine,
        batch,
        trajectory(20, goal=goal, loss=loss),
        replace(CONDITIONS, tile=8),
        keep_attacked=True,
    )
    rows = run.run()
    assert run.attacked_NCHW is not None
    attacked, clean = torch.from_numpy(run.attacked_NCHW), to_unit(batch.images_BCHW)
    labels_N = torch.from_numpy(batch.labels_B)
    targets_N = torch.from_numpy(draw_targets(batch, 3, 5)) if goal is Goal.random_target else None
    logits_NC = model(attacked).detach()
    losses_N = attack_loss(loss, logits_NC, labels_N, targets_N)
    flat = attacked.flatten(1)
    assert rows["prediction"].tolist() == logits_NC.argmax(1).tolist()
    assert rows["clean_prediction"].tolist() == model(clean).argmax(1).tolist()
    # DLR divides by a difference of logits, which may be small.
    exact = 1e-4 if loss is Loss.dlr else 1e-5
    np.testing.assert_allclose(rows["loss"], losses_N, rtol=exact, atol=1e-6)
    np.testing.assert_allclose(rows["margin"], margin(logits_NC, labels_N), rtol=1e-5, atol=1e-6)
    assert rows["pixel_min"].tolist() == flat.amin(1).tolist()
    assert rows["pixel_max"].tolist() == flat.amax(1).tolist()
    distances_N = (attacked - clean).abs().flatten(1).amax(1)
    assert rows["linf_255"].tolist() == (distances_N.numpy() * 255).tolist()
    fast_N = engine.logits(attacked.to(memory_format=engine.memory)).argmax(1)
    assert rows["attack_prediction"].tolist() == fast_N.tolist()
    assert len({*rows["prediction"].tolist()}) >= 3
    assert (rows["prediction"] != rows["clean_prediction"]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_attacked_images_lie_in_ball_and_image_range_exactly(
    kind: str, tiny_engine: Engines, tiny_batch: Batches, trajectory: Trajectories
) -> None:
    batch = tiny_batch(21)
    batch.images_BCHW[:, :, :2], batch.images_BCHW[:, :, 2:4] = 0, 255
    engine = tiny_engine(2, **KINDS[kind])
    run = AttackRun(engine, batch, trajectory(20), CONDITIONS, keep_attacked=True)
    rows = run.run()
    assert run.attacked_NCHW is not None
    attacked, ball = run.attacked_NCHW, LinfBall.around(to_unit(batch.images_BCHW), 16 / 255)
    assert (attacked >= ball.low.numpy()).all()
    assert (attacked <= ball.high.numpy()).all()
    assert (rows["linf_255"] <= 16 + 1e-4).all()
    assert (rows["linf_255"] > 8).all()
    assert rows["pixel_min"].min() == 0
    assert rows["pixel_max"].max() == 1


@pytest.mark.parametrize("goal", [Goal.untargeted, Goal.random_target])
def test_an_attack_in_bfloat16_ends_as_one_in_float32_does(
    goal: Goal, tiny_engine: Engines, tiny_batch: Batches, trajectory: Trajectories
) -> None:
    batch, run = tiny_batch(300), trajectory(40, goal=goal)
    exact, fast = (
        attack_images(tiny_engine(None, dtype=dtype), batch, run, CONDITIONS)
        for dtype in (Dtype.float32, Dtype.bfloat16)
    )
    assert (exact["prediction"] == fast["prediction"]).mean() >= 0.95
    assert (exact["loss"] != fast["loss"]).any()
    changed = exact["prediction"] != exact["clean_prediction"]
    assert changed.mean() > 0.1


@pytest.fixture(scope="module")
def rows(tiny_engine: Engines, tiny_batch: Batches, trajectory: Trajectories) -> Rows:
    return attack_images(tiny_engine(2), tiny_batch(21), trajectory(16, 20, 40), CONDITIONS)


def test_rows_have_the_17_columns_and_one_row_per_image_and_reading(rows: Rows) -> None:
    assert {name: str(column.dtype) for name, column in rows.items()} == COLUMNS
    assert all(column.shape == (63,) for column in rows.values())
    assert rows["image_id"].tolist() == [i for i in range(21) for _ in range(3)]
    assert rows["step"].tolist() == [16, 20, 40] * 21
    assert not rows["restart"].any()


def test_columns_of_a_row_agree_with_one_another(rows: Rows) -> None:
    assert np.array_equal(rows["correct"], rows["prediction"] == rows["label"])
    assert np.array_equal(rows["fooled"], rows["prediction"] == rows["target"])
    assert (rows["target"] != rows["label"]).all()
    assert (rows["margin"] < 0).tolist() == (~rows["correct"]).tolist()
    error, hit = rows["first_error_step"], rows["first_target_step"]
    assert ((error >= 0) & (error <= rows["step"]))[~rows["correct"]].all()
    assert ((hit >= 0) & (hit <= rows["step"]))[rows["fooled"]].all()
    assert (error <= rows["step"]).all()
    assert (hit <= rows["step"]).all()
    assert ((hit == -1) | ((error >= 0) & (error <= hit))).all()


def test_rows_of_an_untargeted_attack_have_no_target(
    tiny_engine: Engines, tiny_batch: Batches, trajectory: Trajectories
) -> None:
    run = trajectory(20, goal=Goal.untargeted)
    rows = attack_images(tiny_engine(), tiny_batch(5), run, CONDITIONS)
    assert (rows["target"] == -1).all()
    assert not rows["fooled"].any()
    assert (rows["first_target_step"] == -1).all()
    assert (rows["loss"] <= 0).all()  # log p(label)


def test_the_clean_prediction_is_that_of_the_clean_image(
    rows: Rows, tiny_model: Models, tiny_batch: Batches
) -> None:
    expected = tiny_model(2)(to_unit(tiny_batch(21).images_BCHW)).argmax(1).numpy()
    assert rows["clean_prediction"][::3].tolist() == expected.tolist()
    assert (rows["clean_prediction"] != rows["prediction"]).any()


def test_the_restart_draws_another_start_and_is_written_down(
    tiny_engine: Engines, tiny_batch: Batches, trajectory: Trajectories
) -> None:
    runs = trajectory(16), replace(trajectory(16), restart=1)
    first, second = (attack_images(tiny_engine(2), tiny_batch(5), r, CONDITIONS) for r in runs)
    assert second["restart"].tolist() == [1] * 5
    assert first["target"].tolist() == second["target"].tolist()
    assert (first["loss"] != second["loss"]).any()


# Counting rows.


def test_a_tally_counts_what_the_rows_say(rows: Rows) -> None:
    tally = Tally.of(rows)
    assert tally.images == 21
    assert tally.clean_correct == int((rows["clean_prediction"] == rows["label"]).sum()) // 3
    for at, step in enumerate((16, 20, 40)):
        assert tally.correct[step] == int(rows["correct"][at::3].sum())
        assert tally.fooled[step] == int(rows["fooled"][at::3].sum())


@pytest.mark.parametrize("cuts", [(1,), (3, 4, 20), (7, 14), tuple(range(1, 21))])
def test_tallies_of_parts_add_up_to_the_tally_of_everything_in_any_order(
    rows: Rows, cuts: tuple[int, ...]
) -> None:
    edges = [0, *cuts, 21]
    parts = [Tally.of({k: v[3 * a : 3 * b] for k, v in rows.items()}) for a, b in pairwise(edges)]
    assert sum(parts, Tally()) == Tally.of(rows)
    assert sum(reversed(parts), Tally()) == Tally.of(rows)
    assert Tally.of(rows) + Tally() == Tally.of(rows)


def test_images_of_two_trajectories_or_restarts_are_not_added_up() -> None:
    ten, twenty = Tally(4, 3, {10: 2}, {10: 1}), Tally(4, 3, {20: 2}, {20: 1})
    with pytest.raises(ValueError, match=r"\[10\] and \[20\]"):
        ten + twenty
    rows = {"step": np.array([10, 10]), "restart": np.array([0, 1])}
    with pytest.raises(ValueError, match="several restarts"):
        Tally.of(rows)
