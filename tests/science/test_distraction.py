"""What attention moves, by hand; and what an answer read with other maps is."""

from collections.abc import Callable

import pytest
import torch

from s3ta.batch import Batch, to_unit
from s3ta.distraction import ANSWERS, Views, away, moved_mass, object_masks, study
from s3ta.engine import Engine
from s3ta.model import S3TA
from s3ta.objective import attack_loss
from s3ta.settings import Loss, Through
from s3ta.trajectory import Trajectory
from s3ta.views import losses_of

Models = Callable[..., S3TA]
Batches = Callable[..., Batch]
LEFT = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
RIGHT = torch.tensor([[0.0, 1.0], [0.0, 0.0]])


def _map(grid: torch.Tensor) -> torch.Tensor:
    return grid[None, None, None]


@pytest.mark.parametrize(
    ("other", "moved"), [(LEFT, 0.0), (RIGHT, 1.0), (0.75 * LEFT + 0.25 * RIGHT, 0.25)]
)
def test_moved_mass_is_the_share_that_is_elsewhere(other: torch.Tensor, moved: float) -> None:
    assert float(moved_mass(_map(LEFT), _map(other))) == pytest.approx(moved)


def test_away_is_what_has_left_the_object_and_negative_where_it_came() -> None:
    mask = torch.tensor([[[1.0, 0.5], [0.0, 0.0]]])
    assert float(away(_map(LEFT), _map(RIGHT), mask)) == pytest.approx(0.5)
    assert float(away(_map(RIGHT), _map(LEFT), mask)) == pytest.approx(-0.5)


def test_an_object_mask_is_the_bright_share_of_each_place() -> None:
    image = torch.tensor([[0.0, 0.0, 0.9, 0.9], [0.0, 0.2, 0.9, 0.0]])
    expected = torch.tensor([[0.25, 0.75]])
    assert torch.equal(object_masks(image[None, None], 0.1, (1, 2))[0], expected)


@pytest.fixture(scope="module")
def images(tiny_batch: Batches) -> torch.Tensor:
    return to_unit(tiny_batch(8).images_BCHW)


@pytest.fixture(scope="module")
def others(tiny_batch: Batches) -> torch.Tensor:
    return to_unit(tiny_batch(8, first_id=50).images_BCHW)


@torch.no_grad()
def test_read_with_its_own_maps_an_image_has_its_own_answer(
    tiny_model: Models, images: torch.Tensor, others: torch.Tensor
) -> None:
    model = tiny_model(3)
    own = model.trace(images)
    torch.testing.assert_close(model.read(images, own.maps_BTQHW), model(images))
    other = model.trace(others).maps_BTQHW
    assert (model.read(images, other) - model(images)).abs().max() > 1e-3


@torch.no_grad()
def test_uniform_maps_read_what_the_uniform_control_reads(
    tiny_model: Models, images: torch.Tensor
) -> None:
    model = tiny_model(2)
    even = torch.full_like(model.trace(images).maps_BTQHW, 1 / 9)
    for parameter in model.query.parameters():  # type: ignore[union-attr]
        parameter.zero_()  # queries of zeros look everywhere alike
    torch.testing.assert_close(model.read(images, even), model(images))


def test_a_study_without_any_change_finds_none(tiny_model: Models, images: torch.Tensor) -> None:
    model = tiny_model(2)
    masks = object_masks(images, 0.5, (3, 3))
    views = Views(clean=images, attacked=images, held=images, random=images)
    found = study(model, views, masks)
    predictions = model(images).argmax(dim=1)
    assert all(torch.equal(found[name], predictions) for name in ANSWERS)
    for name in ("attacked", "held", "random"):
        assert not found[f"moved_{name}"].any()
        assert not found[f"away_{name}"].any()


@torch.no_grad()
def test_each_answer_is_read_from_its_image_with_its_maps(
    tiny_model: Models, images: torch.Tensor, others: torch.Tensor
) -> None:
    model, held, random = tiny_model(2), others.flip(0), images.flip(0)
    found = study(model, Views(clean=images, attacked=others, held=held, random=random), None)
    clean, attacked, noise = (model.trace(x).maps_BTQHW for x in (images, others, random))
    expected = {
        "clean": model(images),
        "attacked": model(others),
        "random": model(random),
        "attacked_clean_maps": model.read(others, clean),
        "clean_attacked_maps": model.read(images, attacked),
        "clean_random_maps": model.read(images, noise),
        "held_clean_maps": model.read(held, clean),
        "held": model(held),
    }
    assert {*expected} == {*ANSWERS}
    for name, logits_BC in expected.items():
        assert torch.equal(found[name], logits_BC.argmax(dim=1)), name
    assert "away_attacked" not in found
    torch.testing.assert_close(found["moved_attacked"], moved_mass(clean, attacked))


def test_an_attack_with_held_maps_follows_the_loss_of_the_clean_images_maps(
    tiny_engine: Callable[..., Engine],
    tiny_model: Models,
    trajectory: Callable[..., Trajectory],
    images: torch.Tensor,
    others: torch.Tensor,
) -> None:
    engine, model = tiny_engine(2, 8, fold=False, channels_last=False), tiny_model(2)
    labels, targets = torch.arange(8) % 5, (torch.arange(8) + 1) % 5
    run = trajectory(20, through=Through.held_maps)
    logits_BC, losses_B = losses_of(engine, run, images, labels, targets)(others, None)
    with torch.no_grad():
        held_BC = model.read(others, model.trace(images).maps_BTQHW)
    expected_B = attack_loss(Loss.cross_entropy, held_BC, labels, targets)
    torch.testing.assert_close(losses_B, expected_B)
    torch.testing.assert_close(logits_BC, model(others))  # success is the deployed model's
    some = torch.tensor([5, 2])
    part = losses_of(engine, run, images, labels, targets)(others[some], some)[1]
    torch.testing.assert_close(part, expected_B[some])
