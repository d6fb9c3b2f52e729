"""What an attacker may do: an L-infinity ball around each image, within the image range [0, 1]."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinfBall:
    """All x with |x - image| <= epsilon and 0 <= x <= 1, given by its corners."""

    low: Tensor
    high: Tensor

    @classmethod
    def around(cls, images: Tensor, epsilon: float) -> "LinfBall":
        """`images` in [0, 1]; epsilon in the same units."""
        return cls((images - epsilon).clamp(min=0.0), (images + epsilon).clamp(max=1.0))

    def project(self, x: Tensor) -> Tensor:
        """The nearest point of the ball."""
        return torch.clamp(x, self.low, self.high)

    def project_(self, x: Tensor) -> None:
        """The same, in place."""
        torch.clamp(x, self.low, self.high, out=x)

    def noise_start(self, images: Tensor, epsilon: float, uniform: Tensor) -> Tensor:
        """A start uniform in the ball, clipped to the image range; `uniform` is drawn on [0, 1).

        A listed deviation: [55] clips only after the first gradient.
        """
        return self.project(images + (2 * uniform - 1) * epsilon)

    def holds(self, x: Tensor) -> Tensor:
        """Per point (B,), whether it is in the ball."""
        return ((x >= self.low) & (x <= self.high)).flatten(1).all(dim=1)


def nearest_on_plane(points_BD: Tensor, normals_BD: Tensor, offsets_B: Tensor) -> Tensor:
    """The points of [0, 1]^D with w x = b that are nearest to these in the maximum norm.

    Where the plane misses the cube, the cube's corner that is nearest to the plane. All coordinates
    move by the same t, or to the end of their room: sum |w_i| min(t, room_i) is the gap to close,
    which rises with t and is linear between the sorted rooms.
    """
    gap_B1 = offsets_B[:, None] - (normals_BD * points_BD).sum(dim=1, keepdim=True)
    towards_BD = normals_BD.sign() * torch.where(gap_B1 >= 0, 1.0, -1.0)
    room_BD = torch.where(towards_BD > 0, 1 - points_BD, points_BD)
    order_BD = room_BD.argsort(dim=1)
    rooms_BD, weights_BD = room_BD.gather(1, order_BD), normals_BD.abs().gather(1, order_BD)
    left_BD = weights_BD.flip(1).cumsum(dim=1).flip(1)  # weights of those not at their end yet
    closed_BD = (weights_BD * rooms_BD).cumsum(dim=1) - weights_BD * rooms_BD + left_BD * rooms_BD
    # The first that comes to its end after the gap is closed; the last where that never happens.
    first_B1 = (closed_BD < gap_B1.abs()).sum(dim=1, keepdim=True).clamp(max=rooms_BD.shape[1] - 1)
    too_much_B1 = closed_BD.gather(1, first_B1) - gap_B1.abs()
    per_t_B1 = left_BD.gather(1, first_B1).clamp(min=torch.finfo(points_BD.dtype).tiny)
    t_B1 = rooms_BD.gather(1, first_B1) - too_much_B1.clamp(min=0) / per_t_B1
    return points_BD + towards_BD * torch.minimum(t_B1.clamp(min=0), room_BD)
