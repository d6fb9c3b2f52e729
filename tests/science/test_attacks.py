"""Projected gradient descent where the answer is known."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from s3ta.attacks import PGD
from s3ta.engine import frozen
from s3ta.model import S3TA
from s3ta.objective import attack_loss
from s3ta.settings import Goal, Loss
from s3ta.threat import LinfBall
from s3ta.trajectory import Trajectory

Models = Callable[..., S3TA]
EPSILON = 16 / 255


def _trajectory(steps: int, loss: Loss = Loss.cross_entropy) -> Trajectory:
    return Trajectory(
        goal=Goal.random_target,
        loss=loss,
        epsilon=EPSILON,
        step_size=EPSILON / 16,
        steps=steps,
        readings=(),
    )


# A two-class linear model: its worst case in the ball is a corner.

WEIGHTS = torch.linspace(-1, 1, 30)  # no weight is zero
IMAGES = torch.rand(4, 1, 5, 6, generator=torch.Generator().manual_seed(3))
IMAGES[0, 0, 0], IMAGES[0, 0, 1] = 0.0, 1.0  # here the image range cuts the ball
NOISE = torch.rand(4, 1, 5, 6, generator=torch.Generator().manual_seed(4))
ZEROS = torch.zeros(4, dtype=torch.int64)


def _linear(images: Tensor) -> Tensor:
    """Class 1 wins where the inner product with WEIGHTS is positive."""
    score_B = images.flatten(1) @ WEIGHTS.to(images.dtype)
    return torch.stack([torch.zeros_like(score_B), score_B], dim=1)


def _corner(direction: float) -> Tensor:
    return (IMAGES + direction * EPSILON * WEIGHTS.sign().view(1, 1, 5, 6)).clamp(0, 1)


@pytest.mark.parametrize("loss", [Loss.cross_entropy, Loss.margin, Loss.difference])
@pytest.mark.parametrize("start", [None, NOISE])
@pytest.mark.parametrize(
    ("label", "target", "direction"),
    [
        (0, None, +1.0),  # away from class 0
        (1, None, -1.0),  # away from class 1
        (1, 0, -1.0),  # towards class 0
        (0, 1, +1.0),  # towards class 1: the other way than an untargeted attack with label 1
    ],
)
def test_pgd_reaches_the_corner_of_ball_and_image_range_exactly(
    loss: Loss, start: Tensor | None, label: int, target: int | None, direction: float
) -> None:
    targets = None if target is None else ZEROS + target
    pgd = PGD(_linear, _trajectory(32, loss=loss), IMAGES, ZEROS + label, targets)
    attacked = pgd.run(pgd.begin(start))
    assert torch.equal(attacked, _corner(direction))
    assert not torch.equal(attacked, _corner(-direction))


def test_pgd_never_leaves_ball_or_image_range_and_moves_by_one_step_size() -> None:
    pgd = PGD(_linear, replace(_trajectory(20), step_size=EPSILON / 3), IMAGES, ZEROS, None)
    attacked = pgd.begin(NOISE)
    for _ in range(20):
        before = attacked.clone()
        pgd.run(attacked, 1)
        assert attacked.min() >= 0
        assert attacked.max() <= 1
        assert (attacked - IMAGES).abs().max() <= EPSILON + 1e-7
        assert (attacked - before).abs().max() <= EPSILON / 3 + 1e-7
    assert torch.equal(attacked, _corner(1.0))


def test_the_first_step_has_the_step_size_in_the_gradients_sign() -> None:
    images = IMAGES.double() * 0.5 + 0.25
    pgd = PGD(_linear, _trajectory(1), images, ZEROS, None)
    moved = pgd.run(pgd.begin(None)) - images
    expected = EPSILON / 16 * WEIGHTS.sign().double().view(1, 1, 5, 6).expand_as(moved)
    torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("start", [None, NOISE])
def test_zero_steps_return_the_start(start: Tensor | None) -> None:
    pgd = PGD(_linear, _trajectory(0), IMAGES, ZEROS, None)
    assert torch.equal(pgd.run(pgd.begin(start)), pgd.begin(start))


def test_steps_change_the_given_tensor_in_place_and_keep_how_it_lies_in_memory() -> None:
    images = IMAGES.expand(4, 2, 5, 6).contiguous(memory_format=torch.channels_last)
    pgd = PGD(lambda x: _linear(x[:, 0]), _trajectory(2), images, ZEROS, None)
    attacked = pgd.begin(None)
    assert pgd.run(attacked) is attacked
    assert attacked.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(attacked[:, 0], images[:, 0])
    assert torch.equal(attacked[:, 1], images[:, 1])  # not read by the model
    assert not attacked.requires_grad


def test_a_look_gives_logits_and_the_gradient_of_the_loss_and_moves_nothing() -> None:
    images = IMAGES.double()
    pgd = PGD(_linear, _trajectory(1), images, ZEROS, None)
    attacked = pgd.begin(NOISE.double())
    before = attacked.clone()
    logits_BC, gradient = pgd.look(attacked)
    assert torch.equal(attacked, before)
    assert torch.equal(logits_BC, _linear(before))
    assert not logits_BC.requires_grad
    # The loss is log p(class 0) = -log(1 + e^s), s = x . w: its gradient is -p(class 1) w.
    wrong_B = logits_BC.softmax(dim=1)[:, 1]
    expected = -wrong_B.view(-1, 1, 1, 1) * WEIGHTS.double().view(1, 1, 5, 6)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)


def test_the_noise_start_is_uniform_in_the_ball_and_clipped_to_the_image_range() -> None:
    start = PGD(_linear, _trajectory(1), IMAGES, ZEROS, None).begin(NOISE)
    expected = (IMAGES + (2 * NOISE - 1) * EPSILON).clamp(0, 1)
    torch.testing.assert_close(start, expected, rtol=0, atol=1e-7)
    assert (start[0, 0, :2] == IMAGES[0, 0, :2]).any()
    ball = LinfBall.around(IMAGES, EPSILON)
    assert torch.equal(ball.noise_start(IMAGES, EPSILON, torch.zeros_like(NOISE)), ball.low)


def test_without_noise_the_attack_starts_at_a_copy_of_the_image() -> None:
    images = IMAGES.clone()
    pgd = PGD(_linear, _trajectory(3), images, ZEROS, None)
    assert torch.equal(pgd.begin(None), images)
    pgd.run(pgd.begin(None)).zero_()
    pgd.begin(None).zero_()
    assert torch.equal(images, IMAGES)


def test_a_zero_gradient_leaves_the_start() -> None:
    pgd = PGD(lambda x: x.flatten(1)[:, :3] * 0, _trajectory(5), IMAGES, ZEROS, None)
    start = pgd.begin(NOISE)
    expected = start.clone()
    assert torch.equal(pgd.run(start), expected)


def test_an_images_gradient_is_its_own_and_not_a_share_of_the_batch() -> None:
    """The smallest gradient that float32 holds still moves each of four images."""
    smallest = 1.5e-45
    pgd = PGD(
        lambda x: _linear(x) * smallest, _trajectory(1, loss=Loss.margin), IMAGES, ZEROS, None
    )
    (gradient,) = torch.autograd.grad(_linear(x := IMAGES.clone().requires_grad_()).sum(), x)
    strong = (gradient.abs() * smallest > 0) & (IMAGES > 0.1) & (IMAGES < 0.9)
    assert strong.any()
    moved = pgd.run(pgd.begin(None)) - IMAGES
    expected = EPSILON / 16 * gradient.sign()
    torch.testing.assert_close(moved[strong], expected[strong])


def test_margin_attack_stands_still_below_its_floor() -> None:
    pgd = PGD(lambda x: _linear(x) * 1e4, _trajectory(4, loss=Loss.margin), IMAGES, ZEROS, None)
    start = _corner(1.0)
    assert (_linear(start)[:, 1] * 1e4 > 30).any()
    attacked = pgd.run(IMAGES.clone())
    wrong_B = _linear(IMAGES)[:, 1] * 1e4 > 30
    assert torch.equal(attacked[wrong_B], IMAGES[wrong_B])
    assert not torch.equal(attacked[~wrong_B], IMAGES[~wrong_B])


# A small S3TA: nothing but the step counts.


def _s3ta_attack(model: nn.Module, trajectory: Trajectory) -> PGD:
    labels_B = torch.tensor([0, 1, 2, 3])
    return PGD(model, trajectory, IMAGES, labels_B, (labels_B + 1) % 5)


@pytest.mark.parametrize("stops", [[1] * 12, [5, 0, 5, 1, 1], [10, 2], [12]])
def test_a_run_in_pieces_equals_one_in_one_go(stops: list[int], tiny_model: Models) -> None:
    with frozen(tiny_model(2)) as model:
        pgd = _s3ta_attack(model, _trajectory(12))
        whole, pieces = pgd.run(pgd.begin(NOISE)), pgd.begin(NOISE)
        assert not torch.equal(whole, pieces)
        for steps in stops:
            pgd.run(pieces, steps)
    assert torch.equal(whole, pieces)


def test_an_attack_runs_in_float64_where_the_model_does(tiny_model: Models) -> None:
    labels_B = torch.tensor([0, 1, 2, 3])
    with frozen(tiny_model(2).double()) as model:
        pgd = PGD(model, _trajectory(8), IMAGES.double(), labels_B, None)
        attacked = pgd.run(pgd.begin(NOISE.double()))
    assert attacked.dtype == torch.float64
    assert (attacked - IMAGES).abs().max() <= EPSILON + 1e-15


def test_the_attack_lowers_its_loss_from_the_start(tiny_model: Models) -> None:
    with frozen(tiny_model(2)) as model:
        pgd = _s3ta_attack(model, _trajectory(20))
        ends = pgd.begin(NOISE), pgd.run(pgd.begin(NOISE))
        before_B, after_B = (
            attack_loss(Loss.cross_entropy, model(x), pgd.labels_B, pgd.targets_B) for x in ends
        )
    assert (after_B < before_B).all()


def test_frozen_gives_back_modes_and_gradients_and_moves_no_number(tiny_model: Models) -> None:
    model = tiny_model(2).train()
    model.initial_cell.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with frozen(model) as f:
        assert not any(m.training for m in f.modules())
        assert not any(p.requires_grad for p in f.parameters())
        pgd = _s3ta_attack(f, _trajectory(3))
        pgd.run(pgd.begin(NOISE))
    assert all(m.training for m in model.modules())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["initial_cell"]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_frozen_gives_back_after_an_error_and_keeps_a_model_in_test_mode(
    tiny_model: Models,
) -> None:
    model = tiny_model(2).eval()
    with pytest.raises(RuntimeError, match="stop"), frozen(model):
        raise RuntimeError("stop")
    assert not model.training
    assert all(p.requires_grad for p in model.parameters())
