"""One adversarial training step against the same step written out, and against other workers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from s3ta.batch import Batch
from s3ta.draws import Key, Purpose
from s3ta.model import S3TA, PlainResNet
from s3ta.settings import TrainAttackSettings, TrainSettings
from s3ta.sums import StepReport, StepSums
from s3ta.training import Moment, add_microbatch, attack_microbatch, optimizer
from s3ta.vision import BatchNorm

Model = PlainResNet | S3TA
Models = Callable[..., Model]
Batches = Callable[..., Batch]
CLASSES = 5
SETTINGS = TrainSettings(
    attack=TrainAttackSettings(epsilon_255=16, steps=3),
    batch=12,
    microbatch=4,
    learning_rate=0.1,
    weight_decay=1e-2,
    seed=11,
)


def _microbatches(batch: Batch, settings: TrainSettings) -> list[Batch]:
    size = settings.microbatch
    return [batch.part(i, i + size) for i in range(0, len(batch), size)]


def _step(
    model: Model,
    sgd: torch.optim.SGD,
    batch: Batch,
    settings: TrainSettings,
    moment: Moment,
    workers: tuple[tuple[int, ...], ...],
) -> StepReport:
    """A step whose microbatches are dealt to simulated workers; the last one adds up all sums."""
    parts = _microbatches(batch, settings)
    buffers = []
    for share in workers:
        sums = StepSums(model, settings)
        for index in share:
            add_microbatch(model, sums, parts[index], settings, moment, index, CLASSES)
        buffers.append(sums.flat)
    sums.flat = torch.stack(buffers).sum(dim=0)
    report = sums.apply()
    sgd.step()
    return report


# The same step, written out.


def _start_by_hand(batch: Batch, images: Tensor, moment: Moment, index: int) -> Tensor:
    s = SETTINGS
    coin = Key(s.seed, Purpose.TRAIN_COIN, moment.epoch, moment.step).uniform([index], (1,))
    if coin[0, 0] < s.attack.clean_start_share:
        return images
    noise = Key(s.seed, Purpose.TRAIN_NOISE, moment.epoch).uniform(batch.image_ids_B, (1, 6, 6))
    return (images + (2 * torch.from_numpy(noise).double() - 1) * 16 / 255).clamp(0, 1)


def _attacked_by_hand(model: Model, batch: Batch, moment: Moment, index: int) -> Tensor:
    s, ids = SETTINGS, batch.image_ids_B
    images = torch.from_numpy(batch.images_BCHW).float() / 255
    flip = Key(s.seed, Purpose.FLIP, moment.epoch).uniform(ids, (1,))[:, 0] < 0.5
    images = torch.stack(
        [x.flip(2) if f else x for x, f in zip(images, flip, strict=True)]
    ).double()
    targets = Key(s.seed, Purpose.TRAIN_TARGET, moment.epoch).wrong_classes(
        ids, batch.labels_B, CLASSES
    )
    x = _start_by_hand(batch, images, moment, index)
    model.eval()
    for _ in range(3):
        x = x.detach().requires_grad_()
        log_p = model(x).log_softmax(dim=1)
        towards_target = log_p[torch.arange(len(x)), torch.from_numpy(targets)].sum()
        (gradient,) = torch.autograd.grad(towards_target, x)
        x = x + 16 / 255 / 3 * gradient.sign()
        x = torch.minimum(torch.maximum(x, images - 16 / 255), images + 16 / 255).clamp(0, 1)
    return x.detach()


class _ByHand:
    """SGD with Nesterov momentum on the mean gradient; the state it needs."""

    def __init__(self, model: Model) -> None:
        self.model, self.momentum = model, dict[str, Tensor]()

    def step(self, batch: Batch, moment: Moment) -> float:
        model, means, variances, losses = self.model, [], [], []
        norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
        inputs: dict[nn.Module, Tensor] = {}
        hooks = [n.register_forward_pre_hook(lambda n, x: inputs.update({n: x[0]})) for n in norms]
        for index, part in enumerate(_microbatches(batch, SETTINGS)):
            attacked = _attacked_by_hand(model, part, moment, index)
            log_p = model.train()(attacked).log_softmax(dim=1)
            true = log_p[torch.arange(4), torch.from_numpy(part.labels_B)]
            losses.append((-0.9 * true - 0.1 * log_p.mean(dim=1)).mean())
            means.append([inputs[n].detach().mean(dim=(0, 2, 3)) for n in norms])
            variances.append([inputs[n].detach().var(dim=(0, 2, 3)) for n in norms])
        loss = torch.stack(losses).mean()
        names, parameters = zip(*model.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for name, p, gradient in zip(names, parameters, gradients, strict=True):
                self._descend(name, p, gradient)
            for i, norm in enumerate(norms):
                for seen, running in ((means, "running_mean"), (variances, "running_var")):
                    mean = torch.stack([s[i] for s in seen]).mean(dim=0)
                    norm.get_buffer(running).mul_(0.9).add_(0.1 * mean)
        for hook in hooks:
            hook.remove()
        return loss.item()

    def _descend(self, name: str, p: Tensor, gradient: Tensor) -> None:
        if p.ndim > 1:  # convolutions, linear layers, the LSTM's matrices
            gradient = gradient + 1e-2 * p
        self.momentum[name] = 0.9 * self.momentum.get(name, torch.zeros_like(p)) + gradient
        p.sub_(0.1 * (gradient + 0.9 * self.momentum[name]))


GOLDEN_LOSSES = {
    None: [1.6986872499784973, 1.8601951539274273, 1.7638531936549804],
    2: [1.869599738665806, 1.54971968038317, 1.648951553373509],
}


@pytest.mark.parametrize("unroll", [None, 2])
def test_training_steps_equal_the_same_steps_written_out_and_give_the_golden_losses(
    unroll: int | None, tiny_model: Models, tiny_batch: Batches
) -> None:
    """In float64: in float32 a gradient's sign flips between processors."""
    model, twin = tiny_model(unroll).double(), tiny_model(unroll).double()
    by_hand, sgd, losses = _ByHand(twin), optimizer(model, SETTINGS), []
    for step in range(3):
        batch, moment = tiny_batch(12, first_id=12 * step), Moment(epoch=4, step=step)
        report = _step(model, sgd, batch, SETTINGS, moment, ((0, 1, 2),))
        assert report.loss == pytest.approx(by_hand.step(batch, moment), rel=1e-12)
        losses.append(report.loss)
        expected = twin.state_dict()
        for name, values in model.state_dict().items():
            torch.testing.assert_close(values, expected[name], rtol=1e-11, atol=1e-12)
    assert losses == pytest.approx(GOLDEN_LOSSES[unroll], rel=1e-9)


