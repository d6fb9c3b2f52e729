"""Random signs: every look is another corner of the ball, and the best one is kept."""

from itertools import pairwise

import numpy as np
import torch

from s3ta.attacks import Look
from s3ta.batch import Batch, Conditions
from s3ta.corners import Corners
from s3ta.engine import make_engine
from s3ta.evaluation import attack_images
from s3ta.settings import AttackSettings, EngineSettings, Goal, Loss, Rule
from s3ta.steps import Around
from s3ta.threat import LinfBall
from s3ta.trajectory import Trajectory, trajectories

EPSILON = 0.125
SHAPE = (3, 8, 8)


def attack(queries: int) -> Trajectory:
    settings = AttackSettings(
        goal=Goal.untargeted,
        loss=Loss.margin,
        rule=Rule.random,
        epsilon_255=EPSILON * 255,
        readings=[queries],
    )
    (trajectory,) = trajectories(settings)
    return trajectory


def test_a_query_is_a_corner_around_the_image_not_around_the_last_point() -> None:
    images = torch.full((2, *SHAPE), 0.5)
    images[1] = 0.05  # below it the range ends first
    around = Around(images, LinfBall.around(images, EPSILON), np.array([3, 9]), torch.zeros(2))
    rule, points = Corners(attack(50), images, seed=5), images.clone()
    nothing = Look(torch.zeros(2, 4), torch.zeros(2), None)
    seen = []
    for step in range(4):
        rule.move(points, nothing, torch.tensor([step, step]), around)
        seen.append(points.clone())
        assert {*points[0].flatten().tolist()} == {0.375, 0.625}
        assert {*points[1].flatten().tolist()} == {0.0, float(torch.tensor(0.05) + EPSILON)}
    shares = torch.stack([(x[0] > 0.5).float().mean() for x in seen])
    assert (abs(shares - 0.5) < 4.5 * 0.5 / 192**0.5).all()
    assert all(not torch.equal(a, b) for a, b in pairwise(seen))
    # The draw of step 2 is its own: of this image, seed and step alone.
    alone = Around(images[:1], LinfBall.around(images[:1], EPSILON), np.array([3]), torch.zeros(1))
    point = images[:1].clone()
    Corners(attack(50), point, seed=5).move(point, nothing, torch.tensor([2]), alone)
    assert torch.equal(point[0], seen[2][0])
    Corners(attack(50), point, seed=6).move(point, nothing, torch.tensor([2]), alone)
    assert not torch.equal(point[0], seen[2][0])


def test_a_linear_model_falls_exactly_when_one_of_the_drawn_corners_is_beyond_it() -> None:
    queries, images = 40, np.full((6, 1, 4, 4), 0.5, np.float32)
    weights = torch.linspace(-1, 1, 16)
    lengths = torch.linspace(0.1, 1.1, 6)  # how far each image is from the border
    batch = Batch(
        images_BCHW=(images + np.arange(6).reshape(6, 1, 1, 1) / 64).astype(np.float32),
        labels_B=np.zeros(6, np.int64),
        image_ids_B=np.arange(6),
    )
    # z_0 - z_1 is the length of that image, which its grey value tells, plus w x (w sums to 0).
    linear = torch.nn.Linear(16, 4)
    model = torch.nn.Sequential(torch.nn.Flatten(), linear)
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.copy_(torch.tensor([0.1 - 0.5 * 12.8, 0.0, -9.0, -9.0]))
        linear.weight[0] = weights + 12.8 / 16
    rows = attack_images(
        make_engine(model, EngineSettings(), (1, 4, 4), 8),
        batch,
        attack(queries),
        Conditions(classes=4, seed=2, tile=8),
    )
    drawn = Corners(attack(queries), torch.zeros(1, 1, 4, 4), seed=2)
    direction = (weights + 12.8 / 16).numpy()
    for i, length in enumerate(lengths.tolist()):
        margins = [length]
        margins += [
            length + EPSILON * float(direction @ drawn._signs(i, query, 16))
            for query in range(1, queries + 1)
        ]
        hits = [query for query, margin in enumerate(margins) if margin < 0]
        assert rows["first_error_step"][i] == (hits[0] if hits else -1)
        assert rows["correct"][i] == (not hits)
        if not hits:  # it returns the corner of the lowest margin
            assert abs(rows["margin"][i] - min(margins)) < 1e-5
    assert 0 < rows["correct"].sum() < 6
