"""How much memory a model takes while it trains and while it is attacked, from its layers' shapes.

Counted are weights, gradients, sums, momentum and what the forward pass keeps for its gradient; not
what kernels need for themselves, nor an allocator's rounding, nor the program (0.5 GB on a CPU).
Held against what torch keeps, what is kept is within a fifth (test_memory.py); on a GPU expect a
quarter to a half more in all.
"""

from s3ta.cost import held_numbers
from s3ta.settings import Dtype, Gradient
from s3ta.trajectory import trajectories
from s3ta_platform.work import TrialWork

FLOAT32, FLOAT64 = 4, 8


def training_bytes(work: TrialWork) -> int:
    """At the peak of a training step: in the update or in the attack before it."""
    train = work.experiment.train
    held = held_numbers(work.experiment.model, work.size, work.classes)
    exact = 2 * FLOAT64 if train.adds_exactly else FLOAT32
    # Weights, their folded copy for the attack, gradients, momentum, and the sums.
    fixed = work.cost.parameters * (4 * FLOAT32 + exact)
    update = 2 * held.convolutions
    if train.recompute:
        update = held.blocks + 2 * held.largest_block
    # The attack's copy, whose BatchNorms are folded, recomputes nothing.
    kept = max(update, held.convolutions) + held.attention
    return fixed + train.microbatch * kept * _width(train.dtype)


def attack_bytes(work: TrialWork) -> int:
    """While a tile of images is attacked; the judge and its fast copy are both in memory."""
    evaluate = work.experiment.evaluate
    held = held_numbers(work.experiment.model, work.size, work.classes)
    fixed = 2 * work.cost.parameters * FLOAT32
    runs = [run for attack in evaluate.attacks.values() for run in trajectories(attack)]
    if all(run.gradient is Gradient.spsa for run in runs):
        kept = held.largest_block + held.attention  # nothing is kept for a gradient
    else:
        kept = held.convolutions + held.attention  # BatchNorm is folded into the convolutions
    return fixed + evaluate.tile * kept * _width(evaluate.engine.dtype)


def _width(dtype: Dtype) -> int:
    return 2 if dtype is Dtype.bfloat16 else FLOAT32
