"""What makes a sweep of an experiment file: what is varied, and which trials may end early."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from s3ta.settings import require


class Best(Enum):
    """Which values of a metric are good ones."""

    max = "max"
    min = "min"


@dataclass(kw_only=True)
class AshaSettings:
    """Asynchronous successive halving (Li et al.): at some epochs, the rungs, the worse trials end.

    A trial goes on if it is among the best 1 / `reduction_factor` of those that were there before.
    """

    metric: str = ""
    """Empty: every trial runs to its end. Else as MLflow has it: `train/loss` or
    `train/adversarial_top1`, the mean of the epoch that ends there; or robust accuracy, such as
    `eval/pgd_targeted_eps16/top1_at_100`: then the model is attacked at each rung."""
    best: Best = Best.max
    grace_epochs: int = 1
    """The first rung; no trial ends before."""
    reduction_factor: int = 4
    """Of trials at a rung, and from a rung's epoch to the next one's."""
    images: int | None = None
    """Attack only so many at a rung, the first of `evaluate.images`; all of them by default."""

    def __post_init__(self) -> None:
        name = "sweep.asha"
        require(self.grace_epochs >= 1, f"{name}.grace_epochs", self.grace_epochs, "at least 1")
        factor = self.reduction_factor
        require(factor >= 2, f"{name}.reduction_factor", factor, "at least 2")
        good = self.images is None or self.images >= 1
        require(good, f"{name}.images", self.images, "at least 1, or null")


@dataclass(kw_only=True)
class SweepSettings:
    """What is varied: a grid's product, or a list of points; keys as on a command line.

    Without either the file describes one trial.
    """

    grid: dict[str, list[Any]] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    asha: AshaSettings = field(default_factory=AshaSettings)

    def __post_init__(self) -> None:
        require(
            not (self.grid and self.points),
            "sweep",
            {"grid": self.grid, "points": self.points},
            "either a grid or points, not both",
        )
        for key, values in self.grid.items():
            require(bool(values), f"sweep.grid.{key}", values, "a list of at least one value")

    @property
    def halving(self) -> AshaSettings | None:
        """Successive halving, if it is asked for."""
        return self.asha if self.asha.metric else None
