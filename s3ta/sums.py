"""Sums over the microbatches of a step: the same bits in whatever order, by however many workers.

Adding floating-point numbers in another order gives another last bit, and signed attack steps
amplify one bit to another training run within a few steps. Float64 alone only makes that rare: two
terms of 24 bits whose exponents differ by 30 don't fit into 53. So in the exact mode every term is
cut in two at fixed places, which no order of additions can round:

    coarse  the multiple of 2^-16 next to it. Terms are below 2^25, at most 2^12 of them are added,
            so all partial sums are multiples of 2^-16 below 2^37, and 53 bits hold them exactly.
    fine    what is left, at most 2^-17, as a multiple of 2^-58: partial sums stay below 2^-5, and
            53 bits hold them exactly.

What is lost is below 2^-59 (2e-18) a term. A larger term than 2^25 (3e7) counts as not finite. A
step of one microbatch adds nothing up: its terms lose as much, but are not kept in two.

Since no order shows, adding up can begin early: in the backward pass of a worker's last microbatch
each part of its sums leaves as soon as the gradients of its layers are there, while those of the
layers below are still being computed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor, nn

from s3ta.settings import Sums, TrainSettings
from s3ta.vision import batchnorms

LIMIT = 2.0**25
TO_COARSE = 1.5 * 2.0 ** (52 - 16)
"""Adding it to a float64 and taking it away again leaves the nearest multiple of 2^-16."""
TO_FINE = 1.5 * 2.0 ** (52 - 58)
PIECE, PIECE_ON_GPU = 2**15, 2**22
"""So many numbers at a time, with what is made of them, stay in a processor's cache. On a GPU, so
many that few kernels are launched."""
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

    Order: gradients of all parameters, each as its parameter lies in memory; means and variances of
    all BatchNorms, loss, correct images; then for each microbatch whether it is not finite, and the
    workers' wishes of two kinds. In the exact mode two rows of float64, coarse and fine; for one
    microbatch, and in the fast mode, in which the last bits depend on the order of additions, one
    row of the weights' dtype.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings) -> None:
        self.parameters = list(model.parameters())
        self.norms = list(batchnorms(model))
        self.settings = settings
        self.gradients = sum(p.numel() for p in self.parameters)
        self.terms = self.gradients + sum(2 * n.num_features for n in self.norms) + 2
        first, exactly = self.parameters[0], settings.adds_exactly
        self.flat = torch.zeros(
            (2 if exactly else 1, self.terms + settings.microbatches + WISHES),
            dtype=torch.float64 if exactly else first.dtype,
            device=first.device,
        )
        self.empty = True
        """Whether no microbatch has been added in this step."""
        self.single = (
            self.flat[0, : self.terms]
            if settings.microbatches == 1
            else torch.empty(self.terms, dtype=first.dtype, device=first.device)
        )
        """One microbatch's numbers; in the end their means. They are the sums, too, of only one."""
        self.slots = self._slots()
        self.piece = PIECE if first.device.type == "cpu" else PIECE_ON_GPU
        self.scratch = torch.empty(
            (2, min(self.piece, self.terms)), dtype=torch.float64, device=first.device
        )

    def _slots(self) -> list[Tensor]:
        """Where in `single` each tensor's numbers have their place, in the same order.

        A gradient's slot has the strides of its parameter: nothing is permuted on the way.
        """
        like: list[Tensor] = [*self.parameters]
        for norm in self.norms:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            like += [norm.running_mean, norm.running_var]
        like += [self.single[:1]] * 2
        starts = accumulate((t.numel() for t in like), initial=0)
        return [
            self.single.as_strided(t.size(), t.stride(), at)
            for t, at in zip(like, starts, strict=False)
        ]

    def reset(self) -> None:
        """Begin a step. Its first microbatch's gradients take the place of what is there."""
        self.empty = True
        self.flat[:, self.gradients :].zero_()

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
            self._add(index, [*gradients, *rest], self.slots)
        else:
            self._add(index, rest, self.slots[len(self.parameters) :])
            self._send_as_they_come(index, loss, send)
        self.empty = False

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
                gradients = [there.pop(at) for at in part.places]
                self._add(index, gradients, [self.slots[at] for at in part.places])
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

    def _add(self, index: int, tensors: list[Tensor], slots: list[Tensor]) -> None:
        """Add a microbatch's numbers; these are their slots, which are neighbours."""
        for slot, tensor in zip(slots, tensors, strict=True):
            slot.copy_(tensor)
        start = int(slots[0].storage_offset())
        stop = start + sum(map(Tensor.numel, slots))
        # Nothing waits for the device here. A NaN is neither above nor below.
        low, high = self.single[start:stop].aminmax()
        self.flat[0, self.terms + index] += ~((low > -LIMIT) & (high < LIMIT))
        add_ = Tensor.copy_ if self.empty else Tensor.add_
        # Nothing is allocated either: new memory is in no cache.
        for terms, columns in self._pieces(start, stop):
            if self.settings.sums is Sums.fast:
                add_(columns[0], terms)
                continue
            coarse, fine = rows = self.scratch[:, : len(terms)]
            fine.copy_(terms)
            torch.add(fine, TO_COARSE, out=coarse).sub_(TO_COARSE)
            fine.sub_(coarse).add_(TO_FINE).sub_(TO_FINE)
            if len(columns) == 1:
                columns[0].copy_(coarse.add_(fine))
            else:
                add_(columns, rows)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """These columns of `single` and of the sums, as many at a time as are quick."""
        pieces = torch.split(self.single[start:stop], self.piece)
        columns = torch.split(self.flat[:, start:stop], self.piece, dim=1)
        return zip(pieces, columns, strict=True)

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
        """Put the mean gradient into `.grad`, update the running statistics, report.

        `.grad` is memory of these sums: it holds until the next microbatch is added.
        """
        assert not self.empty
        several = self.settings.microbatches > 1
        for mean, columns in self._pieces(0, self.terms) if several else ():
            if len(columns) == 1:
                torch.div(columns[0], self.settings.microbatches, out=mean)
            else:  # not sum(0), which is slow along so short an axis
                total = torch.add(*columns, out=self.scratch[0, : len(mean)])
                mean.copy_(total.div_(self.settings.microbatches))
        slots = iter(self.slots)
        for p in self.parameters:
            p.grad = next(slots)
        for norm in self.norms:
            for running in (norm.running_mean, norm.running_var):
                assert running is not None
                running.lerp_(next(slots), 1 - self.settings.batchnorm_decay)
        return self.report()
