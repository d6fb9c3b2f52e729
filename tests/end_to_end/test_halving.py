"""Halving by robust accuracy, in one process; what a sweep says of a trial that failed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from s3ta_platform.asha import rung_value
from s3ta_platform.compose import compose
from s3ta_platform.evaluation_record import read_records
from s3ta_platform.plan import make_plan
from s3ta_platform.rungs import rung_name

Command = Callable[..., Any]
METRIC = "eval/pgd_targeted_eps25.5/top1_at_2"
ASHA = [f"sweep.asha.metric={METRIC}", "sweep.asha.reduction_factor=2", "sweep.asha.images=16"]


def test_a_rung_goes_by_the_robust_accuracy_of_the_model_half_way(
    tiny: Path, s3ta: Command, tmp_path: Path
) -> None:
    overrides = [*ASHA, f"results={tmp_path}"]
    done = s3ta("run", tiny, *overrides)
    assert done.code == 0, done.output
    plan = make_plan(compose(tiny, overrides))
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    for trial in plan.trials:
        name = rung_name(trial.key, 1)
        (record,) = (r for r in read_records(plan.storage) if r.trial == name)
        assert record.image_ids == trial.test_ids[:16].tolist()
        files = [tmp_path / f"evaluations/{shard['key']}.parquet" for shard in record.shards]
        rows = [row for file in files for row in pq.read_table(file).to_pylist()]
        right = [row["prediction"] == row["label"] for row in rows]
        assert len(right) == 16
        value = rung_value(plan.storage, trial, 1)
        assert value == sum(right) / 16
        (run,) = client.search_runs(["1"], f"tags.config_key = '{trial.key}'")
        (point,) = client.get_metric_history(run.info.run_id, f"rung/{METRIC}")
        assert (point.step, point.value) == (2, value)
        assert (run.info.status, "stopped_early" in run.data.tags) == ("FINISHED", True)
    assert s3ta("verify", tmp_path).code == 0
    assert "Nothing to compute" in s3ta("run", tiny, *overrides).output


def test_a_failed_trial_is_listed_with_its_error_its_log_and_how_to_retry_it(
    tiny: Path, s3ta: Command, tmp_path: Path
) -> None:
    file = tmp_path / "rates.yaml"
    rates = "    - {train.learning_rate: 1.0e30, train.warmup_epochs: 0}\n    - {train.seed: 1}\n"
    text = tiny.read_text()
    points = text[text.index("    - {model.unroll: 1}") : text.index("\ndata:") + 1]
    file.write_text(text.replace(points, rates))
    root = tmp_path / "results of a test"
    overrides = ["tracking.store=none", f"results={root}"]
    done = s3ta("run", file, *overrides)
    assert done.code == 1
    failed, sound = make_plan(compose(file, overrides)).trials
    said = done.output[done.output.index(f"{failed.name} failed: ") :]
    assert "Lower train.learning_rate" in " ".join(said.split())
    (log,) = root.glob("logs/*.log")
    assert f"The log: {log}\n" in said
    assert f"s3ta retry {failed.key} --results '{root}'\n" in said
    assert done.output.count(" failed: ") == 1
    assert sound.trained(make_plan(compose(file, overrides)).storage) is not None


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "cluster.cpus=1",
            "cluster.train_workers is 2, each with 1 thread(s), but the cluster has 1",
        ),
        ("cluster.threads=3", "No worker fits, each with 3 thread(s): the cluster has 2 CPU(s)."),
    ],
)
def test_what_can_never_fit_is_refused_before_anything_starts(
    tiny: Path, s3ta: Command, tmp_path: Path, override: str, words: str
) -> None:
    more = ["cluster.executor=ray", "cluster.train_workers=2"]
    more += [override] if "cpus" in override else ["cluster.cpus=2", override]
    done = s3ta("run", tiny, *more, f"results={tmp_path}/r")
    assert done.code == 2
    assert words in " ".join(done.output.split())
    assert not (tmp_path / "r").exists()
