"""The copy that is attacked in training: the model itself up to rounding, at every update."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from s3ta.batch import Batch
from s3ta.fastcopy import FastCopy
from s3ta.model import S3TA, PlainResNet
from s3ta.settings import Block, Dtype, TrainAttackSettings, TrainSettings
from s3ta.sums import StepSums
from s3ta.training import Moment, add_microbatch, answers, attack_microbatch, optimizer
from s3ta.vision import BatchNorm

Model = PlainResNet | S3TA
Models = Callable[..., Model]
Batches = Callable[..., Batch]
CLASSES, SHAPE = 5, (1, 6, 6)
SETTINGS = TrainSettings(
    attack=TrainAttackSettings(epsilon_255=16, steps=3), batch=8, microbatch=4, learning_rate=0.1
)


def noise(count: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=dtype)


def logits_and_gradient(f: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    x = images.clone().requires_grad_()
    logits_BC = f(x)
    weights_C = torch.arange(1.0, CLASSES + 1, dtype=logits_BC.dtype)
    return logits_BC.detach(), torch.autograd.grad((logits_BC * weights_C).sum(), x)[0]


def expect_same(fast: FastCopy, model: nn.Module, images: Tensor) -> None:
    for ours, true in zip(
        logits_and_gradient(fast, images), logits_and_gradient(model.eval(), images), strict=True
    ):
        assert true.abs().max() > 1e-3
        torch.testing.assert_close(ours, true, rtol=1e-9, atol=1e-12)


def update(model: Model, batch: Batch, fast: FastCopy | None) -> None:
    sums, sgd = StepSums(model, SETTINGS), optimizer(model, SETTINGS)
    for index in range(2):
        part = batch.part(4 * index, 4 * index + 4)
        add_microbatch(model, sums, part, SETTINGS, Moment(0, 0), index, CLASSES, fast=fast)
    sums.apply()
    sgd.step()


@pytest.mark.parametrize("block", list(Block))
@pytest.mark.parametrize("unroll", [None, 2])
def test_answers_and_gradients_are_the_models_in_test_mode(
    unroll: int | None, block: Block, tiny_model: Models
) -> None:
    model = tiny_model(unroll, block=block).double()
    fast = FastCopy(model, SETTINGS, SHAPE)
    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    assert len(fast.pairs) == len(norms) > 4, "each BatchNorm is folded"
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.model.modules())
    expect_same(fast, model, noise())


def test_it_follows_updates_of_weights_and_statistics(
    tiny_model: Models, tiny_batch: Batches
) -> None:
    model = tiny_model(2).double()
    fast = FastCopy(model, SETTINGS, SHAPE)
    for step in range(3):
        update(model, tiny_batch(8, first_id=8 * step), fast)
        stale = logits_and_gradient(fast, noise())[0]
        fast.refresh()
        assert not torch.allclose(stale, logits_and_gradient(fast, noise())[0], rtol=1e-3)
        expect_same(fast, model, noise())


def test_what_is_not_folded_is_the_models_own_memory(tiny_model: Models) -> None:
    model = tiny_model(2)
    fast = FastCopy(model, SETTINGS, SHAPE)
    own = {name: p.data_ptr() for name, p in model.named_parameters()}
    folded = {name for name, p in fast.model.named_parameters() if own.get(name) != p.data_ptr()}
    assert folded == {
        f"{name}.{part}"
        for name, m in model.named_modules()
        if isinstance(m, nn.Conv2d)
        for part in ("weight", "bias")
    }
    assert not any(p.requires_grad for p in fast.model.parameters())


def test_the_model_in_training_is_left_alone(tiny_model: Models, tiny_batch: Batches) -> None:
    model: Any = tiny_model(2).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fast = FastCopy(model, SETTINGS, SHAPE)
    attack_microbatch(model, tiny_batch(4), SETTINGS, Moment(0, 0), 0, CLASSES, "cpu", fast)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(m.training for m in model.modules())
    assert all(m.seen is None for m in model.modules() if isinstance(m, BatchNorm))


def test_the_attack_finds_nearly_the_images_that_it_finds_without(
    tiny_model: Models, tiny_batch: Batches
) -> None:
    """Rounding turns a gradient's sign where it is all but zero: here and there a pixel."""
    model, batch = tiny_model(2), tiny_batch(64)
    settings, fast = replace(SETTINGS, batch=64, microbatch=64), FastCopy(model, SETTINGS, SHAPE)
    with_it, without = (
        attack_microbatch(model, batch, settings, Moment(0, 0), 0, CLASSES, "cpu", f)[0]
        for f in (fast, None)
    )
    assert ((with_it - without).abs() < 1e-6).double().mean() > 0.999


class Branching(nn.Module):
    """A convolution whose output is read by more than its BatchNorm: it can't be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 36, CLASSES)
        nn.init.uniform_(self.norm.running_mean, -1, 1)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images)
        return self.head((self.norm(features) * features).flatten(1))  # type: ignore[no-any-return]


def test_a_model_that_cannot_be_folded_is_attacked_as_it_is() -> None:
    model = Branching().double()
    fast = FastCopy(model, SETTINGS, SHAPE)
    assert fast.pairs == []
    expect_same(fast, model, noise())
    with torch.no_grad():
        model.conv.weight.mul_(2)
        model.norm.get_buffer("running_mean").add_(1)
    fast.refresh()
    expect_same(fast, model, noise())


def test_in_bfloat16_it_is_near_and_the_sums_stay_float(
    tiny_model: Models, tiny_batch: Batches
) -> None:
    model, half = tiny_model(2), replace(SETTINGS, dtype=Dtype.bfloat16)
    fast = FastCopy(model, half, SHAPE)
    images = noise(dtype=torch.float32)
    ours, true = (logits_and_gradient(f, images)[0] for f in (answers(fast, half), model.eval()))
    assert ours.dtype == torch.float32
    assert 0 < (ours - true).abs().max() < 0.05 * true.abs().max()
    ends = []
    for settings, copy in ((SETTINGS, FastCopy(model, SETTINGS, SHAPE)), (half, fast)):
        sums = StepSums(model, settings)
        batch = tiny_batch(4)
        add_microbatch(model, sums, batch, settings, Moment(0, 0), 0, CLASSES, fast=copy)
        assert all(n.seen[0].dtype == torch.float32 for n in sums.norms if n.seen)
        ends.append((sums.flat.sum(0)[: sums.terms], sums.report().loss * 2))
    (exact, loss), (rough, near) = ends
    assert near == pytest.approx(loss, rel=0.05)
    assert torch.nn.functional.cosine_similarity(exact, rough, dim=0) > 0.95
