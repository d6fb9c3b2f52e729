"""The probe of gradients: exact on models whose gradients are known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from s3ta.batch import Batch, Conditions
from s3ta.draws import Key, Purpose
from s3ta.engine import make_engine
from s3ta.gradient_probe import cosine, expected_cosine, probe_gradients
from s3ta.settings import EngineSettings
from s3ta.tally import Rows

SHAPE = (1, 4, 4)
CONDITIONS = Conditions(classes=3, seed=7, tile=8)
EPSILON = 0.0625


class Parabola(nn.Module):
    """z_0 - z_1 = scale * (a |x|^2 + w x), and no other class comes near."""

    def __init__(self, curvature: float = 0.0, scale: float = 1.0, slope: float = 1.0) -> None:
        super().__init__()
        self.curvature, self.scale = curvature, scale
        self.register_buffer("w", slope * torch.linspace(0.5, 1.0, 16))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        inner_B = (flat * self.get_buffer("w")).sum(1)
        margin_B = self.scale * (self.curvature * flat.square().sum(1) + inner_B)
        far_B = torch.full_like(margin_B, -1e4)
        return torch.stack([margin_B, 0 * margin_B, far_B], dim=1)


class Steps(nn.Module):
    """The same, of an input with few levels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Parabola()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x * 7).round() / 7)  # type: ignore[no-any-return]


def batch(n: int) -> Batch:
    drawn = Key(4, Purpose.PROBE).uniform(range(n), SHAPE)
    return Batch(
        images_BCHW=(0.25 + drawn / 2).astype(np.float32),
        labels_B=np.zeros(n, np.int64),
        image_ids_B=np.arange(n),
    )


def probed(model: nn.Module, n: int = 5, pairs: int = 64, tile: int = 8) -> Rows:
    engine = make_engine(model, EngineSettings(), SHAPE, tile)
    conditions = Conditions(classes=3, seed=7, tile=tile)
    return probe_gradients(engine, batch(n), conditions, epsilon=EPSILON, pairs=pairs, delta=0.01)


def starts(n: int) -> np.ndarray:
    """Where the attacks begin, by hand."""
    uniform = Key(7, Purpose.EVAL_NOISE).uniform(range(n), SHAPE)
    return np.clip(batch(n).images_BCHW + (2 * uniform - 1) * EPSILON, 0, 1)


def test_of_n_pairs_in_d_dimensions_a_cosine_is_expected() -> None:
    assert expected_cosine(2048, 150_528) == pytest.approx(0.1159, abs=1e-4)
    assert expected_cosine(1, 1) == 1.0
    assert expected_cosine(5, 12) == math.sqrt(5 / 16)


def test_rho_of_an_honest_model_is_the_law_s_one() -> None:
    rho_N = probed(Parabola(), n=40, pairs=24)["rho"]
    # One image's cosine has a standard deviation of about 1 / sqrt(n + D) = 0.16, of 0.78.
    assert abs(rho_N.mean() - 1) < 4.5 * 0.2 / math.sqrt(40)
    assert rho_N.std() > 0.02


def test_rho_is_by_hand_the_cosine_over_the_expected_one() -> None:
    pairs, n = 3, 2
    rho_N = probed(Parabola(), n=n, pairs=pairs)["rho"]
    w = np.linspace(0.5, 1, 16)
    for image in range(n):
        words = Key(7, Purpose.SPSA).bits(image, 4 * 2)  # 32 x 16 signs are 512 bits
        bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")
        signs_PD = bits.reshape(32, 16)[:pairs] * 2.0 - 1
        estimate = (signs_PD * (signs_PD @ w)[:, None]).mean(axis=0)
        found = estimate @ w / np.linalg.norm(estimate) / np.linalg.norm(w)
        assert rho_N[image] == pytest.approx(found / math.sqrt(pairs / (pairs + 15)), rel=1e-3)


def test_a_quantised_input_leaves_no_gradient_and_no_rho() -> None:
    rows = probed(Steps())
    assert rows["zero_margin"].all()
    assert rows["zero_ce"].all()
    assert (rows["rho"] == 0).all()
    assert (rows["alignment"] == 0).all()


def test_saturated_logits_leave_the_margin_its_gradient() -> None:
    rows = probed(Parabola(scale=1000.0))
    assert rows["zero_ce"].all()  # exp(-1000 * 6) is 0 in float32
    assert not rows["zero_margin"].any()
    assert not probed(Parabola())["zero_ce"].any()


def test_a_gradient_that_points_the_other_way_has_a_negative_rho() -> None:
    class Turned(Parabola):
        def forward(self, x: Tensor) -> Tensor:
            logits_BC = super().forward(x)
            return 2 * logits_BC.detach() - logits_BC  # the value as it is, the gradient reversed

    assert (probed(Turned())["rho"] < -0.5).all()


def test_alignment_and_roughness_are_those_of_a_parabola() -> None:
    a, n = 0.75, 5
    rows = probed(Parabola(curvature=a), n=n)
    w, x = np.linspace(0.5, 1, 16), batch(n).images_BCHW.reshape(n, 16)
    d = starts(n).reshape(n, 16) - x
    gradients = [2 * a * x + w, 2 * a * (x + d) + w]
    lengths = [np.linalg.norm(g, axis=1) for g in gradients]
    aligned = (gradients[0] * gradients[1]).sum(1) / lengths[0] / lengths[1]
    assert rows["alignment"] == pytest.approx(aligned, abs=1e-6)
    # L(x + d) - L(x) - d grad L(x) = a |d|^2
    assert rows["roughness"] == pytest.approx(a * np.square(d).sum(1), abs=1e-5)
    straight = probed(Parabola(), n=n)
    assert straight["alignment"] == pytest.approx(np.ones(n), abs=1e-6)
    assert straight["roughness"] == pytest.approx(np.zeros(n), abs=1e-5)


def test_an_image_has_the_same_row_wherever_it_is() -> None:
    whole = probed(Parabola(curvature=0.5), n=11)
    engine = make_engine(Parabola(curvature=0.5), EngineSettings(), SHAPE, 8)
    heard: list[int] = []
    for start, stop in ((0, 3), (3, 11)):
        part = probe_gradients(
            engine,
            batch(11).part(start, stop),
            CONDITIONS,
            epsilon=EPSILON,
            pairs=64,
            delta=0.01,
            on_image=heard.append,
        )
        for name, column in part.items():
            assert np.array_equal(column, whole[name][start:stop]), name
    assert heard == [1, 2, 3, *range(1, 9)]


def test_the_cosine_with_nothing_is_zero() -> None:
    a = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0]])
    b = torch.tensor([[4.0, 3.0], [1.0, 1.0], [1e-30, 0.0]])
    assert cosine(a, b).tolist() == pytest.approx([0.96, 0.0, 1.0])
