"""The first step at which an attack hit, as the judge sees it.

The fast copy says at every step whether it is hit; the judge is asked about the first such point of
each image, not at once but at the image's next check. If it disagrees (the point lies within
rounding of the border), the image is open again. B images of a tile.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from s3ta.batch import on_device
from s3ta.tally import Array

NEVER = -1

Mask = npt.NDArray[np.bool_]


class Hits:
    """First hits of one kind (an error, or the target) for the slots of a tile."""

    def __init__(self, images: Tensor) -> None:
        tile = len(images)
        self.first_B = np.full(tile, NEVER, np.int32)
        """Confirmed by the judge; NEVER so far."""
        self.open_B = torch.ones(tile, dtype=torch.bool, device=images.device)
        """Neither confirmed nor waiting for the judge."""
        self.step_B = torch.full((tile,), NEVER, dtype=torch.int32, device=images.device)
        self.points = torch.zeros_like(images)
        """Where each was last hit, confirmed or not."""
        self.predictions_B = torch.zeros(tile, dtype=torch.int64, device=images.device)
        """What the fast copy said there."""

    def note(self, hit_B: Tensor, predictions_B: Tensor, steps_B: Tensor, attacked: Tensor) -> None:
        """Keep the point of those that are hit for the first time since their last check."""
        new_B = hit_B & self.open_B
        # On an accelerator asking costs more than copying.
        if not new_B.is_cuda and not bool(new_B.any()):
            return
        self.open_B &= ~new_B
        self.step_B = torch.where(new_B, steps_B, self.step_B)
        self.predictions_B = torch.where(new_B, predictions_B, self.predictions_B)
        self.points = torch.where(new_B.view(-1, 1, 1, 1), attacked, self.points)

    def waiting(self, due_B: Mask) -> Mask:
        """Who of these waits for the judge."""
        waiting_B: Mask = due_B & (self.step_B.cpu().numpy() != NEVER)
        return waiting_B

    def settle(self, waiting_B: Mask, judged_B: Mask) -> None:
        """What the judge says of the waiting ones."""
        hit_B = waiting_B & judged_B
        self.first_B[hit_B] = self.step_B.cpu().numpy()[hit_B]
        self._set(self.open_B, waiting_B & ~hit_B, True)
        self._set(self.step_B, waiting_B, NEVER)

    def found(self, hit_B: Mask, steps_B: npt.NDArray[np.int32]) -> None:
        """The judge itself saw these hit at their present step."""
        new_B = hit_B & (self.first_B == NEVER)
        self.first_B[new_B] = steps_B[new_B]
        self._set(self.open_B, new_B, False)

    def clear(self, slots: npt.NDArray[np.int64]) -> None:
        """These slots get new images."""
        self.first_B[slots] = NEVER
        self._set(self.open_B, slots, True)
        self._set(self.step_B, slots, NEVER)

    def _set(self, tensor_B: Tensor, slots: Array, value: int) -> None:
        tensor_B[on_device(slots, tensor_B.device)] = value

    def state(self) -> dict[str, Array]:
        """Everything, for a saved state."""
        return {
            "first_B": self.first_B.copy(),
            "open_B": self.open_B.cpu().numpy().copy(),
            "step_B": self.step_B.cpu().numpy().copy(),
            "predictions_B": self.predictions_B.cpu().numpy().copy(),
            "points": self.points.cpu().contiguous().numpy().copy(),
        }

    def restore(self, state: dict[str, Array]) -> None:
        """Go back to a saved state."""
        device = self.open_B.device
        self.first_B = state["first_B"].copy()
        self.open_B = torch.from_numpy(state["open_B"].copy()).to(device)
        self.step_B = torch.from_numpy(state["step_B"].copy()).to(device)
        self.predictions_B = torch.from_numpy(state["predictions_B"].copy()).to(device)
        self.points.copy_(torch.from_numpy(state["points"]))
