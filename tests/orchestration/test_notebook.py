"""Attacks in a notebook: known answers, plain tables, and clear words for what does not fit."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from s3ta.draws import Key, Purpose
from s3ta.errors import UserError
from s3ta.settings import AttackSettings, Goal, Loss
from s3ta.statistics import wilson
from s3ta_platform import notebook
from s3ta_platform.foreign import UnitImages
from s3ta_platform.nearest_mean import nearest_mean
from s3ta_platform.notebook import evaluate, summary
from s3ta_platform.rows import SCHEMA

SHAPE = (1, 4, 4)
UNTARGETED, TARGETED = Goal.untargeted, Goal.random_target


def linear(weights: Sequence[np.ndarray], biases: Sequence[float]) -> nn.Module:
    """Logits w_c . x + b_c."""
    layer = nn.Linear(len(weights[0]), len(weights))
    layer.weight.data = torch.from_numpy(np.stack(weights)).float()
    layer.bias.data = torch.tensor(biases)
    return nn.Sequential(nn.Flatten(), layer)


def some_images(n: int, low: float = 0.35, high: float = 0.65) -> np.ndarray:
    drawn = Key(5, Purpose.WEIGHTS).uniform(range(n), SHAPE)
    return (low + (high - low) * drawn).astype(np.float32)


def attack(goal: Goal = UNTARGETED, **settings: Any) -> AttackSettings:
    return AttackSettings(goal=goal, **{"epsilon_255": 8.0, "readings": [1, 40], **settings})


def at(table: pa.Table, step: int) -> dict[str, np.ndarray]:
    """The columns of one reading, ordered by image."""
    chosen = table.to_pandas().query("step == @step").sort_values("image_id")
    return {name: chosen[name].to_numpy() for name in chosen}


@pytest.mark.parametrize("loss", [Loss.cross_entropy, Loss.margin])
@pytest.mark.parametrize("goal", [UNTARGETED, TARGETED])
def test_against_a_linear_model_of_two_classes_pgd_is_the_closed_form(
    goal: Goal, loss: Loss
) -> None:
    drawn = Key(6, Purpose.WEIGHTS).uniform([0, 1], (16,)).astype(np.float64)
    away = np.sign(drawn[1] - 0.5) * (0.2 + drawn[0])  # no weight is near 0
    images = some_images(300)
    flat = images.reshape(300, -1).astype(np.float64)
    bias = -float(np.median(flat @ away))
    labels = (np.arange(300) % 3 > 0).astype(np.int64)
    margins = (2 * labels - 1) * (flat @ away + bias)
    settings = attack(goal, loss=loss)
    reach = settings.epsilon_255 / 255 * np.abs(away).sum()  # no pixel comes near 0 or 1
    robust = margins > reach
    assert np.abs(margins - reach).min() > 1e-5
    assert 0.1 < robust.mean() < 0.4 < (margins > 0).mean() < 0.6
    model = linear([-away / 2, away / 2], [-bias / 2, bias / 2])

    rows = evaluate(model, images, labels, [settings])

    last = at(rows, 40)
    assert last["correct"].tolist() == robust.tolist()
    assert (last["clean_prediction"] == labels).tolist() == (margins > 0).tolist()
    assert last["margin"] == pytest.approx(margins - reach, abs=1e-4)
    assert last["linf_255"] == pytest.approx(np.full(300, 8.0), abs=1e-3)
    if goal is TARGETED:
        assert (last["target"] == 1 - labels).all()
        assert last["fooled"].tolist() == (~robust).tolist()


def test_the_table_has_the_rows_of_an_experiment_and_becomes_a_frame() -> None:
    attacks = [attack(UNTARGETED), attack(TARGETED, readings=[2, 16, 18])]
    rows = evaluate(nearest_mean(), np.zeros((5, 1, 28, 28), np.uint8), [3] * 5, attacks, tile=4)
    assert rows.schema.names == [*SCHEMA.names, "attack"]
    frame = rows.to_pandas()
    assert frame.groupby(["attack", "step"]).size().to_dict() == {
        ("pgd_untargeted_eps8", 1): 5,
        ("pgd_untargeted_eps8", 40): 5,
        ("pgd_targeted_eps8", 2): 5,
        ("pgd_targeted_eps8", 16): 5,
        ("pgd_targeted_eps8", 18): 5,
    }
    assert set(frame.image_id) == {0, 1, 2, 3, 4}
    assert (frame.label == 3).all()
    assert ((frame.target == -1) == (frame.attack == "pgd_untargeted_eps8")).all()


def test_an_image_keeps_its_row_wherever_it_stands_in_the_list() -> None:
    images, labels = some_images(7), np.arange(7) % 3
    drawn = Key(1, Purpose.WEIGHTS).uniform(range(3), (16,)) - 0.5
    model = linear(list(drawn), [0.0, 0.1, -0.1])
    every = evaluate(model, images, labels, [attack(TARGETED)], tile=4)
    chosen = [5, 2, 6]
    some = evaluate(model, images[chosen], labels[chosen], [attack(TARGETED)], tile=4, ids=chosen)
    expected = {name: column[sorted(chosen)].tolist() for name, column in at(every, 40).items()}
    assert {name: column.tolist() for name, column in at(some, 40).items()} == expected
    other = evaluate(model, images, labels, [attack(TARGETED)], tile=4, seed=2)
    assert at(other, 40)["target"].tolist() != at(every, 40)["target"].tolist()


def test_bytes_floats_arrays_and_tensors_are_the_same_images() -> None:
    drawn = Key(5, Purpose.WEIGHTS).uniform(range(6), SHAPE) * 256
    images, labels = drawn.astype(np.uint8), np.arange(6) % 3
    model = linear(list(Key(1, Purpose.WEIGHTS).uniform(range(3), (16,)) - 0.5), [0.0, 0.0, 0.0])
    expected = evaluate(model, images, labels, [attack()]).to_pylist()
    floats = torch.from_numpy(images).float() / 255
    for same, of_it in (
        (floats, torch.from_numpy(labels)),
        (floats.numpy(), labels.tolist()),
        (floats.requires_grad_(), labels.astype(np.uint8)),
        (torch.from_numpy(images).to(memory_format=torch.channels_last), labels),
        (np.flip(images, 0)[::-1], labels),
    ):
        assert evaluate(model, same, of_it, [attack()]).to_pylist() == expected


def test_preprocessing_inside_the_model_leaves_the_attack_in_image_units() -> None:
    net = linear(list(Key(1, Purpose.WEIGHTS).uniform(range(3), (16,)) - 0.5), [0.0, 0.0, 0.0])
    wrapped = UnitImages(net, mean=[100.0], std=[50.0], input_range=[0, 255])
    rows = evaluate(wrapped, some_images(5), np.arange(5) % 3, [attack()])
    assert at(rows, 40)["linf_255"] == pytest.approx(np.full(5, 8.0), abs=1e-3)


def test_the_model_and_torch_are_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 4))
    model[3].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    threads, generator = torch.get_num_threads(), torch.get_rng_state()
    evaluate(model, some_images(3), [0, 1, 2], [attack()])
    assert [module.training for module in model.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.backends.cudnn.allow_tf32
    assert not torch.backends.cudnn.deterministic
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), generator)


def test_the_default_is_a_targeted_and_an_untargeted_attack() -> None:
    names = [a.name for a in notebook.ATTACKS]
    assert names == ["pgd_targeted_eps16", "pgd_untargeted_eps16"]


GOOD = {"images": some_images(4), "labels": [0, 1, 2, 0], "attacks": [attack()]}
BYTES = (some_images(4) * 255).astype(np.uint8)


class Random(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) + torch.rand(1)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"images": some_images(4)[:, 0]}, ["(4, 4, 4)", "(N, C, H, W)", "transpose(0, 3, 1, 2)"]),
        ({"images": some_images(4)[:0], "labels": []}, ["at least one image"]),
        ({"images": BYTES.astype(int)}, ["int64", "uint8", "astype(np.uint8)"]),
        ({"images": BYTES.astype(np.float32)}, ["within 0 and 1", "Divide bytes by 255"]),
        ({"images": some_images(4) * 2 - 1}, ["within 0 and 1", "normalise inside"]),
        ({"images": some_images(4) * np.nan}, ["NaN", "finite"]),
        ({"labels": [0, 1, 2]}, ["the shape of labels is (3,)", "(4,), one for each image"]),
        ({"labels": [0, 1, 2, 3]}, ["a label is 3", "from 0 to 2", "gives 3 logits"]),
        ({"labels": [0, 1, 2, -1]}, ["a label is -1", "from 0 to 2"]),
        ({"labels": [0.0, 1, 2, 1]}, ["float64", "whole numbers", "astype(int)"]),
        ({"labels": np.eye(4)}, ["the shape of labels is (4, 4)", "(4,)"]),
        ({"ids": [0, 1, 1, 2]}, ["an id is 1 twice"]),
        ({"ids": [0, 1, -1, 2]}, ["an id is -1", "at least 0"]),
        ({"ids": [0, 1]}, ["the shape of ids"]),
        ({"classes": 10}, ["gives 3 logits", "there are 10 classes"]),
        ({"attacks": []}, ["at least one AttackSettings"]),
        ({"attacks": ["pgd"]}, ["attacks is ['pgd']", "AttackSettings"]),
        ({"attacks": [attack(), attack(readings=[3])]}, ["differ only in their readings", "Put"]),
        ({"tile": 0}, ["tile is 0", "at least 1"]),
        ({"seed": -1}, ["seed is -1", "2^63"]),
        ({"device": "tpu"}, ["device is tpu", "Use c"]),
        ({"model": "resnet"}, ["model is an object of type str", "torch.nn.Module"]),
        ({"model": nn.Flatten(0)}, ["of shape (64,) for 4 images", "(4, classes)"]),
        ({"model": nn.Linear(5, 3)}, ["raised RuntimeError", "(4, 1, 4, 4)", "Compare"]),
        ({"model": Random()}, ["answers are random", "expectation over transformation"]),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_attacked(
    bad: dict[str, Any], words: list[str]
) -> None:
    model = linear(list(Key(1, Purpose.WEIGHTS).uniform(range(3), (16,)) - 0.5), [0.0, 0.0, 0.0])
    with pytest.raises(UserError) as refused:
        evaluate(**{"model": model, **GOOD, **bad})
    assert [w for w in words if w not in str(refused.value)] == [], str(refused.value)


def test_a_summary_counts_the_rows_with_their_intervals() -> None:
    images, labels = some_images(40), np.arange(40) % 3
    drawn = Key(1, Purpose.WEIGHTS).uniform(range(3), (16,)) - 0.5
    rows = evaluate(linear(list(drawn), [0.0, 0.0, 0.0]), images, labels, [attack(TARGETED)])
    lines = summary(rows).to_pylist()
    where = [(line["measure"], line["attack"], line["steps"]) for line in lines]
    name = "pgd_targeted_eps8"
    assert where == [
        ("nominal", None, None),
        ("top1", name, 1),
        ("success", name, 1),
        ("top1", name, 40),
        ("success", name, 40),
    ]
    last = at(rows, 40)
    counts = [(last["clean_prediction"] == labels).sum(), *([0] * 2)]
    counts[1:] = [(last["prediction"] == last[of]).sum() for of in ("label", "target")]
    for line, hits in zip([lines[0], *lines[3:]], counts, strict=True):
        assert (line["successes"], line["total"]) == (hits, 40)
        assert line["value"] == pytest.approx(hits / 40)
        assert (line["low"], line["high"]) == pytest.approx(wilson(int(hits), 40))


def test_the_example_of_the_documentation_runs() -> None:
    lines = (notebook.__doc__ or "").splitlines()
    code = textwrap.dedent("\n".join(line for line in lines if line.startswith("    ")))
    names: dict[str, Any] = {}
    exec(compile(code, "docstring", "exec"), names)
    frame = names["rows"].to_pandas()
    assert len(frame) == 64 * 2
    shares = {
        (line["measure"], line["steps"]): line["value"]
        for line in summary(names["rows"]).to_pylist()
    }
    assert shares["top1", 50] <= shares["top1", 10] < shares["nominal", None]
