"""The attack on the images that are in a tile's slots: where they are, what is seen, what is next.

B slots of the tile.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from s3ta.apgd import APGD
from s3ta.attacks import Look, look, look_only
from s3ta.batch import Batch, Conditions, on_device, to_unit
from s3ta.corners import Corners
from s3ta.draws import Key, Purpose
from s3ta.engine import Engine
from s3ta.fab import FAB
from s3ta.hits import Mask
from s3ta.objective import attack_loss
from s3ta.records import NO_TARGET
from s3ta.settings import Gradient
from s3ta.settings import Rule as Name
from s3ta.spsa import look_around
from s3ta.square import Square
from s3ta.steps import Adam, Around, Rule, Sign
from s3ta.tally import Rows
from s3ta.targets import Targets
from s3ta.threat import LinfBall
from s3ta.trajectory import SEARCHES, Trajectory
from s3ta.views import losses_of

Ints = npt.NDArray[np.int64]
Steps = npt.NDArray[np.int32]


class Tile:
    """Points in the balls around the slots' images, and the step rule's memory of them."""

    around: Around
    targets_B: Tensor
    towards_B: Tensor | None

    def __init__(
        self,
        engine: Engine,
        trajectory: Trajectory,
        conditions: Conditions,
        shape_CHW: tuple[int, ...],
    ) -> None:
        self.engine, self.trajectory, self.seed = engine, trajectory, conditions.seed
        blank = torch.zeros((conditions.tile, *shape_CHW), device=engine.device)
        self.points = blank.to(memory_format=engine.memory)
        self.rule = make_rule(trajectory, self.points, self.seed)

    def take(self, batch: Batch, index_B: Ints, targets: Targets) -> None:
        """These images of a batch are in the slots now; the points stay where they are."""
        device = self.engine.device

        def column(column_N: Ints) -> Tensor:
            return on_device(column_N[index_B], device)

        images = to_unit(batch.images_BCHW[index_B], device).to(memory_format=self.engine.memory)
        labels_B, towards_B = column(batch.labels_B), column(targets.towards_N)
        self.targets_B = column(targets.targets_N)
        ball = LinfBall.around(images, self.trajectory.epsilon)
        self.around = Around(images, ball, batch.image_ids_B[index_B], labels_B)
        led = bool((targets.towards_N != NO_TARGET).any())
        self.towards_B = towards_B if led else None
        self.losses = losses_of(self.engine, self.trajectory, images, labels_B, self.towards_B)

    def start(self, slots: Ints) -> None:
        """Put the images of these slots where their attack begins."""
        index = on_device(slots, self.points.device)
        self.points[index] = self._starts()[index]
        self.rule.begin(index)

    def _starts(self) -> Tensor:
        a = self.around
        if isinstance(self.rule, Square):
            return self.rule.starts(a)
        if self.trajectory.clean_start or isinstance(self.rule, FAB | Corners):
            return a.images
        key = Key(self.seed, Purpose.EVAL_NOISE, epoch=self.trajectory.restart)
        drawn = key.uniform(a.image_ids_B, self.points.shape[1:])
        uniform = on_device(drawn, self.points.device).to(memory_format=self.engine.memory)
        return a.ball.noise_start(a.images, self.trajectory.epsilon, uniform)

    def look(self, steps_B: Steps, moving_B: Mask) -> Look:
        """What is seen of all slots; a gradient only if some are to be moved, at least of these."""
        t = self.trajectory
        if t.gradient is Gradient.spsa:
            slots = np.flatnonzero(moving_B)
            keys = [self._directions(slot, int(steps_B[slot])) for slot in slots.tolist()]
            seen = look_around(self.losses, self.points, slots, keys, t.spsa_pairs, t.spsa_delta)
        elif t.rule in SEARCHES:
            seen = look_only(self.losses, self.points)
        elif moving_B.any():
            seen = look(self.losses, self.points)
        else:  # with a graph all the same: kernels may differ without one
            logits_BC, losses_B = self.losses(self.points, None)
            seen = Look(logits_BC.detach(), losses_B.detach(), None)
        self.rule.observe(self.points, seen, self._on_device(steps_B), self.around)
        return seen

    def _directions(self, slot: int, step: int) -> tuple[Key, int]:
        key = Key(self.seed, Purpose.SPSA, self.trajectory.restart, step)
        return key, int(self.around.image_ids_B[slot])

    def step(self, seen: Look, steps_B: Steps) -> None:
        """Move all points, those of empty slots too."""
        self.rule.move(self.points, seen, self._on_device(steps_B), self.around)

    def result(self) -> Tensor:
        """What the attack returns of every slot if it ends now."""
        return self.rule.result(self.points, self.around)

    def attack_loss(self, logits_BC: Tensor) -> Tensor:
        """Of the attack's own goal, for answers like the deployed model's last one."""
        return attack_loss(self.trajectory.loss, logits_BC, self.around.labels_B, self.towards_B)

    def counting(self, hit_B: Tensor) -> Tensor:
        """Which of these are successes: those of a rule that leaves the ball must be inside."""
        if isinstance(self.rule, FAB):
            return hit_B & self.around.ball.holds(self.points)
        return hit_B

    def _on_device(self, steps_B: Steps) -> Tensor:
        return on_device(steps_B, self.points.device)

    def state(self) -> Rows:
        """Points and the rule's memory, as arrays."""
        tensors = {"attacked": self.points}
        tensors |= {f"rule.{name}": tensor for name, tensor in self.rule.state.items()}
        return {name: t.cpu().contiguous().numpy().copy() for name, t in tensors.items()}

    def restore(self, state: Rows) -> None:
        """Go back to a saved state."""
        self.points.copy_(torch.from_numpy(state["attacked"]))
        for name, tensor in self.rule.state.items():
            tensor.copy_(torch.from_numpy(state[f"rule.{name}"]))


def make_rule(trajectory: Trajectory, blank: Tensor, seed: int) -> Rule:
    """The step rule for a tile that looks like `blank`; `seed` is that of the evaluation."""
    if trajectory.rule is Name.square:
        return Square(trajectory, blank, seed)
    if trajectory.rule is Name.random:
        return Corners(trajectory, blank, seed)
    rules: dict[Name, Callable[[Trajectory, Tensor], Rule]] = {
        Name.sign: Sign,
        Name.adam: Adam,
        Name.apgd: APGD,
        Name.fab: FAB,
    }
    return rules[trajectory.rule](trajectory, blank)
