"""A training step of every objective: the same step written out, workers, BatchNorm, curriculum."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from s3ta.batch import Batch
from s3ta.draws import Key, Purpose
from s3ta.model import S3TA, PlainResNet
from s3ta.objectives import least_linear
from s3ta.settings import (
    Goal,
    LinearitySettings,
    Objective,
    StageSettings,
    TrainAttackSettings,
    TrainSettings,
)
from s3ta.sums import StepReport, StepSums
from s3ta.threat import LinfBall
from s3ta.training import Moment, add_microbatch, attack_microbatch
from s3ta.vision import batchnorms

Model = PlainResNet | S3TA
Models = Callable[..., Model]
Batches = Callable[..., Batch]
CLASSES, SMOOTHING = 5, 0.1
SETTINGS = TrainSettings(
    attack=TrainAttackSettings(epsilon_255=16, steps=3), batch=12, microbatch=4, seed=11
)
EVERY = {
    "adversarial": SETTINGS,
    "untargeted": replace(SETTINGS, attack=replace(SETTINGS.attack, goal=Goal.untargeted)),
    "plain": replace(SETTINGS, objective=Objective.plain),
    "alp": replace(SETTINGS, objective=Objective.alp),
    "llr": replace(SETTINGS, objective=Objective.llr),
}
MOMENT = Moment(epoch=4, step=60)


@dataclass(frozen=True)
class Stepped:
    """What a step leaves behind."""

    report: StepReport
    gradients: dict[str, Tensor]
    running: dict[str, Tensor]


def _step(
    model: Model,
    batch: Batch,
    settings: TrainSettings,
    workers: Sequence[Sequence[int]] = ((0, 1, 2),),
    moment: Moment = MOMENT,
) -> Stepped:
    size = settings.microbatch
    buffers = []
    for share in workers:
        sums = StepSums(model, settings)
        for index in share:
            part = batch.part(index * size, (index + 1) * size)
            add_microbatch(model, sums, part, settings, moment, index, CLASSES)
        buffers.append(sums.flat)
    sums.flat = torch.stack(buffers).sum(dim=0)
    report = sums.apply()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    running = {n: b for n, b in model.named_buffers() if "running" in n}
    return Stepped(report, gradients, running)


def _assert_equal(a: Stepped, b: Stepped) -> None:
    assert a.report == b.report
    for one, other in ((a.gradients, b.gradients), (a.running, b.running)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def _flipped(batch: Batch) -> Tensor:
    images = torch.from_numpy(batch.images_BCHW).float() / 255
    flip = Key(11, Purpose.FLIP, MOMENT.epoch).uniform(batch.image_ids_B, (1,))[:, 0] < 0.5
    return torch.stack([x.flip(2) if f else x for x, f in zip(images, flip, strict=True)]).double()


def _smoothed(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    log_p = logits_BC.log_softmax(dim=1)
    return -0.9 * log_p[torch.arange(len(labels_B)), labels_B] - 0.1 * log_p.mean(dim=1)


# The same losses, written out for one microbatch: (loss, right answers, images BatchNorm saw).


def _plain(model: Model, batch: Batch, labels_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    images = _flipped(batch)
    logits_BC = model.train()(images)
    return _smoothed(logits_BC, labels_B).mean(), logits_BC.argmax(1) == labels_B, images


def _alp(model: Model, batch: Batch, labels_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    attacked, _ = attack_microbatch(model, batch, EVERY["adversarial"], MOMENT, 0, CLASSES, "cpu")
    both = torch.cat([_flipped(batch), attacked])
    logits_BC = model.train()(both)
    clean_BC, attacked_BC = logits_BC[:4], logits_BC[4:]
    entropy = _smoothed(logits_BC, labels_B.repeat(2)).mean()
    loss = entropy + 0.5 * F.mse_loss(clean_BC, attacked_BC)
    return loss, attacked_BC.argmax(1) == labels_B, both


def _llr(model: Model, batch: Batch, labels_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    images, epsilon = _flipped(batch), 16 / 255
    noise = Key(11, Purpose.LINEARITY_START, MOMENT.epoch).uniform(batch.image_ids_B, (1, 6, 6))
    start = (images + (2 * torch.from_numpy(noise).double() - 1) * epsilon).clamp(0, 1)
    model.eval()
    ball = LinfBall.around(images, epsilon)
    moved = images + least_linear(
        lambda x: _smoothed(model(x), labels_B), images, ball, start, steps=3, rate=0.1
    )
    model.train()
    x = images.clone().requires_grad_()
    loss_B = _smoothed(model(x), labels_B)
    (gradient,) = torch.autograd.grad(loss_B.sum(), x, create_graph=True)
    slope_B = ((moved - images) * gradient).sum(dim=(1, 2, 3))
    moved_BC = model(moved)
    gap_B = (_smoothed(moved_BC, labels_B) - loss_B - slope_B).abs()
    loss = (loss_B + 3 * gap_B + 6 * slope_B.abs()).mean()
    return loss, moved_BC.argmax(1) == labels_B, images


BY_HAND = {"plain": _plain, "alp": _alp, "llr": _llr}


@pytest.mark.parametrize("unroll", [None, 2])
@pytest.mark.parametrize("name", BY_HAND)
def test_a_step_equals_the_same_step_written_out(
    name: str, unroll: int | None, tiny_model: Models, tiny_batch: Batches
) -> None:
    """Loss, gradient, right answers, and one set of BatchNorm statistics."""
    settings = replace(EVERY[name], batch=4)
    model, twin = tiny_model(unroll).double(), tiny_model(unroll).double()
    batch = tiny_batch(4, first_id=7)
    stepped = _step(model, batch, settings, ((0,),))
    loss, right_B, seen = BY_HAND[name](twin, batch, torch.from_numpy(batch.labels_B))
    assert stepped.report.loss == pytest.approx(loss.item(), rel=1e-12)
    assert stepped.report.adversarial_top1 == right_B.double().mean().item()
    names, parameters = zip(*twin.named_parameters(), strict=True)
    for p_name, gradient in zip(names, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(stepped.gradients[p_name], gradient, rtol=1e-9, atol=1e-12)
    twin.load_state_dict(tiny_model(unroll).double().state_dict())
    twin.train()(seen)
    for norm, own in zip(batchnorms(twin), batchnorms(model), strict=True):
        assert norm.seen is not None
        for statistic, running in zip(norm.seen, ("running_mean", "running_var"), strict=True):
            expected = 0.9 * norm.get_buffer(running) + 0.1 * statistic
            torch.testing.assert_close(own.get_buffer(running), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", EVERY)
def test_any_number_of_workers_computes_the_same_bits(
    name: str, tiny_model: Models, tiny_batch: Batches
) -> None:
    settings, batch = replace(EVERY[name], batch=24), tiny_batch(24)
    first, *others = [
        _step(tiny_model(2), batch, settings, workers)
        for workers in (
            ((0, 1, 2, 3, 4, 5),),
            ((5, 3, 1, 0, 2, 4),),
            ((0, 2, 4), (1, 3, 5)),
            ((3,), (0, 5, 1, 4), (2,)),
        )
    ]
    for other in others:
        _assert_equal(first, other)


@pytest.mark.parametrize("name", EVERY)
def test_a_microbatch_alone_moves_neither_weights_nor_running_statistics(
    name: str, tiny_model: Models, tiny_batch: Batches
) -> None:
    model = tiny_model(2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    add_microbatch(
        model, StepSums(model, EVERY[name]), tiny_batch(4), EVERY[name], MOMENT, 0, CLASSES
    )
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_objectives_differ(tiny_model: Models, tiny_batch: Batches) -> None:
    losses = {
        name: _step(tiny_model(2), tiny_batch(12), settings).report.loss
        for name, settings in EVERY.items()
    }
    assert len(set(losses.values())) == len(EVERY)


def test_no_attack_steps_is_plain(tiny_model: Models, tiny_batch: Batches) -> None:
    none = replace(SETTINGS, attack=replace(SETTINGS.attack, steps=0))
    ends = [_step(tiny_model(2), tiny_batch(12), s) for s in (none, EVERY["plain"])]
    _assert_equal(*ends)


def test_llr_without_regularisation_is_plain(tiny_model: Models, tiny_batch: Batches) -> None:
    weights = LinearitySettings(loss_weight=1, nonlinearity_weight=0, slope_weight=0)
    bare = replace(EVERY["llr"], linearity=weights)
    ends = [_step(tiny_model(2).double(), tiny_batch(12), s) for s in (bare, EVERY["plain"])]
    assert ends[0].report.loss == pytest.approx(ends[1].report.loss, rel=1e-12)
    for name, gradient in ends[0].gradients.items():
        torch.testing.assert_close(gradient, ends[1].gradients[name], rtol=1e-9, atol=1e-12)


def test_the_start_of_llrs_search_belongs_to_image_and_epoch(
    tiny_model: Models, tiny_batch: Batches
) -> None:
    """A rate too small to move it leaves d where it starts: another start, another loss."""
    still = LinearitySettings(search_rate=1e-12)
    settings = replace(EVERY["llr"], linearity=still, batch=4)

    def loss(epoch: int, step: int, seed: int = 11) -> float:
        moment, own = Moment(epoch, step), replace(settings, seed=seed)
        batch = tiny_batch(4, height=1, width=1)  # one pixel, so that no flip is seen
        return _step(tiny_model(2).double(), batch, own, ((0,),), moment).report.loss

    assert loss(0, 0) == pytest.approx(loss(0, 9), rel=1e-12)
    assert loss(0, 0) != pytest.approx(loss(1, 0), rel=1e-3)
    assert loss(0, 0) != pytest.approx(loss(0, 0, seed=12), rel=1e-3)


# The curriculum.


@pytest.mark.parametrize("name", EVERY)
def test_a_curriculum_that_changes_nothing_changes_no_bit(
    name: str, tiny_model: Models, tiny_batch: Batches
) -> None:
    curriculum = [StageSettings(), StageSettings(from_epoch=3)]
    settings = replace(EVERY[name], curriculum=curriculum)
    _assert_equal(
        _step(tiny_model(2), tiny_batch(12), EVERY[name]),
        _step(tiny_model(2), tiny_batch(12), settings),
    )


@pytest.mark.parametrize("name", EVERY)
def test_a_stage_trains_with_its_own_unroll_steps_and_epsilon(
    name: str, tiny_model: Models, tiny_batch: Batches
) -> None:
    """From epoch 4 on; before, and with the same values set directly, the step is another one."""
    stage = StageSettings(from_epoch=4, unroll=3, attack_steps=2, epsilon_255=9)
    staged = replace(EVERY[name], curriculum=[StageSettings(), stage])
    attack = replace(EVERY[name].attack, steps=2, epsilon_255=9)
    direct, batch = replace(EVERY[name], attack=attack), tiny_batch(12)
    three = tiny_model(3)
    three.load_state_dict(tiny_model(2).state_dict())
    _assert_equal(_step(tiny_model(2), batch, staged), _step(three, batch, direct))
    before = Moment(epoch=3, step=59)
    _assert_equal(
        _step(tiny_model(2), batch, staged, moment=before),
        _step(tiny_model(2), batch, EVERY[name], moment=before),
    )
    now, then = (_step(tiny_model(2), batch, s) for s in (staged, EVERY[name]))
    assert now.report.loss != then.report.loss