@pytest.mark.parametrize("unroll", [None, 2])
def test_one_two_and_three_workers_end_in_the_same_bits(
    unroll: int | None, tiny_model: Models, tiny_batch: Batches
) -> None:
    settings, ends = replace(SETTINGS, batch=24), []
    dealings = [
        ((0, 1, 2, 3, 4, 5),),
        ((5, 3, 1, 0, 2, 4),),
        ((0, 2, 4), (1, 3, 5)),
        ((4, 5), (2, 3), (0, 1)),
        ((3,), (0, 5, 1, 4), (2,)),
    ]
    for workers in dealings:
        model = tiny_model(unroll)
        sgd = optimizer(model, settings)
        for step in range(4):
            batch = tiny_batch(24, first_id=24 * step)
            _step(model, sgd, batch, settings, Moment(0, step), workers)
        ends.append({k: v.clone() for k, v in model.state_dict().items()})
    assert not torch.equal(ends[0]["vision.conv1.weight"], tiny_model(unroll).vision.conv1.weight)
    for end in ends[1:]:
        assert all(torch.equal(end[name], values) for name, values in ends[0].items())


def test_a_microbatch_alone_moves_neither_weights_nor_running_statistics(
    tiny_model: Models, tiny_batch: Batches
) -> None:
    model = tiny_model(2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    sums = StepSums(model, SETTINGS)
    add_microbatch(model, sums, tiny_batch(4), SETTINGS, Moment(0, 0), 0, CLASSES)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert sums.flat.any()
    sums.reset()
    assert sums.report() == StepReport(0.0, 0.0)


def test_a_step_reports_mean_loss_and_top1_of_the_attacked_images_in_training_mode(
    tiny_model: Models, tiny_batch: Batches
) -> None:
    model, batch, moment = tiny_model(2), tiny_batch(12), Moment(0, 0)
    parts = _microbatches(batch, SETTINGS)
    right = 0
    for index, part in enumerate(parts):
        attacked, labels_B = attack_microbatch(model, part, SETTINGS, moment, index, CLASSES, "cpu")
        right += int((model.train()(attacked).argmax(1) == labels_B).sum())
    sgd = optimizer(model, SETTINGS)
    report = _step(model, sgd, batch, SETTINGS, moment, ((0, 1, 2),))
    assert report.adversarial_top1 == pytest.approx(right / 12)


def test_label_smoothing_is_in_the_training_loss_and_not_in_the_attacks(
    tiny_model: Models, tiny_batch: Batches
) -> None:
    model, batch, moment = tiny_model(2), tiny_batch(4), Moment(0, 0)
    sharp = replace(SETTINGS, label_smoothing=0.0, batch=4)
    smooth = replace(SETTINGS, label_smoothing=0.5, batch=4)
    attacked = [
        attack_microbatch(model, batch, s, moment, 0, CLASSES, "cpu")[0] for s in (sharp, smooth)
    ]
    assert torch.equal(*attacked)
    log_p = model.train()(attacked[0]).log_softmax(1).detach()
    true = -log_p[torch.arange(4), torch.from_numpy(batch.labels_B)].mean().item()
    every = -log_p.mean().item()
    for settings, expected in ((sharp, true), (smooth, 0.5 * true + 0.5 * every)):
        fresh = tiny_model(2)
        report = _step(fresh, optimizer(fresh, settings), batch, settings, moment, ((0,),))
        assert report.loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("unroll", [None, 2])
def test_weight_decay_is_on_convolution_and_linear_weights_only(
    unroll: int | None, tiny_model: Models
) -> None:
    model: Any = tiny_model(unroll)
    decayed, free = optimizer(model, SETTINGS).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (1e-2, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    matrices = {n for n, p in model.named_parameters() if p.ndim in (2, 4)}
    assert {names[id(p)] for p in decayed["params"]} == matrices
    assert {names[id(p)] for p in free["params"]} == set(names.values()) - matrices
    assert decayed["nesterov"]
    assert decayed["momentum"] == 0.9
