"""Square attack: its schedule, its proposals, and that what it accepts is never worse."""

import numpy as np
import pytest
import torch

from s3ta.attacks import Look
from s3ta.settings import Goal, Loss, Rule
from s3ta.square import Draws, Square, share, side
from s3ta.steps import Around
from s3ta.threat import LinfBall
from s3ta.trajectory import Trajectory

EPSILON = 0.125
SHAPE = (3, 8, 8)
BUDGET = 200
QUERIES = (0, 10, 11, 50, 51, 200, 201, 501, 1001, 2001, 4001, 6001, 8000, 8001, 9999)


@pytest.mark.parametrize(
    ("query", "halvings"),
    [*zip(QUERIES, (0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 8, 9, 9), strict=True)],
)
def test_the_share_is_halved_where_its_authors_halve_it(query: int, halvings: int) -> None:
    assert share(query, 10_000) == 0.8 / 2**halvings
    assert share(query // 2, 5_000) == share(query // 2 * 2, 10_000)


def test_sides_follow_from_the_share_of_the_area() -> None:
    assert side(0, 10_000, 224, 224) == 200  # the root of 0.8 * 224 * 224 is 200.35
    assert side(9_000, 10_000, 224, 224) == 9
    assert side(9_000, 10_000, 8, 8) == 1
    assert side(0, 100, 100, 4) == 4


def test_draws_are_uniform_over_places_and_signs_and_belong_to_an_image() -> None:
    draws = Draws(seed=3, restart=0)
    found = [draws.square(image_id, 5, 3, (4, 3)) for image_id in range(6000)]
    places = np.bincount([row * 3 + column for row, column, _ in found], minlength=12)
    # 500 each, with a standard deviation of 21.4
    assert (abs(places - 500) < 4.5 * 21.4).all()
    assert abs(np.mean([signs for *_, signs in found])) < 4.5 / np.sqrt(18_000)
    assert {s for *_, signs in found for s in signs.tolist()} == {-1.0, 1.0}
    row, column, signs = draws.square(7, 5, 3, (4, 3))
    for other in (Draws(4, 0), Draws(3, 1)):
        assert other.square(7, 5, 3, (400, 300))[:2] != draws.square(7, 5, 3, (400, 300))[:2]
    assert (row, column, signs.tolist()) == (*found[7][:2], found[7][2].tolist())
    assert draws.stripes(7, 3, 8).shape == (3, 1, 8)


def _square(images: torch.Tensor) -> tuple[Square, Around]:
    trajectory = Trajectory(
        goal=Goal.untargeted,
        loss=Loss.margin,
        epsilon=EPSILON,
        step_size=0,
        steps=BUDGET,
        readings=(BUDGET,),
        rule=Rule.square,
    )
    labels_B = torch.zeros(len(images), dtype=torch.int64)
    ids = np.arange(len(images)) + 40
    return Square(trajectory, images, seed=3), Around(
        images, LinfBall.around(images, EPSILON), ids, labels_B
    )


def test_it_starts_at_stripes_and_proposes_one_square_on_the_best_point() -> None:
    images = torch.full((5, *SHAPE), 0.5)
    rule, around = _square(images)
    rule.begin(torch.arange(5))
    points = rule.starts(around)
    assert ((points - images).abs() == EPSILON).all()
    assert (points == points[:, :, :1, :]).all()
    assert (points[0] != points[1]).any()
    losses = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0])
    draw = torch.Generator().manual_seed(0)
    for step in range(60):
        best, best_loss = rule.state["best"].clone(), rule.state["best_loss"].clone()
        seen = Look(torch.zeros(5, 2), losses, None)
        steps_B = torch.full((5,), step, dtype=torch.int32)
        rule.observe(points, seen, steps_B, around)
        better = losses < best_loss
        assert torch.equal(rule.state["best_loss"], torch.where(better, losses, best_loss))
        assert torch.equal(rule.state["best"][~better], best[~better])
        assert torch.equal(rule.state["best"][better], points[better])
        rule.move(points, seen, steps_B, around)
        size = side(step, BUDGET, 8, 8)
        changed = points != rule.state["best"]
        assert ((points - images).abs() == EPSILON).all()
        for slot in range(5):
            rows, columns = (changed[slot].any(0).any(d).nonzero() for d in (1, 0))
            if len(rows):
                assert rows.max() - rows.min() < size
                assert columns.max() - columns.min() < size
        losses = torch.randn(5, generator=draw) * 4


def test_a_square_covers_its_area_wherever_the_best_point_is_of_the_other_sign() -> None:
    """On a plain image at -epsilon everywhere a channel of sign +1 changes exactly its square."""
    images = torch.full((1, *SHAPE), 0.5)
    rule, around = _square(images)
    rule.begin(torch.arange(1))
    rule.state["best"].fill_(0.5 - EPSILON)
    points = images.clone()
    for step in (0, 5, 50):
        steps_B = torch.tensor([step], dtype=torch.int32)
        rule.move(points, Look(torch.zeros(1, 2), torch.zeros(1), None), steps_B, around)
        size = side(step, BUDGET, 8, 8)
        row, column, signs = rule.draws.square(40, step + 1, 3, (9 - size, 9 - size))
        expected = torch.full(SHAPE, 0.5 - EPSILON)
        for channel in np.flatnonzero(signs > 0):
            expected[channel, row : row + size, column : column + size] = 0.5 + EPSILON
        assert torch.equal(points[0], expected)
