"""What a reader sees in MLflow: one run for each trial, for life, nested under its sweep's run.

The driver is the only writer. Every write may be repeated and then adds nothing, so that a driver
that starts again simply logs everything anew; a store that is away costs charts, never compute.
The only file that imports mlflow (1.6 s): import it where tracking starts, not before.
"""

import fcntl
import hashlib
import itertools
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from s3ta.errors import UserError
from s3ta_platform.storage import NotStored, Storage
from s3ta_platform.tracking_attempts import Attempts, reason
from s3ta_platform.tracking_memory import (
    SWEEP_KEY,
    MemoryRun,
    MemoryTracker,
    Point,
    RunId,
    Status,
    Tracker,
    now_ms,
)
from s3ta_platform.tracking_ui import (
    QUIET,
    absolute,
    artifact_uri,
    compare_url,
    database,
    public,
    ui_command,
    ui_environment,
)

# Before mlflow is imported: no address printed after each run, and half a minute instead of four
# for a call to a server that is away.
_CLIENT = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
os.environ.update(QUIET)
for _name, _value in _CLIENT.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Metric, Param, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

__all__ = [
    "MemoryRun",
    "MemoryTracker",
    "MlflowTracker",
    "Point",
    "RunId",
    "Status",
    "Tracker",
    "compare_url",
    "open_tracker",
    "ui_command",
    "ui_environment",
]

BATCH = 500
RECORD_KEY = "s3ta.record"


def open_tracker(address: str, artifacts: str | None, experiment: str) -> Tracker:
    """Open `sqlite:///PATH`, `http(s)://HOST:PORT` or `none`; makes the database and experiment.

    artifacts: where a new experiment keeps its files, a local path or a URI; None: a folder
    `mlflow-artifacts` beside the database, or what the server decides. UserError if the store can't
    be opened: at the start the address is wrong more often than the store is away.
    """
    if address == "none":
        return MemoryTracker()
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    address = absolute(address)
    try:
        with _alone(address):
            client = MlflowClient(tracking_uri=address)
            location = artifact_uri(address, artifacts)
            return MlflowTracker(address, client, _experiment(client, experiment, location))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"Can't open the tracking store {public(address)}: {reason(error, address)}. Start the"
            " server or correct the address (setting `tracking.store`), or run without tracking"
            " (`none`)."
        ) from error


