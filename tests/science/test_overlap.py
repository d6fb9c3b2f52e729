"""Sums that leave while the last microbatch's backward pass goes on are the same sums."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import s3ta.sums
from s3ta.batch import Batch
from s3ta.model import Model
from s3ta.settings import (
    Augmentation,
    Dtype,
    Objective,
    Sums,
    TrainAttackSettings,
    TrainSettings,
)
from s3ta.sums import StepSums
from s3ta.training import Moment, add_microbatch
from s3ta.vision import recompute_blocks

CLASSES = 5
SETTINGS = TrainSettings(
    batch=8,
    microbatch=4,
    attack=TrainAttackSettings(steps=2),
    augmentation=Augmentation.flip,
)
EVERY = {
    **{objective.name: replace(SETTINGS, objective=objective) for objective in Objective},
    "fast": replace(SETTINGS, sums=Sums.fast),
    "bfloat16": replace(SETTINGS, dtype=Dtype.bfloat16),
}


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts as small as the smallest layers."""
    monkeypatch.setattr(s3ta.sums, "PART", 100)


def add(
    sums: StepSums,
    model: Model,
    batch: Batch,
    index: int,
    settings: TrainSettings = SETTINGS,
    send: Callable[[Tensor], None] | None = None,
) -> None:
    add_microbatch(model, sums, batch, settings, Moment(0, 0), index, CLASSES, send=send)


def columns(sums: StepSums, part: Tensor) -> range:
    """Where in the sums this view of them is."""
    start = part.storage_offset()
    assert part.data_ptr() == sums.flat[:, start:].data_ptr()
    return range(start, start + part.shape[1])


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_what_leaves_is_complete_and_the_same_bits(
    name: str,
    recompute: bool,
    tiny_model: Callable[..., Model],
    tiny_batch: Callable[..., Batch],
) -> None:
    """What is sent is overwritten at once, as by the sum of all workers: nothing is added later."""
    settings, model = EVERY[name], tiny_model(3)
    if recompute:
        recompute_blocks(model)
    whole, sums = StepSums(model, settings), StepSums(model, settings)
    sent = torch.full_like(whole.flat, torch.nan)
    left: list[int] = []

    def send(part: Tensor) -> None:
        at = columns(sums, part)
        assert not set(at) & set(left)
        left.extend(at)
        sent[:, at.start : at.stop] = part
        part.fill_(7)

    for index in range(2):
        batch = tiny_batch(4, first_id=4 * index)
        add(whole, model, batch, index, settings)
        add(sums, model, batch, index, settings, send if index == 1 else None)
    assert sorted(left) == list(range(sums.gradients))
    assert (sums.flat[:, : sums.gradients] == 7).all()
    sent[:, sums.gradients :] = sums.flat[:, sums.gradients :]
    assert torch.equal(sent, whole.flat)
    assert whole.flat[0].count_nonzero() > 1000


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("name", ["adversarial", "fast"])
def test_a_worker_with_one_microbatch_sends_nothing_of_the_step_before(
    name: str, tiny_model: Callable[..., Model], tiny_batch: Callable[..., Batch]
) -> None:
    settings, model = EVERY[name], tiny_model(3)
    whole, sums = StepSums(model, settings), StepSums(model, settings)
    add(sums, model, tiny_batch(4), 0, settings)
    sums.reset()
    sent = torch.full_like(whole.flat, torch.nan)

    def send(part: Tensor) -> None:
        at = columns(sums, part)
        sent[:, at.start : at.stop] = part

    add(whole, model, tiny_batch(4, first_id=4), 1, settings)
    add(sums, model, tiny_batch(4, first_id=4), 1, settings, send)
    sent[:, sums.gradients :] = sums.flat[:, sums.gradients :]
    assert torch.equal(sent, whole.flat)


@pytest.mark.usefixtures("parts")
def test_the_first_parts_leave_before_the_lowest_layers_are_reached(
    tiny_model: Callable[..., Model], tiny_batch: Callable[..., Batch]
) -> None:
    model, left = tiny_model(3), list[range]()
    sums, first = StepSums(model, SETTINGS), next(iter(model.vision.parameters()))
    before: list[range] = []
    hook = first.register_hook(lambda _: before.extend(left))  # type: ignore[no-untyped-call]
    add(sums, model, tiny_batch(4), 0, send=lambda part: left.append(columns(sums, part)))
    hook.remove()
    assert left == sorted(left, key=lambda at: -at.start), "from the last layers to the first"
    place = next(at for at, p in enumerate(sums.parameters) if p is first)
    own = sum(p.numel() for p in sums.parameters[:place])
    assert before == [at for at in left if at.start > own]
    assert len(before) >= 5


def test_parts_are_whole_layers_of_a_least_size(tiny_model: Callable[..., Model]) -> None:
    sums = StepSums(tiny_model(3), SETTINGS)
    (everything,) = sums.parts()
    assert everything.columns == slice(0, sums.gradients)
    assert everything.places == list(range(len(sums.parameters)))


@pytest.mark.usefixtures("parts")
def test_a_model_in_training_keeps_no_hooks(
    tiny_model: Callable[..., Model], tiny_batch: Callable[..., Batch]
) -> None:
    """Not after an error in the backward pass either."""
    model = tiny_model(3)
    sums = StepSums(model, SETTINGS)

    def fail(part: Tensor) -> None:
        raise ConnectionError("the other worker is gone")

    with pytest.raises(ConnectionError, match="the other worker is gone"):
        add(sums, model, tiny_batch(4), 0, send=fail)
    assert not any(p._backward_hooks for p in model.parameters())


@pytest.mark.usefixtures("parts")
def test_a_gradient_that_is_not_finite_is_named_though_its_part_has_left(
    tiny_model: Callable[..., Model], tiny_batch: Callable[..., Batch]
) -> None:
    model = tiny_model(3)
    sums = StepSums(model, SETTINGS)
    add(sums, model, tiny_batch(4), 0)
    first = next(iter(model.vision.parameters()))
    hook = first.register_hook(lambda gradient: gradient * torch.inf)  # type: ignore[no-untyped-call]
    add(sums, model, tiny_batch(4, first_id=4), 1, send=lambda _: None)
    hook.remove()
    assert sums.report().not_finite == (1,)
