"""Settings that make a step lighter or faster, and what they may change."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from s3ta.batch import Batch
from s3ta.fastcopy import FastCopy
from s3ta.model import S3TA, PlainResNet
from s3ta.settings import Block, Objective, TrainAttackSettings, TrainSettings
from s3ta.sums import StepSums
from s3ta.training import Moment, add_microbatch
from s3ta.vision import recompute_blocks

Model = PlainResNet | S3TA
Models = Callable[..., Model]
Batches = Callable[..., Batch]
CLASSES = 5
SETTINGS = TrainSettings(
    attack=TrainAttackSettings(epsilon_255=16, steps=2), batch=8, microbatch=8, seed=3
)


def summed(model: Model, batch: Batch, settings: TrainSettings = SETTINGS) -> tuple[Tensor, int]:
    """The step's sums, and how many bytes were kept for its backward passes."""
    kept = 0

    def keep(values: Tensor) -> Tensor:
        nonlocal kept
        kept += values.numel() * values.element_size()
        return values

    sums, fast = StepSums(model, settings), FastCopy(model, settings, (1, 6, 6))
    called = torch.compile(model) if settings.compile else model
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda values: values):
        add_microbatch(called, sums, batch, settings, Moment(0, 0), 0, CLASSES, fast=fast)  # type: ignore[arg-type]
    return sums.flat, kept


@pytest.mark.parametrize("block", list(Block))
@pytest.mark.parametrize("unroll", [None, 2])
@pytest.mark.parametrize("objective", list(Objective))
def test_recomputed_activations_give_the_same_bits_and_are_not_kept(
    objective: Objective,
    unroll: int | None,
    block: Block,
    tiny_model: Models,
    tiny_batch: Batches,
) -> None:
    settings = replace(SETTINGS, objective=objective)
    model, lean = (tiny_model(unroll, block=block) for _ in range(2))
    recompute_blocks(lean)
    (whole, much), (again, less) = (summed(m, tiny_batch(8), settings) for m in (model, lean))
    assert torch.equal(again, whole)
    assert whole[0].count_nonzero() > 1000
    assert less < much


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_compiled_step_computes_the_same_up_to_rounding(
    tiny_model: Models, tiny_batch: Batches
) -> None:
    compiled = replace(SETTINGS, compile=True)
    ends = [summed(tiny_model(2), tiny_batch(8), s)[0].sum(0) for s in (SETTINGS, compiled)]
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-5)
