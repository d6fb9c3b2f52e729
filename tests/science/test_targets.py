"""Which class an attack wants, and which one it is led to."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from s3ta.batch import Batch, Conditions
from s3ta.engine import Engine
from s3ta.errors import UserError
from s3ta.evaluation import AttackRun
from s3ta.settings import AttackSettings, EngineSettings, Goal, Loss, Rule
from s3ta.trajectory import require_classes, trajectories

Batches = Callable[..., Batch]
CONDITIONS = Conditions(classes=5, seed=3, tile=4)
PLAIN = EngineSettings(fold=False, channels_last=False)


class _Fixed(nn.Module):
    """Classes in the order of their likelihood, whatever the image: 3, 1, 4, 0 and 2 alike."""

    LOGITS = (0.0, 2.0, 0.0, 3.0, 1.0)

    def forward(self, images: Tensor) -> Tensor:
        return torch.tensor(self.LOGITS) + 0 * images.flatten(1)[:, :5]


def _classes(batch: Batch, **attack: object) -> tuple[list[int], list[int]]:
    """The targets in the rows, and what the loss is led to."""
    settings = AttackSettings(readings=[16], **attack)  # type: ignore[arg-type]
    engine = Engine(_Fixed(), _Fixed(), PLAIN, folded=False)
    run = AttackRun(engine, batch, trajectories(settings)[-1], CONDITIONS)
    return run.run()["target"].tolist(), run.targets.towards_N.tolist()


@pytest.fixture
def batch(tiny_batch: Batches) -> Batch:
    batch = tiny_batch(5)
    return Batch(
        images_BCHW=batch.images_BCHW, labels_B=np.arange(5), image_ids_B=batch.image_ids_B
    )


def test_the_least_likely_class_is_never_the_label_and_of_equals_the_last(batch: Batch) -> None:
    expected = [2, 2, 0, 2, 2]
    assert _classes(batch, goal=Goal.least_likely_target) == (expected, expected)


@pytest.mark.parametrize(
    ("rank", "towards"),
    [(1, [3, 3, 3, 1, 3]), (2, [1, 4, 1, 4, 1]), (3, [4, 0, 4, 0, 0]), (4, [2, 2, 0, 2, 2])],
)
def test_ranks_count_the_wrong_classes_from_the_likeliest_on(
    rank: int, towards: list[int], batch: Batch
) -> None:
    attack = {"goal": Goal.likeliest, "loss": Loss.difference, "targets": rank}
    assert _classes(batch, **attack) == ([-1] * 5, towards)


def test_a_given_target_is_that_of_the_label(batch: Batch) -> None:
    given = [4, 3, 1, 0, 2]
    attack = {"goal": Goal.given_target, "target_of_label": given}
    assert _classes(batch, **attack) == (given, given)


def test_an_untargeted_attack_has_none(batch: Batch) -> None:
    assert _classes(batch, goal=Goal.untargeted) == ([-1] * 5, [-1] * 5)


@pytest.mark.parametrize(
    ("attack", "classes", "words"),
    [
        ({"loss": Loss.dlr}, 3, "at least 4"),
        ({"goal": Goal.likeliest, "targets": 9}, 5, "at most 4"),
        ({"goal": Goal.given_target, "target_of_label": [1, 0]}, 3, "each of the 3 labels"),
        ({"goal": Goal.given_target, "target_of_label": [1, 7]}, 2, "one of the 2 classes"),
    ],
)
def test_too_few_classes_are_refused(attack: dict[str, object], classes: int, words: str) -> None:
    settings = AttackSettings(**attack)  # type: ignore[arg-type]
    last = trajectories(settings)[-1]
    with pytest.raises(UserError, match=words):
        require_classes(last, classes)


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        ({"goal": Goal.given_target}, "target_of_label"),
        ({"target_of_label": [1, 0]}, "target_of_label"),
        ({"goal": Goal.given_target, "target_of_label": [1, 1]}, "another class than the label"),
        ({"rule": Rule.fab}, "goal: likeliest and loss: difference"),
        ({"rule": Rule.apgd, "momentum": 0.5}, "attack.momentum"),
        ({"rule": Rule.square, "step_of_epsilon": 0.1}, "attack.step_of_epsilon"),
        ({"spsa_pairs": 0}, "attack.spsa_pairs"),
        ({"unroll": 0}, "attack.unroll"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(
    attack: dict[str, object], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        AttackSettings(**attack)  # type: ignore[arg-type]
