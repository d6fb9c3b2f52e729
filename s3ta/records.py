"""What an attack leaves per image and reading. N images, R readings."""

from typing import Any

import numpy as np
import numpy.typing as npt

from s3ta.batch import Batch
from s3ta.tally import Array, Rows
from s3ta.trajectory import Trajectory

NO_TARGET = -1
UNKNOWN = -1

Steps = npt.NDArray[np.int32]

COLUMNS: dict[str, type] = {
    "prediction": np.int32,
    "attack_prediction": np.int32,
    "loss": np.float32,
    "margin": np.float32,
    "linf_255": np.float32,
    "pixel_min": np.float32,
    "pixel_max": np.float32,
    "first_error_step": np.int32,
    "first_target_step": np.int32,
}
"""What is noted per image and reading."""


class Records:
    """The readings of one trajectory on a batch, filled in whatever order they are taken."""

    def __init__(
        self, batch: Batch, targets_N: npt.NDArray[np.int64], trajectory: Trajectory
    ) -> None:
        self.batch, self.targets_N, self.trajectory = batch, targets_N, trajectory
        self.readings_R = np.array(trajectory.readings, dtype=np.int32)
        shape_NR = (len(batch), len(self.readings_R))
        self.found: Rows = {name: np.zeros(shape_NR, dtype) for name, dtype in COLUMNS.items()}
        self.clean_N = np.full(len(batch), UNKNOWN, np.int32)
        """What the model says of the clean images."""

    @property
    def clean_known(self) -> bool:
        return bool((self.clean_N != UNKNOWN).all())

    def note(self, image: int, step: int, values: dict[str, Any], *, stays: bool) -> None:
        """One image's values at this step; `stays`: at all later readings too."""
        at_R = self.readings_R >= step if stays else self.readings_R == step
        for name, value in values.items():
            self.found[name][image, at_R] = value

    def rows(self) -> Rows:
        """Columns ordered by image and, within it, by step."""
        n, readings = len(self.batch), len(self.readings_R)

        def per_image(column_N: Array, dtype: type = np.int32) -> Array:
            return np.repeat(column_N, readings).astype(dtype)

        found = {name: column_NR.reshape(-1) for name, column_NR in self.found.items()}
        labels, targets = per_image(self.batch.labels_B), per_image(self.targets_N)
        return {
            "image_id": per_image(self.batch.image_ids_B, np.int64),
            "label": labels,
            "target": targets,
            "clean_prediction": per_image(self.clean_N),
            "correct": found["prediction"] == labels,
            "fooled": found["prediction"] == targets,
            "restart": np.full(n * readings, self.trajectory.restart, dtype=np.int32),
            "step": np.tile(self.readings_R, n),
            **found,
        }

    def state(self) -> Rows:
        """Everything noted so far, as arrays."""
        columns = {f"found.{name}": column_NR.copy() for name, column_NR in self.found.items()}
        return {**columns, "clean_N": self.clean_N.copy()}

    def restore(self, state: Rows) -> None:
        """Go back to a saved state."""
        for name, column_NR in self.found.items():
            column_NR[:] = state[f"found.{name}"]
        self.clean_N[:] = state["clean_N"]
