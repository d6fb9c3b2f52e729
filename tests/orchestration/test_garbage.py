"""What can be removed from a results root, and what never is."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hand_made import PGD, Evaluation, put_shard
from run_records import KEYS, put_run
from safetensors.numpy import save

from s3ta.errors import UserError
from s3ta.trajectory import trajectories
from s3ta_platform import garbage
from s3ta_platform.garbage import gc, in_bytes, needless
from s3ta_platform.record import RESULT_VERSION
from s3ta_platform.storage import Storage, open_storage
from s3ta_platform.verify import verify

pytest_plugins = ["stores"]


def named(storage: Storage) -> list[str]:
    return sorted(name for kind in needless(storage) for name in kind.sizes)


def put_checkpoint(storage: Storage, key: str, step: int, *, top1: float | None = None) -> str:
    folder = f"trials/{key}/checkpoints/{step:010d}"
    metrics = {} if top1 is None else {"adversarial_top1": top1}
    storage.put_new(f"{folder}/model.safetensors", bytes(100))
    storage.put_new(f"{folder}/manifest.json", json.dumps({"meta": {"metrics": metrics}}).encode())
    return folder


def put_trained(storage: Storage, key: str, step: int) -> None:
    record = {"step": step, "model_digest": "d" * 64, "parameters": 1}
    storage.put_new(f"trials/{key}/trained.json", json.dumps(record).encode())


def test_whole_results_and_the_records_of_their_runs_stay(storage: Storage) -> None:
    Evaluation(trial=KEYS[0]).store(storage)
    put_run(storage, "one", state="finished")
    storage.put_new("galleries/g.safetensors", save({}))
    storage.put_new("snapshots/unfinished/0000000100.safetensors", b"x")
    assert named(storage) == []


def test_of_a_trained_model_its_own_checkpoint_and_the_best_stay(storage: Storage) -> None:
    for step, top1 in ((10, 0.3), (20, 0.5), (25, None), (30, 0.4), (40, 0.45)):
        put_checkpoint(storage, KEYS[0], step, top1=top1)
        put_checkpoint(storage, KEYS[1], step, top1=top1)
    put_trained(storage, KEYS[0], 40)
    steps = {int(name.split("/")[3]) for name in named(storage)}
    assert {name.split("/")[1] for name in named(storage)} == {KEYS[0]}, "b is not trained yet"
    assert steps == {10, 25, 30}
    names = [name for kind in needless(storage) for name in kind.sizes]
    assert names[0].endswith("manifest.json"), "it stops existing before its files do"


def test_half_written_checkpoints_go_unless_a_run_may_be_writing_them(storage: Storage) -> None:
    put_checkpoint(storage, KEYS[0], 10)
    half = [f"trials/{KEYS[0]}/checkpoints/{step:010d}/model.safetensors" for step in (5, 20)]
    for name in half:
        storage.put_new(name, b"x")
    put_run(storage, "at-work", todo=KEYS[1:])
    assert named(storage) == half
    put_run(storage, "far-away", todo=KEYS[:1], holder={"host": "other b c", "pid": 3}, heard_s=1e5)
    assert named(storage) == []


def test_states_and_leases_of_stored_work_go(storage: Storage) -> None:
    storage.put_new("evaluations/done.parquet", b"no parquet at all")
    storage.put_new("galleries/shown.safetensors", save({}))
    for key in ("done", "shown", "open"):
        storage.put_new(f"snapshots/{key}/0000000100.safetensors", b"x")
        storage.put_new(f"leases/{key}/000001-000000", b"x")
    assert named(storage) == [
        "leases/done/000001-000000",
        "leases/shown/000001-000000",
        "snapshots/done/0000000100.safetensors",
        "snapshots/shown/0000000100.safetensors",
    ]


def test_a_run_that_was_repeated_goes_and_the_latest_of_each_experiment_stays(
    storage: Storage,
) -> None:
    put_run(storage, "old", begun_s=300, state="failed")
    put_run(storage, "other", name="other", begun_s=250, state="finished")
    put_run(storage, "dead", begun_s=200, holder={"started": "1"})
    put_run(storage, "new", begun_s=100, state="finished")
    storage.put_new("runs/new/beat-000003", b"x")  # its deletion had failed
    names = named(storage)
    assert names[-2:] == ["runs/old/begun.json", "runs/old/ended.json"]
    assert {name.split("/")[1] for name in names} == {"old", "dead", "new"}
    assert [name for name in names if "/new/" in name] == ["runs/new/beat-000003"]


def test_rows_of_an_older_version_go_with_their_trial(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    Evaluation(trial=KEYS[0]).store(storage)
    current = set(storage.list())
    made = Evaluation(trial=KEYS[1], images=61)
    monkeypatch.setattr("hand_made.RESULT_VERSION", RESULT_VERSION - 1)
    made.store(storage)
    put_shard(storage, made, PGD.name, trajectories(PGD)[0], made.image_ids[:3])
    put_run(storage, "one", state="finished", todo=())
    doomed = set(named(storage))
    assert doomed == set(storage.list()) - current - set(storage.list("runs/"))
    put_run(storage, "still-old", name="another", version=RESULT_VERSION - 1, todo=KEYS[1:])
    assert named(storage) == [], "a run of that version is at work"


def test_results_of_a_newer_version_stay(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hand_made.RESULT_VERSION", RESULT_VERSION + 1)
    Evaluation(trial=KEYS[0]).store(storage)
    put_run(storage, "one", state="finished", version=RESULT_VERSION + 1)
    storage.put_new(
        "galleries/g.safetensors", save({}, metadata={"result_version": str(RESULT_VERSION + 1)})
    )
    assert named(storage) == []


def test_a_trial_of_an_older_version_goes_though_nothing_of_it_was_evaluated(
    storage: Storage,
) -> None:
    put_checkpoint(storage, KEYS[0], 10)
    put_checkpoint(storage, KEYS[1], 10)
    put_run(storage, "one", begun_s=90, state="failed", version=RESULT_VERSION - 1)
    old = {name for name in named(storage) if name.startswith("trials/")}
    assert {name.split("/")[1] for name in old} == set(KEYS)
    storage.put_new(
        "galleries/g.safetensors", save({}, metadata={"result_version": str(RESULT_VERSION - 1)})
    )
    assert "galleries/g.safetensors" in named(storage)


@pytest.fixture
def littered(tmp_path: Path) -> Storage:
    storage = open_storage(str(tmp_path / "r"), durable=False)
    Evaluation(trial=KEYS[0]).store(storage)
    storage.put_new(f"trials/{KEYS[0]}/checkpoints/0000000002/model.safetensors", bytes(1500))
    for name, age_s in (("old", 90_000), ("new", 0)):
        file = Path(storage.root, f".tmp-{name}")
        file.write_bytes(bytes(2500))
        os.utime(file, (time.time() - age_s,) * 2)
    return storage


def test_a_dry_run_lists_names_and_sizes_and_removes_nothing(
    littered: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    before = littered.used()
    assert gc(littered.root, dry_run=True, yes=True, every_name=False) == 0
    shown = capsys.readouterr().out
    assert f"1.5 kB  trials/{KEYS[0]}/checkpoints/0000000002/model.safetensors" in shown
    assert "2.5 kB  .tmp-old" in shown
    assert "together 4.0 kB" in shown
    assert littered.used() == before


def test_with_yes_it_is_removed_and_what_stays_is_verified(
    littered: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    before = littered.used()
    gc(littered.root, dry_run=False, yes=True, every_name=False)
    assert "removed 2 files, 4.0 kB" in capsys.readouterr().out
    assert littered.used() == before - 4000
    assert Path(littered.root, ".tmp-new").exists(), "its writer may be at work"
    gc(littered.root, dry_run=False, yes=True, every_name=False)
    assert "Nothing can be removed" in capsys.readouterr().out
    assert verify(littered.root) == 0


def test_without_a_terminal_to_ask_on_nothing_is_removed(
    littered: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.devnull) as nobody:
        monkeypatch.setattr(sys, "stdin", nobody)
        with pytest.raises(UserError, match=r"Nothing was removed.*--yes"):
            gc(littered.root, dry_run=False, yes=False, every_name=False)


@pytest.mark.parametrize(("answer", "left"), [("n", True), ("", True), ("y", False)])
def test_on_a_terminal_it_asks(
    littered: Storage, monkeypatch: pytest.MonkeyPatch, answer: str, left: bool
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda words: answer)
    gc(littered.root, dry_run=False, yes=False, every_name=False)
    assert Path(littered.root, ".tmp-old").exists() == left


def test_what_began_while_the_answer_was_thought_over_is_kept(
    littered: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun_meanwhile() -> bool:
        put_run(littered, "just-begun")
        return True

    monkeypatch.setattr(garbage, "_agreed", begun_meanwhile)
    gc(littered.root, dry_run=False, yes=False, every_name=False)
    assert littered.exists(f"trials/{KEYS[0]}/checkpoints/0000000002/model.safetensors")


def test_bytes_are_said_with_their_prefix() -> None:
    said: dict[Any, str] = {912: "912 B", 1500: "1.5 kB", 60_200_000: "60.2 MB", 3e9: "3.0 GB"}
    assert {count: in_bytes(count) for count in said} == said
