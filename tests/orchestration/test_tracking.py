"""Tracking: every write may be repeated, an outage costs charts only, everything on loopback."""

import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest

from s3ta.errors import UserError
from s3ta_platform.storage import Storage, open_storage
from s3ta_platform.tracking import (
    MemoryTracker,
    MlflowTracker,
    Point,
    Tracker,
    compare_url,
    open_tracker,
    ui_command,
    ui_environment,
)

OPEN = (
    "import sys; from s3ta_platform.tracking import open_tracker; print('ready', flush=True);"
    "input(); print(open_tracker(sys.argv[1], None, 'spine').experiment_id)"
)
KEY = "0123456789abcdef"


def python_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[MlflowTracker, Any]:
    """A fresh database (4 s), opened by two processes at once, and what the other one said."""
    address = f"sqlite:///{tmp_path_factory.mktemp('store')}/new/mlflow.db"
    other = subprocess.Popen(
        [sys.executable, "-c", OPEN, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=python_environment(),
    )
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == "ready\n"
    print("go", file=other.stdin, flush=True)
    tracker = open_tracker(address, None, "spine")
    said = other.communicate(timeout=120)
    assert isinstance(tracker, MlflowTracker)
    return tracker, (other.returncode, *said)


def over(tracker: MlflowTracker, client: Any = None) -> MlflowTracker:
    """A driver started again over the same store, perhaps through another client."""
    return MlflowTracker(tracker.address, client or tracker._client, tracker.experiment_id)


@pytest.fixture
def mlflow(opened: tuple[MlflowTracker, Any]) -> MlflowTracker:
    return over(opened[0])


@pytest.fixture(params=["memory", "mlflow"])
def tracker(request: pytest.FixtureRequest) -> Tracker:
    if request.param == "memory":
        return open_tracker("none", None, "spine")
    made: MlflowTracker = request.getfixturevalue("mlflow")
    return made


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "results"), durable=False)


def a_trial(tracker: Tracker, storage: Storage, **changes: Any) -> str:
    settings: dict[str, Any] = {"parent": None, "name": "S3TA-4", "tags": {}, "params": {}}
    run_id = tracker.trial_run(storage, KEY, **{**settings, **changes})
    assert run_id is not None
    return run_id


def curve(key: str, steps: int, start_ms: int = 1_700_000_000_000) -> list[Point]:
    return [Point(key, 1.0 / (step + 1), step, start_ms + 10 * step) for step in range(steps)]


def test_two_drivers_may_open_a_fresh_database_at_once_and_say_nothing(
    opened: tuple[MlflowTracker, Any],
) -> None:
    tracker, (code, out, err) = opened
    assert (code, out, err) == (0, f"{tracker.experiment_id}\n", "")


def test_a_series_logged_again_adds_nothing_and_keeps_the_first_times(
    tracker: Tracker, storage: Storage
) -> None:
    run_id, points = a_trial(tracker, storage), curve("train/loss", 1200)
    tracker.log_series(run_id, points[:700])
    later = [point._replace(timestamp_ms=point.timestamp_ms + 10**6) for point in points[:700]]
    tracker.log_series(run_id, later + points[700:] + points[700:])
    assert tracker.series(run_id, "train/loss") == points
    assert tracker.missing == []


def test_a_restarted_driver_that_logs_everything_anew_adds_nothing(
    mlflow: MlflowTracker, storage: Storage
) -> None:
    points = curve("train/loss", 30) + curve("train/top1", 30)
    for _ in range(2):
        started = over(mlflow)
        run_id = a_trial(started, storage)
        started.log_series(run_id, points)
        started.log_table_scalars(run_id, {"clean/top1": 0.8})
    for key in ("train/loss", "train/top1"):
        assert mlflow.series(run_id, key) == [point for point in points if point.key == key]
    assert [point.value for point in mlflow.series(run_id, "clean/top1")] == [0.8]


def test_a_scalar_is_replaced_only_where_it_differs(
    mlflow: MlflowTracker, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "s3ta_platform.tracking.now_ms", lambda: 1_700_000_000_000
    )  # a coarse clock
    run_id = a_trial(mlflow, storage)
    odd = {"nan": math.nan, "infinite": math.inf}
    for value in (0.9, 0.9, 0.7, 0.7):
        mlflow.log_table_scalars(run_id, {"top1_at_100": value, **odd})
    assert [(p.value, p.step) for p in mlflow.series(run_id, "top1_at_100")] == [(0.9, 0), (0.7, 0)]
    assert mlflow._client.get_run(run_id).data.metrics["top1_at_100"] == 0.7
    assert [len(mlflow.series(run_id, key)) for key in odd] == [1, 1]


