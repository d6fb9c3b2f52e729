"""Step rules, against arithmetic by hand."""

import pytest
import torch
from torch import Tensor

from s3ta.apgd import APGD, windows
from s3ta.attacks import Look
from s3ta.settings import Goal, Loss, Rule
from s3ta.steps import Adam, Around, Sign
from s3ta.steps import Rule as StepRule
from s3ta.threat import LinfBall
from s3ta.trajectory import Trajectory

EPSILON = 0.25
LABELS = torch.tensor([0])


def _trajectory(rule: Rule, steps: int = 10, **settings: float) -> Trajectory:
    kept = {"step_size": 0.01, **settings}
    return Trajectory(
        goal=Goal.untargeted,
        loss=Loss.margin,
        epsilon=EPSILON,
        steps=steps,
        readings=(steps,),
        rule=rule,
        **kept,  # type: ignore[arg-type]
    )


def _around(images: Tensor) -> Around:
    ids = torch.arange(len(images)).numpy()
    labels_B = torch.zeros(len(images), dtype=torch.int64)
    return Around(images, LinfBall.around(images, EPSILON), ids, labels_B)


def _images(*values: float) -> Tensor:
    """One image of so many pixels."""
    return torch.tensor(values).view(1, 1, 1, -1)


def _take(rule: StepRule, images: Tensor, looks: list[tuple[float, Tensor]]) -> list[list[float]]:
    """Where an attack goes that sees these losses and gradients in turn."""
    points, around, found = images.clone(), _around(images), []
    rule.begin(torch.arange(len(images)))
    for step, (loss, gradient) in enumerate(looks):
        seen = Look(torch.zeros(1, 2), torch.tensor([loss]), gradient)
        steps_B = torch.tensor([step], dtype=torch.int32)
        rule.observe(points, seen, steps_B, around)
        rule.move(points, seen, steps_B, around)
        found.append(points.flatten().tolist())
    return found


def test_momentum_adds_up_directions_of_length_one() -> None:
    """g is mu g' + g / |g|_1: a small opposite gradient counts as much as a large one."""
    rule = Sign(_trajectory(Rule.sign, momentum=0.5), _images(0.5, 0.5))
    went = _take(
        rule,
        _images(0.5, 0.5),
        [
            (0.0, _images(3.0, -1.0)),  # (0.75, -0.25): moves (-, +)
            (0.0, _images(-0.1, -0.3)),  # (0.375, -0.125) + (-0.25, -0.75) = (0.125, -0.875)
            (0.0, _images(-1.0, 1.0)),  # (0.0625, -0.4375) + (-0.5, 0.5) = (-0.4375, 0.0625)
        ],
    )
    assert went[0] == pytest.approx([0.49, 0.51])
    assert went[1] == pytest.approx([0.48, 0.52])
    assert went[2] == pytest.approx([0.49, 0.51])
    assert rule.state["velocity"].flatten().tolist() == pytest.approx([-0.4375, 0.0625])


def test_a_zero_gradient_leaves_momentum_a_number() -> None:
    rule = Sign(_trajectory(Rule.sign, momentum=1.0), _images(0.5, 0.5))
    assert _take(rule, _images(0.5, 0.5), [(0.0, _images(0.0, 0.0))]) == [[0.5, 0.5]]


def test_adam_is_torchs_adam_inside_the_ball() -> None:
    start = torch.tensor([0.5, 0.4, 0.6])
    gradients = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1.0, 1e-3, 100.0]
    )
    free = start.clone().requires_grad_()
    reference = torch.optim.Adam([free], lr=0.01)
    rule = Adam(_trajectory(Rule.adam, step_size=0.01), _images(0.0, 0.0, 0.0))
    looks = [(0.0, gradient.view(1, 1, 1, -1)) for gradient in gradients]
    for gradient, went in zip(gradients, _take(rule, _images(*start.tolist()), looks), strict=True):
        free.grad = gradient
        reference.step()
        assert went == pytest.approx(free.tolist(), abs=1e-6)
    assert (free - start).abs().max() < EPSILON  # so that the ball did not matter


def test_adams_first_step_is_its_rate_against_the_gradient_and_stops_at_the_ball() -> None:
    rule = Adam(_trajectory(Rule.adam, step_size=0.1), _images(0.0, 0.0, 0.0))
    went = _take(rule, _images(0.5, 0.5, 0.05), [(0.0, _images(1e-3, -50.0, 2.0))] * 4)
    assert went[0] == pytest.approx([0.4, 0.6, 0.0], abs=1e-5)
    assert went[3] == pytest.approx([0.25, 0.75, 0.0])


