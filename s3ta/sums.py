"""Sums over the microbatches of a step: the same bits in whatever order, by however many workers.

Adding floating-point numbers in another order gives another last bit, and signed attack steps
amplify one bit to another training run within a few steps. Float64 alone only makes that rare: two
terms of 24 bits whose exponents differ by 30 don't fit into 53. So in the exact mode every term is
cut in two at fixed places, which no order of additions can round:

    coarse  the multiple of 2^-16 next to it. Terms are below 2^25, at most 2^12 of them are added,
            so all partial sums are multiples of 2^-16 below 2^37, and 53 bits hold them exactly.
    fine    what is left, at most 2^-17, as a multiple of 2^-58: partial sums stay below 2^-5, and
            53 bits hold them exactly.

What is lost is below 2^-59 (2e-18) a term. A larger term than 2^25 (3e7) counts as not finite.

Since no order shows, adding up can begin early: in the backward pass of a worker's last microbatch
each part of its sums leaves as soon as the gradients of its layers are there, while those of the
layers below are still being computed.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from s3ta.settings import Sums, TrainSettings
from s3ta.vision import batchnorms

LIMIT = 2.0**25
TO_COARSE = 1.5 * 2.0 ** (52 - 16)
"""Adding it to a float64 and taking it away again leaves the nearest multiple of 2^-16."""
TO_FINE = 1.5 * 2.0 ** (52 - 58)
IN_CACHE = 2**16
"""So many numbers at a time pass through a processor's cache, not through its memory."""
PART = 2**18
"""A part that leaves by itself has at least so many numbers: 4 MB in the exact mode."""
WISHES = 2
"""Kinds of wishes that workers can have; this file need not know which."""


@dataclass(frozen=True)
class StepReport:
    """What one step over the whole batch saw."""

    loss: float
    """Mean of what training minimises, smoothed as configured."""
    adversarial_top1: float
    """Share of the images classified rightly, in training mode: attacked as far as the objective
    attacks them, so clean ones for plain, and those of its search for llr."""
    not_finite: tuple[int, ...] = ()
    """Places of the microbatches whose loss, gradient or statistics are not finite: no update."""
    wishes: tuple[int, ...] = (0, 0)
    """How many workers have wished for each thing."""


@dataclass(frozen=True)
class Part:
    """Neighbouring parameters, by their places, and the columns of their gradients in the sums."""

    places: list[int]
    columns: slice


Send = Callable[[Tensor], None]
"""Takes a part of the sums (rows, columns) that nothing more will be added to."""