def test_a_trial_has_one_run_for_life_and_a_changed_param_does_not_raise(
    tracker: Tracker, storage: Storage
) -> None:
    parent = tracker.sweep_run("quickstart", {"sweep": "quickstart"})
    first = a_trial(tracker, storage, parent=parent, tags={"unroll": "4"}, params={"workers": 1})
    again = a_trial(
        tracker, storage, parent=parent, tags={"unroll": "8"}, params={"workers": 2, "new": "x"}
    )
    assert first == again
    assert first != parent
    assert tracker.missing == []
    if isinstance(tracker, MemoryTracker):
        run = tracker.runs[first]
        tags, params = run.tags, run.params
    else:
        assert isinstance(tracker, MlflowTracker)
        data = tracker._client.get_run(first).data
        tags, params = data.tags, data.params
    assert tags["unroll"] == "8"
    assert tags["mlflow.parentRunId"] == parent
    assert params == {"workers": "1", "new": "x"}


def test_more_params_and_tags_than_one_call_takes_all_arrive(
    mlflow: MlflowTracker, storage: Storage
) -> None:
    many = {f"name{number}": str(number) for number in range(250)}
    run = mlflow._client.get_run(a_trial(mlflow, storage, tags=many, params=many))
    assert run.data.params == many
    assert many.items() <= run.data.tags.items()
    assert mlflow.missing == []


@pytest.mark.parametrize("name", ["quickstart", "it's", "100%_sure"])
def test_a_sweep_of_the_same_key_reattaches_and_another_does_not(
    tracker: Tracker, name: str
) -> None:
    first = tracker.sweep_run(name, {"sweep": name, "s3ta.sweep_key": f"key {name}"})
    assert tracker.sweep_run(name, {"s3ta.sweep_key": f"key {name}"}) == first
    assert tracker.sweep_run(name, {"s3ta.sweep_key": f"key {name} 2"}) not in (first, None)


def test_of_racing_drivers_all_get_the_first_ones_run_and_no_other_run_stays(
    mlflow: MlflowTracker, storage: Storage
) -> None:
    barrier, name = threading.Barrier(4), f"race {storage.root}"

    def attach(_: int) -> str:
        driver = over(mlflow)
        barrier.wait()
        return a_trial(driver, storage, name=name)

    with ThreadPoolExecutor(4) as pool:
        run_ids = set(pool.map(attach, range(4)))
    assert len(run_ids) == 1
    left = mlflow._client.search_runs(
        [mlflow.experiment_id], filter_string=f"attributes.run_name = '{name}'"
    )
    assert {run.info.run_id for run in left} == run_ids