# Auto-PGD: (Croce and Hein 2020), on losses and gradients that are made up.


def test_the_checkpoints_of_apgd_are_the_papers() -> None:
    """p_0 = 0, p_1 = 0.22, p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06), of 100 steps."""
    assert list(windows(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(windows(100).values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert windows(1) == {}
    assert list(windows(5)) == [1, 2, 3, 4]


def test_apgd_takes_the_steps_computed_by_hand() -> None:
    """One pixel, from 0.5 within +-0.25, at first by 2 epsilon = 0.5 against the gradient."""
    rule = APGD(_trajectory(Rule.apgd, steps=100), _images(0.0))
    up, down = _images(-1.0), _images(1.0)
    looks = [(1.0, up), (0.9, down), (0.8, up), (0.7, up)]
    went = [x for (x,) in _take(rule, _images(0.5), looks)]
    # 0.5 + 0.5 stops at 0.75. Then 0.75 - 0.5 stops at 0.25, of that 3/4, and 1/4 of the last way:
    # 0.75 - 0.375 + 0.0625 = 0.4375. Then up to 0.75: 0.4375 + 0.234375 - 0.078125 = 0.59375.
    # Then again: 0.59375 + 0.1171875 + 0.0390625 = 0.75.
    assert went == pytest.approx([0.75, 0.4375, 0.59375, 0.75])
    assert rule.state["size"].tolist() == [0.5]


@pytest.mark.parametrize(
    ("losses", "halved"),
    [
        ([9.0, 8.0, 7.0, 6.0, 5.0], False),  # every step of four was better
        ([9.0, 8.0, 7.0, 6.0, 6.5], True),  # three of four: not more than 75 %
        ([9.0, 9.5, 8.0, 9.0, 8.5], True),
    ],
)
def test_apgd_halves_its_step_after_a_restless_window_and_goes_back_to_its_best(
    losses: list[float], halved: bool
) -> None:
    rule = APGD(_trajectory(Rule.apgd, steps=20), _images(0.0))
    assert next(iter(windows(20).items())) == (4, 4)
    tiny = [_images(g) for g in (-1.0, 1.0, -1.0, 1.0, -1.0)]
    went = [x for (x,) in _take(rule, _images(0.5), list(zip(losses, tiny, strict=True)))]
    assert rule.state["size"].tolist() == [0.25 if halved else 0.5]
    at = [0.5, *went[:-1]]  # where each loss was seen
    best = at[losses.index(min(losses))]
    assert rule.state["best"].item() == pytest.approx(best)
    before = at[4]
    here, gradient = (best, tiny[losses.index(min(losses))]) if halved else (before, tiny[4])
    size = 0.25 if halved else 0.5
    step = min(max(here - size * gradient.item(), 0.25), 0.75) - here
    expected = here + 0.75 * step + 0.25 * (here - at[3])
    assert went[4] == pytest.approx(min(max(expected, 0.25), 0.75))


def test_apgd_halves_where_its_best_stood_still_since_a_check_that_did_not_halve() -> None:
    """All steps rise, but on worse points: a restart at the best is due all the same."""
    rule = APGD(_trajectory(Rule.apgd, steps=20), _images(0.0))
    assert list(windows(20)) == [4, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]
    losses = [5.0, 4.0, 3.0, 2.0, 1.0, 4.0, 3.0, 2.5]
    _take(rule, _images(0.5), [(loss, _images(1.0)) for loss in losses[:5]])
    assert rule.state["size"].tolist() == [0.5]
    rule.state["rises"][:] = 3  # as if all three steps of the window had been better
    around, points = _around(_images(0.5)), _images(0.5)
    steps_B = torch.tensor([7], dtype=torch.int32)
    rule.move(points, Look(torch.zeros(1, 2), torch.zeros(1), _images(1.0)), steps_B, around)
    assert rule.state["size"].tolist() == [0.25]


def test_apgd_never_leaves_the_ball() -> None:
    images = torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    rule, around = APGD(_trajectory(Rule.apgd, steps=30), images), _around(images)
    points, draw = images.clone(), torch.Generator().manual_seed(2)
    rule.begin(torch.arange(4))
    for step in range(30):
        seen = Look(
            torch.zeros(4, 2),
            torch.rand(4, generator=draw),
            torch.randn(4, 1, 3, 3, generator=draw),
        )
        steps_B = torch.full((4,), step, dtype=torch.int32)
        rule.observe(points, seen, steps_B, around)
        rule.move(points, seen, steps_B, around)
        assert around.ball.holds(points).all()
    assert around.ball.holds(rule.result(points, around)).all()
