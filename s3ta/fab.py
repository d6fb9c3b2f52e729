"""FAB-T (Croce and Hein 2020): the shortest way over the border to one class, then back towards it.

Each step looks at the linearised border between the label and the class t that the run is led to,
and goes a little beyond the nearest point on it, drawn towards the image. From a point that is
misclassified it first returns most of the way. The constants are those of the authors' code in
AutoAttack; there an iteration looks twice, here every look is a step, so 100 iterations are at
most 200 steps. It starts at the image. Its points may lie outside the ball: only those inside count
as successes. D numbers of an image.
"""

import torch
from torch import Tensor

from s3ta.attacks import Look
from s3ta.steps import Around
from s3ta.threat import nearest_on_plane
from s3ta.trajectory import Trajectory

BEYOND = 1.05
"""Of the way to the border: a bit more, to cross it."""
PULL = 0.1
"""The image's own nearest point on the border gets at most this weight."""
RETURN = 0.9
"""A misclassified point keeps this share of its distance to the image."""


class FAB:
    """One run; its result is the nearest misclassified point, or where it got."""

    def __init__(self, trajectory: Trajectory, blank: Tensor) -> None:
        flags_B = torch.zeros(len(blank), dtype=torch.bool, device=blank.device)
        distance_B = torch.zeros(len(blank), device=blank.device)
        self.state = {
            "best": torch.zeros_like(blank),
            "distance": distance_B,
            "over": flags_B.clone(),
            "returned": flags_B.clone(),
        }

    def begin(self, slots: Tensor) -> None:
        self.state["distance"][slots] = torch.inf
        self.state["returned"][slots] = False

    def observe(self, points: Tensor, seen: Look, steps_B: Tensor, around: Around) -> None:
        s = self.state
        s["over"] = seen.logits_BC.argmax(dim=1) != around.labels_B
        distance_B = (points - around.images).abs().flatten(1).amax(dim=1)
        better_B = s["over"] & (distance_B < s["distance"])
        s["distance"] = torch.where(better_B, distance_B, s["distance"])
        s["best"] = torch.where(better_B.view(-1, 1, 1, 1), points, s["best"])

    def move(self, points: Tensor, seen: Look, steps_B: Tensor, around: Around) -> None:
        assert seen.gradient is not None
        returning_B = self.state["over"] & ~self.state["returned"]
        self.state["returned"] = returning_B
        nearer = around.images + RETURN * (points - around.images)
        crossed = self._cross(points, seen.losses_B, seen.gradient, around.images)
        points.copy_(torch.where(returning_B.view(-1, 1, 1, 1), nearer, crossed))

    def _cross(self, points: Tensor, losses_B: Tensor, gradient: Tensor, images: Tensor) -> Tensor:
        """From here, and from the image, over the plane where the linearised loss is 0."""
        shape, x_BD = points.shape, points.flatten(1)
        normal_BD, image_BD = gradient.flatten(1), images.flatten(1)
        offset_B = (normal_BD * x_BD).sum(dim=1) - losses_B
        here_BD = nearest_on_plane(x_BD, normal_BD, offset_B) - x_BD
        there_BD = nearest_on_plane(image_BD, normal_BD, offset_B) - image_BD
        near_B1, far_B1 = (d.abs().amax(1, keepdim=True).clamp(1e-8) for d in (here_BD, there_BD))
        pull_B1 = (near_B1 / (near_B1 + far_B1)).clamp(max=PULL)
        moved_BD = (x_BD + BEYOND * here_BD) * (1 - pull_B1)
        moved_BD += (image_BD + BEYOND * there_BD) * pull_B1
        return moved_BD.clamp(0, 1).view(shape)

    def result(self, points: Tensor, around: Around) -> Tensor:
        found = torch.isfinite(self.state["distance"]).view(-1, 1, 1, 1)
        return around.ball.project(torch.where(found, self.state["best"], points))
