"""Attack a batch of images, in tiles -> one record per image and reading.

A tile has a fixed number of slots, because kernels may round differently for other batch sizes and
a signed step turns the last bit into another image. Empty slots are computed and thrown away. The
run can be saved after any step and continued elsewhere, bit for bit.

B slots of a tile, N images of the batch, R readings of the trajectory.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from s3ta.batch import Batch, Conditions, on_device, to_unit
from s3ta.engine import Engine
from s3ta.hits import NEVER, Hits, Mask
from s3ta.objective import margin
from s3ta.records import Records, Steps
from s3ta.tally import Array, Rows
from s3ta.targets import targets_of
from s3ta.tile import Tile
from s3ta.trajectory import Trajectory

EMPTY = -1
CHECK_EVERY = 16
"""Steps between two questions to the judge about first hits. A part of every result."""

OnStep = Callable[["AttackRun"], None]


def attack_images(
    engine: Engine,
    batch: Batch,
    trajectory: Trajectory,
    conditions: Conditions,
    on_step: OnStep | None = None,
) -> Rows:
    """Per-example records of one trajectory, ordered by image and, within it, by step."""
    return AttackRun(engine, batch, trajectory, conditions).run(on_step)


class AttackRun:
    """One trajectory on all images of a batch. Slots take images in order as they become free."""

    def __init__(
        self,
        engine: Engine,
        batch: Batch,
        trajectory: Trajectory,
        conditions: Conditions,
        *,
        keep_attacked: bool = False,
    ) -> None:
        if len(batch) == 0:
            raise ValueError("there are no images to attack: give at least one")
        self.engine, self.batch, self.trajectory = engine, batch, trajectory
        self.conditions, tile = conditions, conditions.tile
        self.targeted = trajectory.goal.targeted
        self.targets = targets_of(batch, trajectory, conditions)
        self.records = Records(batch, self.targets.targets_N, trajectory)
        self.attacked_NCHW = (
            np.zeros(batch.images_BCHW.shape, np.float32) if keep_attacked else None
        )
        """Where each image ended up, if asked for."""
        self.slots_B = np.full(tile, EMPTY, np.int64)
        """The place in the batch of the image in each slot."""
        self.steps_B = np.zeros(tile, np.int32)
        self.tick = self.next = 0
        self.tile = Tile(engine, trajectory, conditions, batch.images_BCHW.shape[1:])
        self.error, self.target = Hits(self.tile.points), Hits(self.tile.points)
        self._take_images()

    @property
    def total(self) -> int:
        """Steps of all images."""
        return len(self.batch) * self.trajectory.steps

    @property
    def done(self) -> int:
        """Steps that are behind, where an image that was solved early counts in full."""
        active_B = self.slots_B != EMPTY
        behind = (self.next - int(active_B.sum())) * self.trajectory.steps
        return behind + int(self.steps_B[active_B].sum())

    def run(self, on_step: OnStep | None = None) -> Rows:
        """Go on to the end; `on_step` is called after every step of the tile."""
        if not self.records.clean_known:
            self._judge_clean_images()
        while True:
            if self.tick % CHECK_EVERY == 0:
                self._settle(self.slots_B != EMPTY)
                self._fill()
            if not (self.slots_B != EMPTY).any():
                return self.records.rows()
            self._advance()
            if on_step is not None:
                on_step(self)

    def _judge_clean_images(self) -> None:
        trajectory = self.trajectory
        for start in range(0, len(self.batch), self.conditions.tile):
            part = self.batch.part(start, start + self.conditions.tile)
            images = to_unit(part.images_BCHW, self.engine.device)
            logits_BC = self.engine.judged(self._padded(images))[: len(part)]
            clean_B = logits_BC.argmax(dim=1).cpu().numpy()
            self.records.clean_N[start : start + len(part)] = clean_B
            self.targets.of_clean(trajectory.goal, trajectory.rank, start, logits_BC, part)

    def _padded(self, images: Tensor) -> Tensor:
        padding = images.new_zeros(self.conditions.tile - len(images), *images.shape[1:])
        return torch.cat([images, padding])

    def _fill(self) -> None:
        """Put the next images into the free slots.

        All slots are at a check now, so every image is checked at the same steps of its own,
        whenever it enters.
        """
        free = np.flatnonzero(self.slots_B == EMPTY)[: len(self.batch) - self.next]
        if len(free) == 0:
            return
        self.slots_B[free] = np.arange(self.next, self.next + len(free))
        self.steps_B[free] = 0
        self.next += len(free)
        self._take_images()
        self.tile.start(free)
        for hits in (self.error, self.target):
            hits.clear(free)

    def _take_images(self) -> None:
        """Build the attack around the images that are in the slots; empty slots hold the first."""
        self.tile.take(self.batch, np.maximum(self.slots_B, 0), self.targets)

    def _advance(self) -> None:
        """Look at all slots where they are, take the readings that are due, take one step."""
        active_B = self.slots_B != EMPTY
        ended_B = active_B & (self.steps_B == self.trajectory.steps)
        moving_B = active_B & ~ended_B
        seen = self.tile.look(self.steps_B, moving_B)
        predictions_B = seen.logits_BC.argmax(dim=1)
        self._note(predictions_B)
        reading_B = active_B & np.isin(self.steps_B, self.trajectory.readings)
        if (due_B := reading_B | ended_B).any():
            self._settle(due_B)
            left_B = due_B & (self.slots_B != EMPTY)
            if left_B.any():
                self._read_results(left_B, predictions_B)
            self._leave(ended_B)
        if moving_B.any():
            self.tile.step(seen, self.steps_B)
        self.steps_B[self.slots_B != EMPTY] += 1
        self.tick = 0 if (self.slots_B == EMPTY).all() else self.tick + 1

    def _read_results(self, slots_B: Mask, predictions_B: Tensor) -> None:
        points = self.tile.result()
        if points is not self.tile.points:
            predictions_B = self.engine.logits(points).detach().argmax(dim=1)
        self._read(slots_B, points, predictions_B, self.steps_B)

    def _note(self, predictions_B: Tensor) -> None:
        steps_B = on_device(self.steps_B, predictions_B.device)
        for hits, is_hit in self._kinds():
            hit_B = self.tile.counting(is_hit(predictions_B))
            hits.note(hit_B, predictions_B, steps_B, self.tile.points)

    def _kinds(self) -> list[tuple[Hits, Callable[[Tensor], Tensor]]]:
        """Each kind of hit, with the test of predictions for it."""
        error = (self.error, lambda predictions_B: predictions_B != self.tile.around.labels_B)
        target = (self.target, lambda predictions_B: predictions_B == self.tile.targets_B)
        return [error, target] if self.targeted else [error]

    def _settle(self, due_B: Mask) -> None:
        """Ask the judge about first hits; in `until_success` images at their goal leave."""
        for hits, is_hit in self._kinds():
            if (waiting_B := hits.waiting(due_B)).any():
                judged_B = is_hit(self.engine.judged(hits.points).argmax(dim=1))
                hits.settle(waiting_B, judged_B.cpu().numpy())
        # Whoever is at the target is wrong: should the judge have refuted an error just before.
        self.error.found(due_B & (self.target.first_B != NEVER), self.target.first_B)
        solved_B = due_B & self._solved()
        if solved_B.any():
            goal = self._goal()
            self._read(solved_B, goal.points, goal.predictions_B, goal.first_B)

    def _goal(self) -> Hits:
        return self.target if self.targeted else self.error

    def _solved(self) -> Mask:
        if not self.trajectory.until_success:
            return np.zeros(len(self.slots_B), dtype=bool)
        solved_B: Mask = (self.slots_B != EMPTY) & (self._goal().first_B != NEVER)
        return solved_B

    def _read(
        self, slots_B: Mask, points: Tensor, attack_predictions_B: Tensor, steps_B: Steps
    ) -> None:
        """Note what the judge answers at these points, which the slots reached at `steps_B`."""
        logits_BC = self.engine.judged(points)
        predictions_B = logits_BC.argmax(dim=1)
        for hits, is_hit in self._kinds():
            hits.found(slots_B & is_hit(predictions_B).cpu().numpy(), steps_B)
        around, flat = self.tile.around, points.contiguous().flatten(1)
        columns: dict[str, Array] = {
            "prediction": predictions_B.cpu().numpy(),
            "attack_prediction": attack_predictions_B.cpu().numpy(),
            "loss": self.tile.attack_loss(logits_BC).cpu().numpy(),
            "margin": margin(logits_BC, around.labels_B).cpu().numpy(),
            "linf_255": (points - around.images).abs().flatten(1).amax(1).cpu().numpy() * 255,
            "pixel_min": flat.amin(1).cpu().numpy(),
            "pixel_max": flat.amax(1).cpu().numpy(),
            "first_error_step": self.error.first_B,
            "first_target_step": self.target.first_B,
        }
        solved_B = self._solved()
        for slot in np.flatnonzero(slots_B):
            values = {name: column_B[slot] for name, column_B in columns.items()}
            stays = bool(solved_B[slot])  # an image at its goal stays there
            self.records.note(int(self.slots_B[slot]), int(self.steps_B[slot]), values, stays=stays)
        self._leave(slots_B & solved_B, points)

    def _leave(self, slots_B: Mask, points: Tensor | None = None) -> None:
        """Free these slots; their images ended at these points."""
        leaving = np.flatnonzero(slots_B & (self.slots_B != EMPTY))
        if self.attacked_NCHW is not None and len(leaving):
            where = self.tile.result() if points is None else points
            self.attacked_NCHW[self.slots_B[leaving]] = where[leaving].cpu().numpy()
        self.slots_B[leaving] = EMPTY

    def state(self) -> Rows:
        """All that the run needs to be continued, as arrays."""
        arrays = self.records.state()
        for kind, hits in (("error", self.error), ("target", self.target)):
            arrays |= {f"{kind}.{name}": array for name, array in hits.state().items()}
        if self.attacked_NCHW is not None:
            arrays["attacked_NCHW"] = self.attacked_NCHW.copy()
        return {
            **arrays,
            "slots_B": self.slots_B.copy(),
            "steps_B": self.steps_B.copy(),
            **self.tile.state(),
            "targets_N": self.targets.targets_N.copy(),
            "towards_N": self.targets.towards_N.copy(),
            "next_and_tick": np.array([self.next, self.tick]),
        }

    def restore(self, state: Rows) -> None:
        """Go on from a saved state of the same model, images, trajectory and conditions."""
        self.records.restore(state)
        self.slots_B, self.steps_B = state["slots_B"].copy(), state["steps_B"].copy()
        self.next, self.tick = map(int, state["next_and_tick"])
        self.targets.targets_N[:] = state["targets_N"]
        self.targets.towards_N[:] = state["towards_N"]
        self.tile.restore(state)
        if self.attacked_NCHW is not None:
            self.attacked_NCHW[:] = state["attacked_NCHW"]
        for kind, hits in (("error", self.error), ("target", self.target)):
            start = f"{kind}."
            hits.restore(
                {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
            )
        self._take_images()