def test_a_run_whose_driver_died_before_fixing_its_id_is_taken_up(
    mlflow: MlflowTracker, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> bool:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(type(storage), "put_new", die)
        with pytest.raises(Killed):
            a_trial(mlflow, storage, name=f"dead {storage.root}")
    run_id = a_trial(mlflow, storage, name=f"dead {storage.root}")
    found = mlflow._client.search_runs(
        [mlflow.experiment_id], filter_string=f"attributes.run_name = 'dead {storage.root}'"
    )
    assert [run.info.run_id for run in found] == [run_id]


def test_a_run_deleted_by_the_user_is_made_anew_under_the_next_name(
    mlflow: MlflowTracker, storage: Storage
) -> None:
    first = a_trial(mlflow, storage)
    (record,) = storage.list(f"trials/{KEY}/tracking/")
    assert json.loads(storage.get(record))["run_id"] == first
    mlflow._client.delete_run(first)
    second = a_trial(mlflow, storage)
    assert second != first
    assert a_trial(mlflow, storage) == second
    assert storage.list(f"trials/{KEY}/tracking/") == [record.replace(".json", "-2.json"), record]
    assert mlflow.missing == []


def test_a_run_of_a_deleted_database_is_made_anew(mlflow: MlflowTracker, storage: Storage) -> None:
    record = f"trials/{KEY}/tracking/"
    a_trial(mlflow, storage)
    (name,) = storage.list(record)
    storage.delete(name)
    storage.put_new(name, json.dumps({"version": 1, "run_id": "0" * 32}).encode())
    run_id = a_trial(mlflow, storage)
    assert run_id != "0" * 32
    assert a_trial(mlflow, storage) == run_id


def test_a_status_is_true_after_a_restart_and_the_end_keeps_its_time(
    mlflow: MlflowTracker, storage: Storage
) -> None:
    run_id = a_trial(mlflow, storage)

    def status() -> str:
        return str(mlflow._client.get_run(run_id).info.status)

    assert status() == "RUNNING"
    mlflow.finish(run_id, "FAILED")
    assert status() == "FAILED"
    mlflow.running(run_id)
    assert status() == "RUNNING"
    mlflow.finish(run_id, "FINISHED")
    end = mlflow._client.get_run(run_id).info.end_time
    time.sleep(0.005)
    mlflow.finish(run_id, "FINISHED")
    assert a_trial(mlflow, storage) == run_id
    assert (status(), mlflow._client.get_run(run_id).info.end_time) == ("FINISHED", end)


def test_artifacts_lie_beside_the_database(
    mlflow: MlflowTracker, storage: Storage, tmp_path: Path
) -> None:
    run_id = a_trial(mlflow, storage)
    (tmp_path / "report.html").write_text("<p>report</p>")
    mlflow.log_artifact(run_id, tmp_path / "report.html", "reports")
    mlflow.log_dict(run_id, {"unroll": 4}, "config.json")
    root = Path(mlflow.address.removeprefix("sqlite:///")).parent / "mlflow-artifacts" / run_id
    assert (root / "artifacts/reports/report.html").read_text() == "<p>report</p>"
    assert json.loads((root / "artifacts/config.json").read_text()) == {"unroll": 4}


class Flaky:
    """A client whose calls fail from the n-th on; the n-th is still done, its reply is lost."""

    def __init__(self, client: Any, calls: int) -> None:
        self.client, self.calls = client, calls

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls -= 1
            if self.calls < 0:
                raise ConnectionError("the store is away")
            result = getattr(self.client, name)(*arguments, **options)
            if self.calls == 0:
                raise ConnectionError("the reply is lost")
            return result

        return call


def test_an_outage_is_one_warning_and_a_replay_fills_it_in_with_the_original_times(
    mlflow: MlflowTracker, storage: Storage, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    run_id, points = a_trial(mlflow, storage), curve("train/loss", 1700)
    # One call asks which points are there; the batches are 500, 500, 500 and 200 points.
    flaky = over(mlflow, Flaky(mlflow._client, 3))
    with caplog.at_level(logging.WARNING, "s3ta_platform.tracking_attempts"):
        flaky.log_series(run_id, points)
        flaky.log_series(run_id, points)
        flaky.log_table_scalars(run_id, {"top1": 0.5})
        flaky.log_artifact(run_id, tmp_path)
        flaky.log_dict(run_id, {}, "config.json")
        flaky.running(run_id)
        flaky.finish(run_id, "FINISHED")
        assert flaky.trial_run(storage, KEY, parent=None, name="x", tags={}, params={}) == run_id
        assert flaky.sweep_run("away", {}) is None
    (record,) = caplog.records
    assert "1700 points of train/loss" in record.message
    assert "the reply is lost" in record.message
    assert len(flaky.missing) == 9
    assert mlflow.series(run_id, "train/loss") == points[:1000]

    flaky._client = mlflow._client  # the store is back
    later = [point._replace(timestamp_ms=point.timestamp_ms + 10**6) for point in points[:1000]]
    flaky.log_series(run_id, later + points[1000:])
    assert mlflow.series(run_id, "train/loss") == points
    mlflow.log_series(run_id, points)
    assert mlflow.series(run_id, "train/loss") == points
    assert mlflow.missing == []


def test_a_trial_that_starts_in_an_outage_has_no_run_and_gets_it_at_the_next_start(
    mlflow: MlflowTracker, storage: Storage
) -> None:
    away = over(mlflow, Flaky(mlflow._client, -1))
    run_id = away.trial_run(storage, KEY, parent=None, name="x", tags={}, params={})
    assert run_id is None
    assert storage.list() == []
    away.log_series(run_id, curve("train/loss", 3))
    away.finish(run_id, "FINISHED")
    assert len(away.missing) == 3
    assert "3 points of train/loss: the run could not be made" in away.missing
    mlflow.log_series(a_trial(mlflow, storage), curve("train/loss", 3))
    assert mlflow.missing == []


def test_a_slow_store_takes_a_tenth_of_the_time_at_most(
    mlflow: MlflowTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, calls = 0.0, 0

    class TimesOut:
        def set_terminated(self, *_: object) -> None:
            nonlocal now, calls
            now, calls = now + 30, calls + 1
            raise TimeoutError("no answer")

        def get_run(self, run_id: str) -> Any:
            return mlflow._client.get_run(run_id)

    run_id = mlflow.sweep_run("slow", {})
    monkeypatch.setattr(time, "monotonic", lambda: now)
    slow = over(mlflow, TimesOut())
    while now < 3300:
        slow.finish(run_id, "KILLED")
        now += 1
    assert calls == 10


@pytest.mark.parametrize("address", ["", "mlflow.db", "sqlite:///", "file:///tmp/x", "http://"])
def test_an_unknown_address_is_refused_with_those_that_are_known(address: str) -> None:
    with pytest.raises(UserError, match=r"use sqlite:///PATH/mlflow.db, http://HOST:PORT or none"):
        open_tracker(address, None, "spine")


def test_a_store_that_cannot_be_opened_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a database, but long enough to be taken for one" * 100)
    for path in ("file", "file/mlflow.db"):
        with pytest.raises(
            UserError, match=r"Can't open the tracking store .*file.* `tracking.store`"
        ):
            open_tracker(f"sqlite:///{tmp_path}/{path}", None, "spine")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"http://127.0.0.1:1: ") as caught:
        open_tracker("http://me:secret@127.0.0.1:1", None, "spine")
    assert "secret" not in str(caught.value)


def test_a_deleted_experiment_is_refused_with_the_command_that_restores_it(
    mlflow: MlflowTracker,
) -> None:
    deleted = open_tracker(mlflow.address, None, "deleted").experiment_id
    mlflow._client.delete_experiment(deleted)
    with pytest.raises(UserError, match=f"restore --experiment-id {deleted}"):
        open_tracker(mlflow.address, None, "deleted")


def test_the_compare_page_gets_its_runs_and_experiment_as_json() -> None:
    url = compare_url("http://127.0.0.1:5000/", "3", ["a1", "b2"])
    assert url == (
        "http://127.0.0.1:5000/#/compare-runs?runs=%5B%22a1%22%2C%22b2%22%5D&experiments=%5B%223%22%5D"
    )
    query = parse_qs(urlsplit(urlsplit(url).fragment).query)
    assert json.loads(query["runs"][0]) == ["a1", "b2"]
    assert json.loads(query["experiments"][0]) == ["3"]


def test_pages_that_cannot_be_started_are_refused_with_the_reason(tmp_path: Path) -> None:
    for address, reason in (
        ("http://127.0.0.1:5000", "open that address"),
        ("none", "switched off"),
        (f"sqlite:///{tmp_path}/mlflow.db", "start a run first"),
    ):
        with pytest.raises(UserError, match=reason):
            ui_command(address, None)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def fetch(url: str) -> tuple[int, str]:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return reply.status, reply.read().decode()


def wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(600):
        try:
            fetch(url)
            return
        except (urllib.error.URLError, ConnectionError):
            assert server.poll() is None, "the server has ended"
            time.sleep(0.1)
    raise TimeoutError(url)


@pytest.fixture
def server(
    mlflow: MlflowTracker, tmp_path: Path
) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    port = free_port()
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            ui_command(mlflow.address, None, port=port),
            env=ui_environment(),
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=20)


def test_the_pages_are_served_on_loopback_only_and_a_server_takes_the_same_writes(
    server: tuple["subprocess.Popen[bytes]", str],
    mlflow: MlflowTracker,
    storage: Storage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process, base = server
    status, page = fetch(base)
    assert status == 200
    assert "<title>MLflow</title>" in page

    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    listening = [
        connection.laddr.ip
        for member in family
        for connection in member.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert set(listening) == {"127.0.0.1"}
    assert len(family) <= 4

    local = a_trial(mlflow, storage)
    mlflow.log_dict(local, {"unroll": 4}, "config.json")
    found = fetch(f"{base}/get-artifact?path=config.json&run_uuid={local}")
    assert json.loads(found[1]) == {"unroll": 4}

    remote = open_tracker(base, None, "spine")
    assert remote.experiment_id == mlflow.experiment_id
    run_id, points = a_trial(remote, storage), curve("train/loss", 1200)
    assert run_id != local  # each tracking address has its own runs
    for _ in range(2):
        started = open_tracker(base, None, "spine")
        assert a_trial(started, storage, params={"workers": 1}) == run_id
        started.log_series(run_id, points)
        started.log_table_scalars(run_id, {"top1": 0.5, "nan": math.nan})
        assert started.missing == []
    assert mlflow.series(run_id, "train/loss") == points
    assert len(mlflow.series(run_id, "top1")) == len(mlflow.series(run_id, "nan")) == 1

    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    remote.log_series(run_id, curve("train/top1", 3))
    assert len(remote.missing) == 1
    assert a_trial(remote, storage) == run_id
    assert {path.name for path in tmp_path.iterdir()} == {"results", "server.log"}
