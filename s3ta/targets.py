"""Which class an attack wants for each image, and which one its loss is led to.

N images of a batch, B of a part of it, C classes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from s3ta.batch import Batch, Conditions, draw_targets
from s3ta.records import NO_TARGET
from s3ta.settings import Goal
from s3ta.trajectory import Trajectory, require_classes

Classes = npt.NDArray[np.int64]


@dataclass
class Targets:
    """Of all images of a batch; those that rest on the model's clean answers come with these."""

    targets_N: Classes
    """A success is to be taken for this class; NO_TARGET where any wrong class is one."""
    towards_N: Classes
    """The loss is led to this class; NO_TARGET where it only leads away from the label."""

    def of_clean(self, goal: Goal, rank: int, start: int, logits_BC: Tensor, batch: Batch) -> None:
        """Fill in what rests on these logits, of the images from `start` on."""
        if goal not in (Goal.least_likely_target, Goal.likeliest):
            return
        stop = start + len(batch)
        wrong_BC = logits_BC.scatter(
            1, torch.from_numpy(batch.labels_B).to(logits_BC.device)[:, None], -torch.inf
        )
        # Stable, so that equal logits mean the lower class everywhere.
        order_BC = wrong_BC.argsort(dim=1, descending=True, stable=True)
        place = rank - 1 if goal is Goal.likeliest else logits_BC.shape[1] - 2
        self.towards_N[start:stop] = order_BC[:, place].cpu().numpy()
        if goal.targeted:
            self.targets_N[start:stop] = self.towards_N[start:stop]


def targets_of(batch: Batch, trajectory: Trajectory, conditions: Conditions) -> Targets:
    """What is known before the model was asked; UserError if there are too few classes."""
    goal, classes = trajectory.goal, conditions.classes
    require_classes(trajectory, classes)
    none_N = np.full(len(batch), NO_TARGET, np.int64)
    if goal is Goal.random_target:
        drawn_N = draw_targets(batch, conditions.seed, classes)
        return Targets(drawn_N, drawn_N)
    if goal is Goal.given_target:
        given_N = np.array(trajectory.target_of_label, np.int64)[batch.labels_B]
        return Targets(given_N, given_N)
    return Targets(none_N, none_N.copy())
