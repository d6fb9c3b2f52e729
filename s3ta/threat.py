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
