"""Projected gradient descent where the answer is known."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from s3ta.attacks import NEVER, PGD, AttackState, Reading, frozen
from s3ta.model import S3TA
from s3ta.settings import Goal, Loss
from s3ta.threat import LinfBall
from s3ta.trajectory import Trajectory

Models = Callable[..., S3TA]
EPSILON = 16 / 255


def _trajectory(steps: int, *readings: int, loss: Loss = Loss.cross_entropy) -> Trajectory:
    return Trajectory(
        goal=Goal.random_target,
        loss=loss,
        epsilon=EPSILON,
        step_size=EPSILON / 16,
        steps=steps,
        readings=readings,
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


@pytest.mark.parametrize("loss", list(Loss))
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
    state = pgd.run(pgd.begin(start))
    assert torch.equal(state.attacked, _corner(direction))
    assert not torch.equal(state.attacked, _corner(-direction))


def test_pgd_never_leaves_ball_or_image_range_and_moves_by_one_step_size() -> None:
    pgd = PGD(_linear, replace(_trajectory(20), step_size=EPSILON / 3), IMAGES, ZEROS, None)
    state = pgd.begin(NOISE)
    for step in range(1, 21):
        before = state.attacked
        state = pgd.run(state, until=step)
        assert state.step == step
        assert state.attacked.min() >= 0
        assert state.attacked.max() <= 1
        assert (state.attacked - IMAGES).abs().max() <= EPSILON + 1e-7
        assert (state.attacked - before).abs().max() <= EPSILON / 3 + 1e-7
    assert torch.equal(state.attacked, _corner(1.0))


def test_the_first_step_has_the_step_size_in_the_gradients_sign() -> None:
    images = IMAGES.double() * 0.5 + 0.25
    pgd = PGD(_linear, _trajectory(1), images, ZEROS, None)
    moved = pgd.run(pgd.begin(None)).attacked - images
    expected = EPSILON / 16 * WEIGHTS.sign().double().view(1, 1, 5, 6).expand_as(moved)
    torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("start", [None, NOISE])
def test_zero_steps_return_the_start_and_read_it(start: Tensor | None) -> None:
    pgd = PGD(_linear, _trajectory(0, 0), IMAGES, ZEROS, None)
    state = pgd.run(pgd.begin(start))
    assert torch.equal(state.attacked, pgd.begin(start).attacked)
    (reading,) = state.readings
    assert reading.step == 0
    assert torch.equal(reading.predictions_B, _linear(state.attacked).argmax(1))


def test_the_noise_start_is_uniform_in_the_ball_and_clipped_to_the_image_range() -> None:
    start = PGD(_linear, _trajectory(1), IMAGES, ZEROS, None).begin(NOISE).attacked
    expected = (IMAGES + (2 * NOISE - 1) * EPSILON).clamp(0, 1)
    torch.testing.assert_close(start, expected, rtol=0, atol=1e-7)
    assert (start[0, 0, :2] == IMAGES[0, 0, :2]).any()
    ball = LinfBall.around(IMAGES, EPSILON)
    assert torch.equal(ball.noise_start(IMAGES, EPSILON, torch.zeros_like(NOISE)), ball.low)


def test_without_noise_the_attack_starts_at_a_copy_of_the_image() -> None:
    images = IMAGES.clone()
    pgd = PGD(_linear, _trajectory(3), images, ZEROS, None)
    assert torch.equal(pgd.begin(None).attacked, images)
    pgd.run(pgd.begin(None)).attacked.zero_()
    pgd.begin(None).attacked.zero_()
    assert torch.equal(images, IMAGES)


def test_a_zero_gradient_leaves_the_start() -> None:
    pgd = PGD(lambda x: x.flatten(1)[:, :3] * 0, _trajectory(5), IMAGES, ZEROS, None)
    start = pgd.begin(NOISE)
    expected = start.attacked.clone()
    assert torch.equal(pgd.run(start).attacked, expected)


def test_an_images_gradient_is_its_own_and_not_a_share_of_the_batch() -> None:
    """The smallest gradient that float32 holds still moves each of four images."""
    smallest = 1.5e-45
    pgd = PGD(
        lambda x: _linear(x) * smallest, _trajectory(1, loss=Loss.margin), IMAGES, ZEROS, None
    )
    (gradient,) = torch.autograd.grad(_linear(x := IMAGES.clone().requires_grad_()).sum(), x)
    strong = (gradient.abs() * smallest > 0) & (IMAGES > 0.1) & (IMAGES < 0.9)
    assert strong.any()
    moved = pgd.run(pgd.begin(None)).attacked - IMAGES
    expected = EPSILON / 16 * gradient.sign()
    torch.testing.assert_close(moved[strong], expected[strong])


def test_margin_attack_stands_still_below_its_floor() -> None:
    pgd = PGD(lambda x: _linear(x) * 1e4, _trajectory(4, loss=Loss.margin), IMAGES, ZEROS, None)
    start = _corner(1.0)
    assert (_linear(start)[:, 1] * 1e4 > 30).any()
    state = pgd.run(AttackState(IMAGES.clone(), ZEROS.clone(), ZEROS.clone()))
    wrong_B = _linear(IMAGES)[:, 1] * 1e4 > 30
    assert torch.equal(state.attacked[wrong_B], IMAGES[wrong_B])
    assert not torch.equal(state.attacked[~wrong_B], IMAGES[~wrong_B])


# One pixel that moves 1/64 a step: the classes change between the third and the fourth place, and
# between the sixth and the seventh.


def _one_pixel(images: Tensor) -> Tensor:
    """Class 0 up to 0.5 + 2.5/64, class 1 up to 0.5 + 5.5/64, then class 2."""
    x_B = (images.flatten() - 0.5) * 64
    one_B = x_B - 2.5
    return torch.stack([0 * x_B, one_B, one_B + 8 * (x_B - 5.5)], dim=1) / 16


def _one_pixel_readings(x: float, label: int, target: int | None, *readings: int) -> list[Reading]:
    trajectory = replace(_trajectory(max(readings), *readings), epsilon=0.25, step_size=1 / 64)
    targets = None if target is None else torch.tensor([target])
    pgd = PGD(_one_pixel, trajectory, torch.full((1, 1, 1, 1), x), torch.tensor([label]), targets)
    return pgd.run(pgd.begin(None)).readings


@pytest.mark.parametrize(
    ("x", "label", "first_error", "first_target"),
    [
        (0.5, 0, 3, 6),
        (0.5 + 3 / 64, 0, 0, 3),
        (0.5 + 6 / 64, 0, 0, 0),
        (0.5 + 6 / 64, 2, NEVER, 0),
        (0.5 - 4 / 64, 0, 7, 10),
        (0.5 - 5 / 64, 0, 8, NEVER),  # one step short of the target
        (0.0625, 0, NEVER, NEVER),  # out of reach
        (0.5, 1, 0, 6),  # wrong at the start, right from step 3 to 5
    ],
)
def test_first_steps_are_those_of_the_known_crossings(
    x: float, label: int, first_error: int, first_target: int
) -> None:
    (reading,) = _one_pixel_readings(x, label, 2, 10)
    assert reading.first_error_steps_B.tolist() == [first_error]
    assert reading.first_target_steps_B.tolist() == [first_target]


def test_an_untargeted_attack_has_no_first_target_step() -> None:
    (reading,) = _one_pixel_readings(0.5, 0, None, 10)
    assert reading.first_error_steps_B.tolist() == [3]
    assert reading.first_target_steps_B.tolist() == [NEVER]


def test_each_reading_tells_its_own_step() -> None:
    readings = _one_pixel_readings(0.5, 0, 2, 1, 2, 3, 5, 6, 9)
    assert [r.step for r in readings] == [1, 2, 3, 5, 6, 9]
    assert [r.predictions_B.item() for r in readings] == [0, 0, 1, 1, 2, 2]
    assert [r.linf_B.item() * 64 for r in readings] == [1, 2, 3, 5, 6, 9]
    assert [r.first_error_steps_B.item() for r in readings] == [-1, -1, 3, 3, 3, 3]
    assert [r.first_target_steps_B.item() for r in readings] == [-1, -1, -1, -1, 6, 6]
    # z_0 - max(z_1, z_2) = (2.5 - n) / 16 up to the sixth place.
    assert [r.margins_B.item() * 16 for r in readings[:4]] == [1.5, 0.5, -0.5, -2.5]
    losses_B = torch.stack([r.losses_B for r in readings]).flatten()
    assert (losses_B.diff() < 0).all()  # -log p(target) falls


# A small S3TA: nothing but the step counts.


def _s3ta_attack(model: nn.Module, trajectory: Trajectory) -> PGD:
    labels_B = torch.tensor([0, 1, 2, 3])
    return PGD(model, trajectory, IMAGES, labels_B, (labels_B + 1) % 5)


def _same(a: Reading, b: Reading) -> bool:
    return a.step == b.step and all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in vars(a) if name != "step"
    )


@pytest.mark.parametrize("loss", list(Loss))
def test_a_reading_of_a_longer_run_equals_a_run_of_its_own(loss: Loss, tiny_model: Models) -> None:
    with frozen(tiny_model(2)) as model:
        pgd = _s3ta_attack(model, _trajectory(30, 10, 30, loss=loss))
        long = pgd.run(pgd.begin(NOISE))
        pgd = _s3ta_attack(model, _trajectory(10, 10, loss=loss))
        short = pgd.run(pgd.begin(NOISE))
    assert [r.step for r in long.readings] == [10, 30]
    assert _same(long.readings[0], short.readings[0])
    assert not torch.equal(long.attacked, short.attacked)


@pytest.mark.parametrize("stops", [range(1, 13), (5, 5, 10, 11), (10,), (12,)])
def test_a_run_in_pieces_equals_one_in_one_go(stops: range, tiny_model: Models) -> None:
    with frozen(tiny_model(2)) as model:
        pgd = _s3ta_attack(model, _trajectory(12, 5, 10, 12))
        whole = pgd.run(pgd.begin(NOISE))
        pieces = pgd.begin(NOISE)
        for stop in stops:
            pgd.run(pieces, until=stop)
            assert pieces.step == stop
        if pieces.step < 12:
            pgd.run(pieces)
    assert torch.equal(whole.attacked, pieces.attacked)
    assert len(whole.readings) == len(pieces.readings) == 3
    assert all(map(_same, whole.readings, pieces.readings))


def test_an_attack_runs_in_float64_where_the_model_does(tiny_model: Models) -> None:
    labels_B = torch.tensor([0, 1, 2, 3])
    with frozen(tiny_model(2).double()) as model:
        pgd = PGD(model, _trajectory(8, 8), IMAGES.double(), labels_B, None)
        state = pgd.run(pgd.begin(NOISE.double()))
    assert state.attacked.dtype == torch.float64
    assert state.readings[0].losses_B.dtype == torch.float64
    assert (state.attacked - IMAGES).abs().max() <= EPSILON + 1e-15


def test_the_attack_lowers_its_loss_from_the_start(tiny_model: Models) -> None:
    with frozen(tiny_model(2)) as model:
        pgd = _s3ta_attack(model, _trajectory(20, 0, 20))
        before, after = pgd.run(pgd.begin(NOISE)).readings
    assert (after.losses_B < before.losses_B).all()


def test_frozen_gives_back_modes_and_gradients_and_moves_no_number(tiny_model: Models) -> None:
    model = tiny_model(2).train()
    model.initial_cell.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with frozen(model) as f:
        assert not any(m.training for m in f.modules())
        assert not any(p.requires_grad for p in f.parameters())
        pgd = _s3ta_attack(f, _trajectory(3, 3))
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


def test_a_finished_attack_run_again_takes_no_second_reading() -> None:
    images = torch.full((1, 1, 2, 2), 0.5)
    trajectory = Trajectory(
        goal=Goal.untargeted,
        loss=Loss.cross_entropy,
        epsilon=0.1,
        step_size=0.05,
        steps=3,
        readings=(1, 3),
    )
    pgd = PGD(torch.nn.Flatten(), trajectory, images, torch.tensor([0]), None)
    state = pgd.run(pgd.begin(None))
    pgd.run(state)
    assert [reading.step for reading in state.readings] == [1, 3]
