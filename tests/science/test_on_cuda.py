"""What a GPU must do as a processor does: the same bits again, however the work is cut.

    make test-cuda

No usual test: it needs a CUDA device. The attacks' own promises run there too
(S3TA_TEST_DEVICE=cuda with test_every_attack.py), and steps of all full-size models.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from s3ta.batch import Batch, Conditions
from s3ta.engine import Engine, make_engine
from s3ta.evaluation import CHECK_EVERY, AttackRun, attack_images
from s3ta.fastcopy import FastCopy
from s3ta.model import Model
from s3ta.settings import (
    Block,
    Dtype,
    EngineSettings,
    Goal,
    Objective,
    TrainAttackSettings,
    TrainSettings,
)
from s3ta.sums import StepSums
from s3ta.tally import Rows
from s3ta.training import Moment, add_microbatch, optimizer
from s3ta.trajectory import Trajectory
from s3ta_platform.devices import pin_arithmetic

pytestmark = pytest.mark.cuda
Models = Callable[..., Model]
Batches = Callable[..., Batch]
Trajectories = Callable[..., Trajectory]
Same = Callable[[Rows, Rows], None]
CUDA, CLASSES, TILE = "cuda", 5, 8
CONDITIONS = Conditions(classes=CLASSES, seed=3, tile=TILE)
SETTINGS = TrainSettings(
    attack=TrainAttackSettings(epsilon_255=16, steps=3), batch=32, microbatch=8, seed=3
)


@pytest.fixture(autouse=True)
def _pinned() -> None:
    pin_arithmetic(1)


@pytest.fixture
def waits() -> Iterator[Callable[[str], None]]:
    """What a wait for the device is from now on: nothing (`default`) or an `error`."""
    yield torch.cuda.set_sync_debug_mode
    torch.cuda.set_sync_debug_mode("default")


def _engine(model: Model, **settings: Any) -> Engine:
    return make_engine(model, EngineSettings(**settings), (1, 6, 6), TILE, CUDA)


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("unroll", [None, 2])
@pytest.mark.parametrize("goal", [Goal.untargeted, Goal.random_target])
def test_rows_are_the_same_bits_however_cut_and_the_copy_agrees_with_the_judge(
    dtype: Dtype,
    unroll: int | None,
    goal: Goal,
    tiny_model: Models,
    tiny_batch: Batches,
    trajectory: Trajectories,
    assert_same: Same,
) -> None:
    engine, batch = _engine(tiny_model(unroll), dtype=dtype), tiny_batch(19)
    run = trajectory(20, 40, goal=goal, epsilon_255=16)
    whole = attack_images(engine, batch, run, CONDITIONS)
    readings = len(run.readings)
    for start, stop in ((0, 1), (1, 12), (12, 19)):
        rows = attack_images(engine, batch.part(start, stop), run, CONDITIONS)
        assert_same(rows, {k: v[start * readings : stop * readings] for k, v in whole.items()})
    agree = (whole["prediction"] == whole["attack_prediction"]).mean()
    assert agree >= (0.9 if dtype is Dtype.bfloat16 else 0.995)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
def test_a_step_between_two_checks_never_waits_for_the_device(
    waits: Callable[[str], None],
    tiny_model: Models,
    tiny_batch: Batches,
    trajectory: Trajectories,
) -> None:
    """Else the device idles while Python prepares the next kernels."""
    engine, run = _engine(tiny_model(2)), trajectory(2 * CHECK_EVERY, epsilon_255=16)
    steps = 0

    def watch(running: AttackRun) -> None:
        nonlocal steps
        steps += 1
        at_check = running.tick % CHECK_EVERY == 0 or running.steps_B[0] == run.steps
        waits("default" if at_check else "error")

    AttackRun(engine, tiny_batch(TILE), run, CONDITIONS).run(watch)
    assert steps > CHECK_EVERY


def _trained(
    model: Model, batch: Batch, settings: TrainSettings, order: tuple[int, ...]
) -> list[Tensor]:
    """Weights after two updates, whose microbatches are added in that order."""
    model = model.to(CUDA, memory_format=torch.channels_last)  # type: ignore[call-overload]
    fast, sums = FastCopy(model, settings, (1, 6, 6)), StepSums(model, settings)
    sgd = optimizer(model, settings)
    called: Any = torch.compile(model) if settings.compile else model
    for step in range(2):
        sums.reset()
        fast.refresh()
        for index in order:
            part = batch.part(8 * index, 8 * index + 8)
            add_microbatch(
                called, sums, part, settings, Moment(0, step), index, CLASSES, CUDA, fast
            )
        report = sums.apply()
        assert not report.not_finite
        sgd.step()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("objective", list(Objective))
@pytest.mark.parametrize("model", list(product([None, 2], Block)), ids=str)
def test_training_gives_the_same_bits_in_any_order_of_microbatches_and_again(
    model: tuple[int | None, Block], objective: Objective, tiny_model: Models, tiny_batch: Batches
) -> None:
    (unroll, block), settings = model, replace(SETTINGS, objective=objective)
    ends = [
        _trained(tiny_model(unroll, block=block), tiny_batch(32), settings, order)
        for order in ((0, 1, 2, 3), (0, 1, 2, 3), (3, 1, 0, 2))
    ]
    for other in ends[1:]:
        assert all(torch.equal(a, b) for a, b in zip(ends[0], other, strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("faster", [{"dtype": Dtype.bfloat16}, {"compile": True}])
def test_faster_training_ends_near_the_plain_one(
    faster: dict[str, Any], tiny_model: Models, tiny_batch: Batches
) -> None:
    plain, quick = (
        _trained(tiny_model(2), tiny_batch(32), settings, (0, 1, 2, 3))
        for settings in (SETTINGS, replace(SETTINGS, **faster))
    )
    start = [p.detach().to(CUDA) for p in tiny_model(2).parameters()]
    moved = torch.cat([(a - s).flatten() for a, s in zip(plain, start, strict=True)])
    apart = torch.cat([(a - b).flatten() for a, b in zip(plain, quick, strict=True)])
    assert float(apart.norm()) < 0.5 * float(moved.norm())


def test_a_processor_and_a_gpu_start_alike(tiny_model: Models, tiny_batch: Batches) -> None:
    """The same sums of the first step, up to rounding: the same draws, images and targets."""
    settings = replace(SETTINGS, attack=TrainAttackSettings(epsilon_255=16, steps=0))
    sums = []
    for device in ("cpu", CUDA):
        model = tiny_model(2).to(device)
        own = StepSums(model, settings)
        part = tiny_batch(8)
        add_microbatch(model, own, part, settings, Moment(0, 0), 0, CLASSES, device)
        sums.append(own.flat.sum(0).cpu())
    torch.testing.assert_close(sums[1], sums[0], rtol=1e-3, atol=1e-5)
