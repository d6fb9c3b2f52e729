"""The ball, and the nearest point of a plane in the maximum norm, against a search by bisection."""

import pytest
import torch
from torch import Tensor

from s3ta.threat import LinfBall, nearest_on_plane


def _by_bisection(point_D: Tensor, normal_D: Tensor, offset: float) -> Tensor:
    """With the least t such that the box of half-width t around it, in [0, 1]^D, meets w x = b."""

    def best(t: float) -> tuple[Tensor, bool]:
        rising = normal_D @ point_D < offset
        towards_D = normal_D.sign() * (1 if rising else -1)
        moved_D = (point_D + t * towards_D).clamp(0, 1)
        value = float(normal_D @ moved_D)
        return moved_D, value >= offset if rising else value <= offset

    low, high = 0.0, 1.0
    if not best(1.0)[1]:
        return best(1.0)[0]
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if best(middle)[1] else (middle, high)
    return best(high)[0]


@pytest.mark.parametrize("size", [1, 2, 7, 50])
@pytest.mark.parametrize("offset", [-30.0, -0.5, 0.0, 0.1, 2.0, 30.0])
def test_the_nearest_point_of_a_plane_is_the_one_that_bisection_finds(
    size: int, offset: float
) -> None:
    draw = torch.Generator().manual_seed(size)
    points_BD = torch.rand(20, size, generator=draw, dtype=torch.float64)
    normals_BD = torch.randn(20, size, generator=draw, dtype=torch.float64)
    points_BD[0], normals_BD[1, : size // 2] = 1.0, 0.0
    offsets_B = torch.full((20,), offset, dtype=torch.float64)
    found_BD = nearest_on_plane(points_BD, normals_BD, offsets_B)
    for point_D, normal_D, found_D in zip(points_BD, normals_BD, found_BD, strict=True):
        expected_D = _by_bisection(point_D, normal_D, offset)
        torch.testing.assert_close(found_D, expected_D, rtol=0, atol=1e-9)


def test_a_case_by_hand() -> None:
    """From (0.5, 0.9) to 2 x + y = 2.2: both rise by 0.1, y is then at its end; no third of 0.3."""
    point, normal = torch.tensor([[0.5, 0.9]]), torch.tensor([[2.0, 1.0]])
    found = nearest_on_plane(point, normal, torch.tensor([2.2]))
    assert found[0].tolist() == pytest.approx([0.6, 1.0])
    further = nearest_on_plane(point, normal, torch.tensor([2.4]))
    assert further[0].tolist() == pytest.approx([0.7, 1.0])
    back = nearest_on_plane(point, normal, torch.tensor([1.6]))
    assert back[0].tolist() == pytest.approx([0.4, 0.8])


def test_a_plane_that_misses_the_cube_gives_its_nearest_corner_and_no_normal_no_move() -> None:
    point = torch.tensor([[0.5, 0.2, 0.7]])
    far = nearest_on_plane(point, torch.tensor([[1.0, -1.0, 0.0]]), torch.tensor([9.0]))
    assert far.tolist() == [[1.0, 0.0, pytest.approx(0.7)]]
    none = nearest_on_plane(point, torch.zeros(1, 3), torch.tensor([1.0]))
    assert none.tolist() == point.tolist()


def test_a_ball_holds_its_edge_and_nothing_beyond() -> None:
    images = torch.tensor([0.5, 0.02]).view(2, 1, 1, 1)
    ball = LinfBall.around(images, 0.125)
    assert ball.holds(ball.high).tolist() == [True, True]
    assert ball.holds(ball.low).tolist() == [True, True]
    assert ball.holds(ball.high + 1e-6).tolist() == [False, False]
    assert ball.holds(torch.tensor([0.5, -1e-6]).view(2, 1, 1, 1)).tolist() == [True, False]