class MlflowTracker:
    """Runs in an MLflow store. Uses no global state of mlflow, such as an active run."""

    def __init__(self, address: str, client: MlflowClient, experiment_id: str) -> None:
        self.address = address
        self.experiment_id = experiment_id
        self._client = client
        self._known: dict[tuple[str, str], set[int]] = {}  # (run, key) -> steps in the store
        self._attempts = Attempts(address, forget=self._known.clear)
        self.missing = self._attempts.missing

    def sweep_run(self, name: str, tags: Mapping[str, str]) -> RunId:
        key = tags.get(SWEEP_KEY, name)
        tags = {**tags, SWEEP_KEY: key}

        def write() -> str:
            run_id = self._oldest(SWEEP_KEY, key)
            if run_id is None:
                mine = self._client.create_run(self.experiment_id, tags=tags, run_name=name)
                run_id = self._oldest(SWEEP_KEY, key) or mine.info.run_id
                if run_id != mine.info.run_id:  # another driver was faster
                    self._client.delete_run(mine.info.run_id)
            self._bring_up_to_date(run_id, tags, {})
            return run_id

        return self._attempts.make(f"the run of sweep {name}", write)

    def trial_run(
        self,
        storage: Storage,
        trial_key: str,
        *,
        parent: RunId,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
    ) -> RunId:
        nested = {"mlflow.parentRunId": parent} if parent else {}
        for number in itertools.count(1):
            record = _record_name(self.address, trial_key, number)
            tag = hashlib.sha256(storage.uri(record).encode()).hexdigest()[:16]
            wanted = {**tags, **nested, RECORD_KEY: tag}
            run_id = _recorded(storage, record) or self._record(storage, record, name, wanted)
            if run_id is None:
                return None
            if self._attach(run_id, wanted, params):
                return run_id
        raise AssertionError("unreachable")

    def log_series(self, run_id: RunId, points: Iterable[Point]) -> None:
        wanted: dict[tuple[str, int], Point] = {}
        for point in points:
            wanted.setdefault((point.key, point.step), point)

        def write(run: str) -> None:
            fresh = [wanted[at] for at in sorted(wanted) if at[1] not in self._steps(run, at[0])]
            for batch in (fresh[i : i + BATCH] for i in range(0, len(fresh), BATCH)):
                metrics = [Metric(p.key, float(p.value), p.timestamp_ms, p.step) for p in batch]
                self._client.log_batch(run, metrics=metrics)
                for point in batch:
                    self._steps(run, point.key).add(point.step)

        self._write(run_id, f"{len(wanted)} points of {_some(key for key, _ in wanted)}", write)

    def log_table_scalars(self, run_id: RunId, scalars: Mapping[str, float]) -> None:
        def write(run: str) -> None:
            stored = self._client.get_run(run).data.metrics
            metrics = []
            for key, value in scalars.items():
                if key not in stored:
                    metrics.append(Metric(key, value, now_ms(), 0))
                elif not _same(stored[key], value):
                    # Of two values at one step MLflow shows the later one, so it must be later.
                    last = max(point.timestamp_ms for point in self.series(run, key))
                    metrics.append(Metric(key, value, max(now_ms(), last + 1), 0))
            for i in range(0, len(metrics), BATCH):
                self._client.log_batch(run, metrics=metrics[i : i + BATCH])

        self._write(run_id, f"the scalars {_some(scalars)}", write)

    def log_artifact(self, run_id: RunId, path: str | Path, folder: str | None = None) -> None:
        def write(run: str) -> None:
            self._client.log_artifact(run, str(path), folder)

        self._write(run_id, f"the artifact {path}", write)

    def log_dict(self, run_id: RunId, content: Mapping[str, Any], name: str) -> None:
        def write(run: str) -> None:
            self._client.log_dict(run, dict(content), name)

        self._write(run_id, f"the artifact {name}", write)

    def finish(self, run_id: RunId, status: Status) -> None:
        def write(run: str) -> None:
            if self._client.get_run(run).info.status != status:  # else keep the time of its end
                self._client.set_terminated(run, status)

        self._write(run_id, f"the status {status}", write)

    def running(self, run_id: RunId) -> None:
        def write(run: str) -> None:
            self._client.update_run(run, status="RUNNING")

        self._write(run_id, "the status RUNNING", write)

    def series(self, run_id: str, key: str) -> list[Point]:
        history = self._client.get_metric_history(run_id, key)
        points = [Point(m.key, m.value, m.step, m.timestamp) for m in history]
        return sorted(points, key=lambda point: (point.step, point.timestamp_ms))

    def _write(self, run_id: RunId, what: str, write: Callable[[str], None]) -> None:
        if run_id is None:
            self._attempts.miss(f"{what}: the run could not be made")
        else:
            self._attempts.make(f"{what} of run {run_id}", lambda: write(run_id))

    def _record(
        self, storage: Storage, record: str, name: str, tags: Mapping[str, str]
    ) -> str | None:
        """Make a run and fix its id in the storage; the first writer's id is the one that counts.

        A run left by a driver that died between these two is taken up.
        """

        def make() -> str:
            orphan = self._oldest(RECORD_KEY, tags[RECORD_KEY])
            if orphan is not None:
                return orphan
            run = self._client.create_run(self.experiment_id, tags=dict(tags), run_name=name)
            return str(run.info.run_id)

        mine = self._attempts.make(f"the run of {name}", make)
        if mine is None:
            return None
        content = {"version": 1, "run_id": mine, "address": public(self.address)}
        storage.put_new(record, json.dumps(content).encode())
        winner = _recorded(storage, record)
        if winner != mine:
            self._attempts.make(f"removing run {mine}", lambda: self._client.delete_run(mine))
        return winner

    def _attach(self, run_id: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> bool:
        """Bring a recorded run up to date. False: it is gone from the store."""

        def write() -> bool:
            alive = self._alive(run_id)
            if alive:
                self._bring_up_to_date(run_id, tags, params)
            return alive

        # None: the store is away, and the record still holds
        return self._attempts.make(f"tags and params of run {run_id}", write) is not False

    def _alive(self, run_id: str) -> bool:
        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _bring_up_to_date(
        self, run_id: str, tags: Mapping[str, str], params: Mapping[str, Any]
    ) -> None:
        run = self._client.get_run(run_id)
        new_tags = [RunTag(k, str(v)) for k, v in tags.items() if run.data.tags.get(k) != str(v)]
        new_params = [Param(k, str(v)) for k, v in params.items() if k not in run.data.params]
        for i in range(0, max(len(new_tags), len(new_params)), 100):  # MLflow takes 100 of each
            here = slice(i, i + 100)
            self._client.log_batch(run_id, tags=new_tags[here], params=new_params[here])

    def _oldest(self, tag: str, value: str) -> str | None:
        mark = '"' if "'" in value else "'"
        found = self._client.search_runs(
            [self.experiment_id],
            filter_string=f"tags.`{tag}` = {mark}{value}{mark}",
            order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
            max_results=1,
        )
        return str(found[0].info.run_id) if found else None

    def _steps(self, run_id: str, key: str) -> set[int]:
        if (run_id, key) not in self._known:
            self._known[run_id, key] = {point.step for point in self.series(run_id, key)}
        return self._known[run_id, key]


@contextmanager
def _alone(address: str) -> Iterator[None]:
    """Keep other drivers out while a new database is made: its migration fails if two run it."""
    if not address.startswith("sqlite:"):
        yield
        return
    path = database(address)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _experiment(client: MlflowClient, name: str, location: str | None) -> str:
    """The experiment's id; made if need be, which another driver may do at the same moment."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise error
    if found.lifecycle_stage != "active":
        raise UserError(
            f"The MLflow experiment {name!r} was deleted: restore it (mlflow experiments restore"
            f" --experiment-id {found.experiment_id}) or choose another name."
        )
    return str(found.experiment_id)


def _record_name(address: str, trial_key: str, number: int) -> str:
    digest = hashlib.sha256(public(address).encode()).hexdigest()[:16]
    return f"trials/{trial_key}/tracking/{digest}{'' if number == 1 else f'-{number}'}.json"


def _recorded(storage: Storage, record: str) -> str | None:
    try:
        return str(json.loads(storage.get(record))["run_id"])
    except NotStored:
        return None


def _same(stored: float, value: float) -> bool:
    # An infinity comes back from sqlite as the largest float, a NaN as NaN.
    limit = sys.float_info.max
    return stored == max(-limit, min(limit, value)) or (math.isnan(stored) and math.isnan(value))


def _some(names: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(names))
    return ", ".join(distinct[:2]) + (f" and {len(distinct) - 2} more" if len(distinct) > 2 else "")
