"""The plane around an image, on a model whose losses are known in closed form."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from s3ta.engine import Engine, make_engine
from s3ta.landscape import linearity, offsets, random_signs, surface
from s3ta.settings import EngineSettings
from s3ta.threat import LinfBall

SHAPE = (1, 4, 4)
TILE = 8


class Linear(nn.Module):
    """Two classes: z_0 = w x, z_1 = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.linspace(-1, 1, 16))

    def forward(self, images: Tensor) -> Tensor:
        first_B = (images.flatten(1) * self.get_buffer("weights")).sum(dim=1)
        return torch.stack([first_B, torch.zeros_like(first_B)], dim=1)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine(Linear(), EngineSettings(), SHAPE, TILE)


def _plane(engine: Engine, label: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image, worst = torch.full(SHAPE, 0.5), -torch.linspace(-1, 1, 16).sign().view(SHAPE)
    signs, at_P = random_signs(3, 7, SHAPE), offsets(0.1, 5, 2.0)
    found = surface(engine, image, label, worst, signs, at_P, TILE)
    w = torch.linspace(-1, 1, 16, dtype=torch.float64)
    start, along_u, along_v = (
        float((w * t.double().flatten()).sum()) for t in (image, worst, signs)
    )
    expected_PP = start + at_P[None, :] * along_u + at_P[:, None] * along_v
    return found.margin_PP, found.cross_entropy_PP, expected_PP


def test_a_linear_models_margin_is_the_plane_itself_with_u_along_the_columns(
    engine: Engine,
) -> None:
    margin_PP, cross_entropy_PP, expected_PP = _plane(engine, label=0)
    assert margin_PP == pytest.approx(expected_PP, abs=1e-5)
    assert margin_PP[2, 4] < margin_PP[2, 0]  # the worst direction lowers the margin
    # -log of the label's probability, 1 / (1 + exp(-margin)).
    assert cross_entropy_PP == pytest.approx(np.log1p(np.exp(-expected_PP)), abs=1e-5)


def test_the_other_label_turns_the_margin_round(engine: Engine) -> None:
    margin_PP, _, expected_PP = _plane(engine, label=1)
    assert margin_PP == pytest.approx(-expected_PP, abs=1e-5)


def test_points_of_the_diamond_lie_in_the_ball_and_its_corners_on_its_edge() -> None:
    image, epsilon = torch.full(SHAPE, 0.5), 0.1
    worst, signs = random_signs(3, 1, SHAPE), random_signs(3, 2, SHAPE)
    ball = LinfBall.around(image[None], epsilon * (1 + 1e-6))
    for u, v in ((0.1, 0.0), (0.0, -0.1), (0.04, 0.06), (-0.05, 0.05)):
        assert bool(ball.holds((image + u * worst + v * signs)[None]))
    assert not bool(ball.holds((image + 0.06 * worst + 0.06 * signs)[None]))


def test_random_signs_belong_to_the_image_and_are_signs() -> None:
    signs = random_signs(3, 7, (1, 40, 40))
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.1
    assert torch.equal(signs, random_signs(3, 7, (1, 40, 40)))
    assert not torch.equal(signs, random_signs(3, 8, (1, 40, 40)))


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (lambda u, v: 3 * u - v, 1.0),
        (lambda u, v: 0 * u, 1.0),
        (lambda u, v: u * v, 0.0),  # no plane explains a saddle
    ],
)
def test_linearity_is_the_share_that_a_plane_explains(
    of: Callable[[np.ndarray, np.ndarray], np.ndarray], expected: float
) -> None:
    at_P = offsets(1.0, 21, 2.0)
    v_PP, u_PP = np.meshgrid(at_P, at_P, indexing="ij")
    assert linearity(of(u_PP, v_PP), at_P, 1.0) == pytest.approx(expected, abs=1e-9)


def test_linearity_looks_at_the_diamond_only() -> None:
    at_P = offsets(1.0, 21, 2.0)
    v_PP, u_PP = np.meshgrid(at_P, at_P, indexing="ij")
    wild = np.where(np.abs(u_PP) + np.abs(v_PP) <= 1 + 1e-9, u_PP, 100 * u_PP * v_PP)
    assert linearity(wild, at_P, 1.0) == pytest.approx(1.0)
