"""What every tracker does, and the one that keeps it all in memory. Imports no mlflow."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from s3ta_platform.storage import Storage

SWEEP_KEY = "s3ta.sweep_key"

Status = Literal["FINISHED", "FAILED", "KILLED"]
RunId = str | None
"""None: the store was away when the run was to be made; everything logged to it is missing."""


class Point(NamedTuple):
    """One point of a metric's curve. The time is when it was measured, in ms since 1970."""

    key: str
    value: float
    step: int
    timestamp_ms: int


class Tracker(Protocol):
    """Where runs are written. Only `series` reads; only it may raise when the store is away."""

    address: str
    experiment_id: str
    missing: list[str]
    """What could not be written, one line each; empty if the store has everything."""

    def sweep_run(self, name: str, tags: Mapping[str, str]) -> RunId:
        """The parent run, the same one for the same tag `s3ta.sweep_key` (default: the name)."""

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
        """A trial's one run. Its tags follow the latest call; a param keeps its first value."""

    def log_series(self, run_id: RunId, points: Iterable[Point]) -> None:
        """Add the points whose (key, step) the run does not have yet."""

    def log_table_scalars(self, run_id: RunId, scalars: Mapping[str, float]) -> None:
        """Metrics of one value, at step 0, for the table view; written where they differ."""

    def log_artifact(self, run_id: RunId, path: str | Path, folder: str | None = None) -> None:
        """Copy a local file into the run's artifacts."""

    def log_dict(self, run_id: RunId, content: Mapping[str, Any], name: str) -> None:
        """Write an artifact `name`, ending in .json or .yaml."""

    def finish(self, run_id: RunId, status: Status) -> None: ...

    def running(self, run_id: RunId) -> None: ...

    def series(self, run_id: str, key: str) -> list[Point]:
        """What the store has, by rising step."""


@dataclass
class MemoryRun:
    """What a run holds, without a store."""

    name: str
    tags: dict[str, str]
    params: dict[str, str]
    status: str = "RUNNING"
    points: dict[tuple[str, int], Point] = field(default_factory=dict)
    artifacts: dict[str, Any] = field(default_factory=dict)


class MemoryTracker:
    """Tracking switched off (`none`): the same behaviour, gone when the process ends."""

    def __init__(self) -> None:
        self.address = "none"
        self.experiment_id = "0"
        self.missing: list[str] = []
        self.runs: dict[str, MemoryRun] = {}

    def sweep_run(self, name: str, tags: Mapping[str, str]) -> RunId:
        key = tags.get(SWEEP_KEY, name)
        return self._run(f"sweep-{key}", name, {**tags, SWEEP_KEY: key}, {})

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
        return self._run(f"trial-{trial_key}", name, {**tags, **nested}, params)

    def _run(
        self, run_id: str, name: str, tags: Mapping[str, str], params: Mapping[str, Any]
    ) -> str:
        run = self.runs.setdefault(run_id, MemoryRun(name, {}, {}))
        run.tags.update({key: str(value) for key, value in tags.items()})
        run.params = {**{key: str(value) for key, value in params.items()}, **run.params}
        return run_id

    def log_series(self, run_id: RunId, points: Iterable[Point]) -> None:
        for point in points:
            self._of(run_id).points.setdefault((point.key, point.step), point)

    def log_table_scalars(self, run_id: RunId, scalars: Mapping[str, float]) -> None:
        for key, value in scalars.items():
            self._of(run_id).points[key, 0] = Point(key, value, 0, now_ms())

    def log_artifact(self, run_id: RunId, path: str | Path, folder: str | None = None) -> None:
        name = Path(path).name
        self._of(run_id).artifacts[f"{folder}/{name}" if folder else name] = Path(path)

    def log_dict(self, run_id: RunId, content: Mapping[str, Any], name: str) -> None:
        self._of(run_id).artifacts[name] = dict(content)

    def finish(self, run_id: RunId, status: Status) -> None:
        self._of(run_id).status = status

    def running(self, run_id: RunId) -> None:
        self._of(run_id).status = "RUNNING"

    def series(self, run_id: str, key: str) -> list[Point]:
        points = self.runs[run_id].points.values()
        return sorted((point for point in points if point.key == key), key=lambda point: point.step)

    def _of(self, run_id: RunId) -> MemoryRun:
        assert run_id is not None
        return self.runs[run_id]


def now_ms() -> int:
    return int(time.time() * 1000)
