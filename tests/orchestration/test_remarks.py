"""Early stops, quarantined images and other measures are said wherever numbers are."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from s3ta.statistics import wilson
from s3ta_platform.remarks import agreement, remarks
from s3ta_platform.report import write_report
from s3ta_platform.results import SweepResult, TrialResult
from s3ta_platform.summaries import summarise
from s3ta_platform.tables import csv_text, terminal_table

ATTACK = "pgd_targeted_eps16"


def rows(attack: str = ATTACK, images: int = 200, lost: int = 0, targeted: bool = True) -> pa.Table:
    """Label 0; at step 100 three in four are right, one in ten is fooled; the last are lost."""
    ids = np.arange(images)
    gone = ids >= images - lost
    prediction = np.where(ids % 4 == 0, np.where(ids % 10 == 0, 2, 1), 0)
    return pa.table(
        {
            "image_id": ids,
            "label": np.where(gone, -1, 0),
            "target": np.full(images, 2 if targeted else -1),
            "clean_prediction": np.where(gone, -2, 0),
            "prediction": np.where(gone, -1, prediction),
            "attack_prediction": np.where(ids == 5, 7, prediction),
            "correct": (prediction == 0) & ~gone,
            "fooled": (prediction == 2) | gone if targeted else np.zeros(images, bool),
            "first_error_step": np.where(prediction == 0, -1, 100),
            "first_target_step": np.where(prediction == 2, 100, -1),
            "step": np.full(images, 100),
            "restart": np.zeros(images, np.int32),
            "quarantined": np.where(gone, "hung: no progress for 9 s", ""),
            "attack": [attack] * images,
        }
    )


def trial(table: pa.Table, **more: Any) -> TrialResult:
    return TrialResult(
        key="k" * 16,
        name="ResNet-8",
        parameters=10,
        unroll=None,
        settings={},
        history=[],
        rows=table,
        **{"planned": len(table), **more},
    )


def shown(*trials: TrialResult) -> str:
    sweep = SweepResult(
        name="n", title="t", claim="", class_names=(), images=200, trials=list(trials)
    )
    console = Console(file=io.StringIO(), width=200)
    console.print(terminal_table(sweep))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return " ".join(text.split()) + csv_text(sweep)


def test_an_ordinary_trial_says_only_how_well_the_fast_copy_agreed() -> None:
    plain = trial(rows())
    assert agreement(plain) == 199 / 200
    (text,) = remarks([plain])
    assert "agreed in 99.50 % of readings" in text
    assert text in shown(plain)


def test_an_early_stop_is_said_and_its_intervals_are_of_the_whole_set() -> None:
    stopped = trial(rows(), planned=250, halfwidth=0.05)
    text = remarks([stopped])[0]
    assert "after 200 of 250 images" in text
    assert "at most 5 points" in text
    assert text in shown(stopped)
    top1 = summarise(stopped).readings[0].top1
    assert (top1.successes, top1.total) == (150, 200)
    assert top1.interval == wilson(150, 200, 250)
    assert top1.interval != wilson(150, 200)
    line = next(
        x for x in csv.DictReader(io.StringIO(shown_csv(stopped))) if x["measure"] == "top1"
    )
    assert (line["total"], line["population"]) == ("200", "250")


def shown_csv(one: TrialResult) -> str:
    return csv_text(
        SweepResult(name="n", title="t", claim="", class_names=(), images=200, trials=[one])
    )


def test_quarantined_images_count_as_not_robust_and_both_bounds_are_given() -> None:
    lost = trial(rows(lost=3))
    text = remarks([lost])[0]
    assert "3 of 200 images" in text
    assert "197: hung: no progress for 9 s" in text
    assert "up to 1.50 points higher" in text
    assert text in shown(lost)
    reading = summarise(lost).readings[0]
    whole = summarise(trial(rows())).readings[0]
    assert reading.top1.total == 200
    assert reading.top1.successes == whole.top1.successes - 3 + [197, 198, 199].count(196)
    assert reading.success.successes == whole.success.successes + 3
    assert summarise(lost).nominal.successes == 197
    assert reading.any_error.successes == 200 - reading.top1.successes  # wrong at any step, too


@pytest.mark.parametrize("targeted", [True, False])
def test_until_success_gives_only_the_measure_of_its_own_goal(targeted: bool) -> None:
    name = f"pgd_{'targeted' if targeted else 'untargeted'}_until_success_eps16"
    one = trial(rows(name, targeted=targeted))
    reading = summarise(one).readings[0]
    assert (reading.top1.total == 0) == targeted
    assert reading.success.total == 200
    assert "happened at any step" in (text := shown(one))
    assert "PGD (until success), ε = 16/255" in text
    measures = {line["measure"] for line in csv.DictReader(io.StringIO(shown_csv(one)))}
    assert measures == {"nominal", "success"} | ({"top1"} - ({"top1"} if targeted else set()))


def test_a_measure_that_is_not_known_has_no_figure(tmp_path: Path) -> None:
    one = trial(rows("pgd_targeted_until_success_eps16"))
    sweep = SweepResult(name="n", title="t", claim="", class_names=(), images=200, trials=[one])
    page = write_report(sweep, tmp_path).read_text()
    names = {file.name for file in (tmp_path / "figures").glob("*.png")}
    assert names == {"success_against_steps-pgd_targeted_until_success_eps16.png"}
    assert "happened at any step" in page
