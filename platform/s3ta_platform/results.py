"""What a finished sweep is made of, as plain data: the input of tables, figures and reports."""

from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
import pyarrow as pa

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """A few images before and after one attack. B images, T unroll steps, Q heads, grid H x W."""

    attack: str
    steps: int
    image_ids_B: Array
    labels_B: Array
    targets_B: Array
    clean_predictions_B: Array
    predictions_B: Array
    clean_BCHW: Array
    """float32 in [0, 1]."""
    attacked_BCHW: Array
    clean_maps_BTQHW: Array | None = None
    """Attention maps, each summing to 1 over the grid; None for a model without attention."""
    attacked_maps_BTQHW: Array | None = None


@dataclass(frozen=True, kw_only=True)
class StageSpan:
    """One stage of a curriculum."""

    first: float
    """In epochs."""
    end: float
    words: str
    """What it changes, such as `unroll 8`; empty if nothing differs from the other stages."""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """One attacked model."""

    key: str
    name: str
    """What a reader calls the model, such as `S3TA-4`."""
    parameters: int
    unroll: int | None
    """None for a model without attention."""
    settings: dict[str, Any]
    history: list[dict[str, float]]
    """Training, in order: `step`, `epoch`, `loss`, `adversarial_top1`, `learning_rate`, `time`.
    Empty for a model that was not trained here."""
    rows: pa.Table
    """Per-example rows of all attacks, with columns `attack` and `quarantined` (see rows)."""
    planned: int
    """Images of the evaluation, of which `rows` has all, or those until it was stopped."""
    halfwidth: float | None = None
    """It was stopped early, when every interval was at most this far to each side."""
    gallery: Gallery | None = None
    run_id: str | None = None
    """The MLflow run."""
    published: str = ""
    """The paper's system that it is to be compared with; empty for none."""
    point: dict[str, Any] = field(default_factory=dict)
    """Its place in the sweep: what was varied, by the settings' keys."""
    stages: list[StageSpan] = field(default_factory=list)
    """Of its curriculum; empty without one."""


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """All trials of one experiment file, in the file's order."""

    name: str
    title: str
    claim: str
    class_names: tuple[str, ...]
    images: int
    """How many test images each model was attacked on."""
    trials: list[TrialResult]
    failed: dict[str, str] = field(default_factory=dict)
    """Trial name -> error, for trials that gave no result."""
    stopped: dict[str, str] = field(default_factory=dict)
    """Trial name -> why successive halving has ended it early."""
    places: dict[str, str] = field(default_factory=dict)
    """Label -> path or command, shown at the end of the report ('where everything is')."""
