"""Per-example records: the same bits however the work is cut."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch

from s3ta.evaluation import Batch, Conditions, attack_images, draw_targets, place_matters
from s3ta.model import S3TA, PlainResNet
from s3ta.objective import cross_entropy
from s3ta.settings import AttackSettings, Goal, Loss
from s3ta.tally import Rows, Tally
from s3ta.trajectory import Trajectory, trajectories

Models = Callable[..., PlainResNet | S3TA]
Batches = Callable[..., Batch]
CONDITIONS = Conditions(classes=5, seed=3, tile=32)
COLUMNS = {
    "image_id": "int64",
    "label": "int32",
    "target": "int32",
    "clean_prediction": "int32",
    "prediction": "int32",
    "correct": "bool",
    "fooled": "bool",
    "loss": "float32",
    "margin": "float32",
    "linf_255": "float32",
    "first_error_step": "int32",
    "first_target_step": "int32",
    "restart": "int32",
    "step": "int32",
}


def _trajectory(
    *readings: int, goal: Goal = Goal.random_target, loss: Loss = Loss.cross_entropy
) -> Trajectory:
    attack = AttackSettings(goal=goal, loss=loss, epsilon_255=16, readings=list(readings))
    (trajectory,) = trajectories(attack)
    return trajectory


def _pick(batch: Batch, index: npt.NDArray[np.int64]) -> Batch:
    return Batch(
        images_BCHW=batch.images_BCHW[index],
        labels_B=batch.labels_B[index],
        image_ids_B=batch.image_ids_B[index],
    )


def _joined(parts: list[Rows]) -> Rows:
    """Rows ordered by image and step."""
    rows = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    order = np.lexsort((rows["step"], rows["image_id"]))
    return {name: column[order] for name, column in rows.items()}


def _assert_same(a: Rows, b: Rows) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize("unroll", [None, 2])
def test_an_image_is_answered_alike_at_every_place_of_a_tile(
    unroll: int | None, tiny_model: Models, tiny_batch: Batches
) -> None:
    """What the promise of equal bits rests on: without it rows depend on how images are cut.

    MKL breaks it for products of at most 10 columns whose inner length is no multiple of 4, such as
    10 classes read from a hidden layer of 50: it adds in another order where rows are not aligned.
    """
    image = torch.from_numpy(tiny_batch(1).images_BCHW) / 255
    tile = image.repeat(32, 1, 1, 1).requires_grad_()
    logits_BC = tiny_model(unroll)(tile)
    (gradient,) = torch.autograd.grad(cross_entropy(logits_BC, torch.ones(32).long()).sum(), tile)
    assert (logits_BC == logits_BC[0]).all()
    assert (gradient == gradient[0]).all()


@pytest.mark.parametrize("unroll", [None, 2])
def test_a_hundred_steps_give_the_same_bits_for_batches_of_1_7_and_64_in_any_order(
    unroll: int | None, tiny_model: Models, tiny_batch: Batches
) -> None:
    model, batch, run = tiny_model(unroll), tiny_batch(66), _trajectory(16, 100)
    order = np.random.default_rng(0).permutation(66)
    whole = attack_images(model, batch, run, CONDITIONS)
    # The cases are not trivial: several classes are answered, and the attack changes some.
    assert len(np.unique(whole["prediction"])) >= 3
    assert 0 < whole["fooled"].mean() < 1
    for size, images in ((64, 66), (7, 21), (1, 5)):
        pieces = [order[i : i + size] for i in range(0, images, size)]
        parts = [attack_images(model, _pick(batch, p), run, CONDITIONS) for p in pieces]
        expected = np.isin(whole["image_id"], order[:images])
        _assert_same(_joined(parts), {k: v[expected] for k, v in whole.items()})


@pytest.mark.parametrize("loss", list(Loss))
@pytest.mark.parametrize("goal", list(Goal))
def test_an_images_rows_do_not_depend_on_its_neighbours(
    goal: Goal, loss: Loss, tiny_model: Models, tiny_batch: Batches
) -> None:
    model, run = tiny_model(2), _trajectory(20, goal=goal, loss=loss)
    batch, others = tiny_batch(3), tiny_batch(13, first_id=500)
    alone = attack_images(model, batch, run, CONDITIONS)
    mixed = Batch(
        images_BCHW=np.concatenate([others.images_BCHW, batch.images_BCHW]),
        labels_B=np.concatenate([others.labels_B, batch.labels_B]),
        image_ids_B=np.concatenate([others.image_ids_B, batch.image_ids_B]),
    )
    crowded = attack_images(model, mixed, run, CONDITIONS)
    _assert_same(alone, {k: v[13:] for k, v in crowded.items()})


@pytest.fixture(scope="module")
def rows(tiny_model: Models, tiny_batch: Batches) -> Rows:
    return attack_images(tiny_model(2), tiny_batch(21), _trajectory(16, 20, 40), CONDITIONS)


def test_rows_have_the_14_columns_and_one_row_per_image_and_reading(rows: Rows) -> None:
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
    assert (rows["linf_255"] <= 16 + 1e-4).all()
    assert (rows["linf_255"] > 8).all()
    error, hit = rows["first_error_step"], rows["first_target_step"]
    assert ((error >= 0) & (error <= rows["step"]))[~rows["correct"]].all()
    assert ((hit >= 0) & (hit <= rows["step"]))[rows["fooled"]].all()
    assert (error <= rows["step"]).all()
    assert (hit <= rows["step"]).all()
    assert ((hit == -1) | ((error >= 0) & (error <= hit))).all()


def test_rows_of_an_untargeted_attack_have_no_target(
    tiny_model: Models, tiny_batch: Batches
) -> None:
    run = _trajectory(20, goal=Goal.untargeted)
    rows = attack_images(tiny_model(None), tiny_batch(5), run, CONDITIONS)
    assert (rows["target"] == -1).all()
    assert not rows["fooled"].any()
    assert (rows["first_target_step"] == -1).all()
    assert (rows["loss"] <= 0).all()  # log p(label)


def test_the_clean_prediction_is_that_of_the_clean_image(
    rows: Rows, tiny_model: Models, tiny_batch: Batches
) -> None:
    images = torch.from_numpy(tiny_batch(21).images_BCHW) / 255
    expected = tiny_model(2)(images).argmax(1).numpy()
    assert rows["clean_prediction"][::3].tolist() == expected.tolist()
    assert (rows["clean_prediction"] != rows["prediction"]).any()


def test_the_restart_draws_another_start_and_is_written_down(
    tiny_model: Models, tiny_batch: Batches
) -> None:
    run = _trajectory(16)
    again = Trajectory(**{**vars(run), "restart": 1})
    first, second = (
        attack_images(tiny_model(2), tiny_batch(5), r, CONDITIONS) for r in (run, again)
    )
    assert second["restart"].tolist() == [1] * 5
    assert first["target"].tolist() == second["target"].tolist()
    assert (first["loss"] != second["loss"]).any()


def test_targets_depend_on_seed_and_image_id_alone(tiny_batch: Batches) -> None:
    batch = tiny_batch(200)
    targets = draw_targets(batch, seed=3, classes=5)
    backwards = _pick(batch, np.arange(200)[::-1])
    assert draw_targets(backwards, seed=3, classes=5)[::-1].tolist() == targets.tolist()
    assert draw_targets(batch.part(50, 60), 3, 5).tolist() == targets[50:60].tolist()
    assert (draw_targets(batch, seed=4, classes=5) != targets).any()
    assert (targets != batch.labels_B).all()


def test_an_evaluation_leaves_the_model_as_it_was(tiny_model: Models, tiny_batch: Batches) -> None:
    model = tiny_model(2).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    attack_images(model, tiny_batch(3), _trajectory(16), CONDITIONS)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


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


class _Favours(torch.nn.Module):
    """Answers by the image's place in the batch."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        places = torch.arange(len(images), dtype=images.dtype)
        return images.flatten(1)[:, :3] + 1e-7 * places[:, None]


def test_a_model_that_favours_a_place_of_the_tile_is_found() -> None:
    image = torch.full((1, 4, 4), 0.5)
    assert place_matters(_Favours(), image, tile=4)
    assert not place_matters(torch.nn.Flatten(), image, tile=4)


def test_images_of_two_trajectories_or_restarts_are_not_added_up() -> None:
    ten, twenty = Tally(4, 3, {10: 2}, {10: 1}), Tally(4, 3, {20: 2}, {20: 1})
    with pytest.raises(ValueError, match=r"\[10\] and \[20\]"):
        ten + twenty
    rows = {"step": np.array([10, 10]), "restart": np.array([0, 1])}
    with pytest.raises(ValueError, match="several restarts"):
        Tally.of(rows)