class StepSums:
    """Sums over microbatches, in one flat buffer that workers can add up.

    Order: gradients of all parameters, means and variances of all BatchNorms, loss, correct images;
    then for each microbatch whether it is not finite, and the workers' wishes of two kinds. In the
    exact mode two rows of float64, coarse and fine; in the fast mode one row of float32, whose last
    bits depend on the order of additions.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings) -> None:
        self.parameters = list(model.parameters())
        self.norms = list(batchnorms(model))
        self.settings = settings
        self.gradients = sum(p.numel() for p in self.parameters)
        self.terms = self.gradients + sum(2 * n.num_features for n in self.norms) + 2
        exact = settings.sums is Sums.exact
        self.flat = torch.zeros(
            (2 if exact else 1, self.terms + settings.microbatches + WISHES),
            dtype=torch.float64 if exact else torch.float32,
            device=self.parameters[0].device,
        )

    def reset(self) -> None:
        self.flat.zero_()

    def add(self, index: int, loss: Tensor, correct: Tensor, send: Send | None = None) -> None:
        """Differentiate the loss of the microbatch at this place of the step, and add that.

        `send` is for a worker's last microbatch: it is given each part of the gradients' sums while
        the backward pass goes on. The rest, `flat[:, gradients:]`, is then still to be sent.
        """
        # Before the backward pass, which may compute blocks again.
        rest = [statistic for norm in self.norms for statistic in norm.seen or ()]
        rest += [loss.detach().reshape(1), correct.reshape(1).to(loss.dtype)]
        if send is None:
            gradients = torch.autograd.grad(loss, self.parameters)
            self._add(index, 0, [*gradients, *rest])
        else:
            self._add(index, self.gradients, rest)
            self._send_as_they_come(index, loss, send)

    def parts(self) -> list[Part]:
        """All gradients, from the last layers', which are there first, to the first layers'."""
        parts, places, columns = [], [], slice(self.gradients, self.gradients)
        for place in reversed(range(len(self.parameters))):
            places.append(place)
            columns = slice(columns.start - self.parameters[place].numel(), columns.stop)
            if place == 0 or columns.stop - columns.start >= PART:
                parts.append(Part(places[::-1], columns))
                places, columns = [], slice(columns.start, columns.start)
        return parts

    def _send_as_they_come(self, index: int, loss: Tensor, send: Send) -> None:
        todo, there = self.parts(), dict[int, Tensor]()

        def arrive(place: int, gradient: Tensor) -> None:
            there[place] = gradient
            # In the same order on every worker, whichever came first.
            while todo and all(place in there for place in todo[0].places):
                part = todo.pop(0)
                self._add(index, part.columns.start, [there.pop(at) for at in part.places])
                send(self.flat[:, part.columns])

        hooks = [
            p.register_hook(partial(arrive, at))  # type: ignore[no-untyped-call]
            for at, p in enumerate(self.parameters)
        ]
        try:
            torch.autograd.grad(loss, self.parameters)
        finally:
            for hook in hooks:
                hook.remove()

    def _add(self, index: int, start: int, tensors: Iterable[Tensor]) -> None:
        """Add a microbatch's numbers to the columns that begin there."""
        terms = torch.cat([tensor.reshape(-1) for tensor in tensors])
        columns = self.flat[:, start : start + len(terms)]
        # Nothing waits for the device here. A NaN is not below the limit either.
        self.flat[0, self.terms + index] += ~(terms.abs().amax() < LIMIT)
        if self.settings.sums is Sums.fast:
            columns += terms
            return
        piece = IN_CACHE if terms.device.type == "cpu" else len(terms)
        sums = torch.split(columns, piece, dim=1)
        for part, (coarse_sum, fine_sum) in zip(torch.split(terms, piece), sums, strict=True):
            fine = part.to(self.flat.dtype, copy=True)
            coarse = (fine + TO_COARSE).sub_(TO_COARSE)
            coarse_sum.add_(coarse)
            fine_sum.add_(fine.sub_(coarse).add_(TO_FINE).sub_(TO_FINE))

    def mark(self, index: int) -> None:
        """Count the microbatch at this place as not finite."""
        self.flat[0, self.terms + index] += 1

    def wish(self, kind: int) -> None:
        """Let all workers know, with the sum and at no further cost, that this one wants that."""
        self.flat[0, kind - WISHES] += 1

    def report(self) -> StepReport:
        """What the step saw, once all workers' buffers are added up. Waits for the device."""
        loss, correct, *rest = self.flat[:, self.terms - 2 :].double().sum(0).tolist()
        marks, wishes = rest[:-WISHES], rest[-WISHES:]
        return StepReport(
            loss / self.settings.microbatches,
            correct / self.settings.batch,
            tuple(index for index, mark in enumerate(marks) if mark),
            tuple(map(round, wishes)),
        )

    def apply(self) -> StepReport:
        """Put the mean gradient into `.grad`, update the running statistics, report."""
        mean = self.flat[:, : self.terms].sum(0).div_(self.settings.microbatches)
        mean = mean.to(self.parameters[0].dtype)
        at = 0
        for p in self.parameters:
            p.grad = mean[at : at + p.numel()].view_as(p)
            at += p.numel()
        for norm in self.norms:
            for running in (norm.running_mean, norm.running_var):
                assert running is not None
                seen = mean[at : at + norm.num_features]
                running.lerp_(seen, 1 - self.settings.batchnorm_decay)
                at += norm.num_features
        return self.report()
