"""Runs make themselves known: which are at work or dead, how far they are, what they say."""

import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_records import KEYS, put_run

from s3ta.errors import UserError
from s3ta_platform import announce
from s3ta_platform.announce import Announced
from s3ta_platform.compose import compose
from s3ta_platform.events import Event, Phase
from s3ta_platform.hosts import process_start
from s3ta_platform.logs import logs, of_trial
from s3ta_platform.plan import Plan, make_plan
from s3ta_platform.ps import ago, lines, ps
from s3ta_platform.runs import State, find_run, find_trial, read_runs
from s3ta_platform.storage import Storage, open_storage

pytest_plugins = ["stores"]

ELSEWHERE = {"host": "other boot pid:[1]", "pid": 4}


def states(storage: Storage) -> dict[str, State]:
    return {run.id: run.state for run in read_runs(storage)}


@pytest.fixture
def ended_pid() -> tuple[int, str]:
    """A process of this host that has just ended, and when it was started."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started = process_start(process.pid)
        assert started
    return process.pid, started


def test_a_run_is_at_work_until_its_process_is_gone_or_it_says_how_it_ended(
    storage: Storage, ended_pid: tuple[int, str]
) -> None:
    pid, started = ended_pid
    put_run(storage, "mine")
    put_run(storage, "mine-but-quiet", heard_s=3600)
    put_run(storage, "killed", holder={"pid": pid, "started": started})
    put_run(storage, "pid-given-anew", holder={"started": "1"})
    put_run(storage, "elsewhere", holder=ELSEWHERE, heard_s=10)
    put_run(storage, "elsewhere-quiet", holder=ELSEWHERE, heard_s=100)
    put_run(storage, "over", state="failed", errors={KEYS[0]: "boom"})
    assert states(storage) == {
        "mine": State.running,
        "mine-but-quiet": State.silent,
        "killed": State.dead,
        "pid-given-anew": State.dead,
        "elsewhere": State.running,
        "elsewhere-quiet": State.silent,
        "over": State.failed,
    }


def test_the_latest_news_count_and_a_damaged_record_is_named_with_the_remedy(
    storage: Storage,
) -> None:
    standing = {"phase": "attack", "since": 5.0, "done": 3, "total": 12, "note": "top-1 50%"}
    put_run(storage, "one", trials={KEYS[0]: standing})
    (run,) = read_runs(storage)
    assert (run.standings[KEYS[0]].done, run.standings[KEYS[0]].phase) == (3, "attack")
    storage.put_new("runs/one/beat-000009", b"")  # after a power loss
    assert read_runs(storage) == [run]
    assert storage.put_new("runs/two/begun.json", b"{")
    with pytest.raises(
        UserError, match=r"runs/two is not the record of a run.* Delete that folder"
    ):
        read_runs(storage)


def test_what_is_left_of_a_run_that_is_just_removed_is_no_run(storage: Storage) -> None:
    storage.put_new("runs/gone/beat-000004", b"{}")
    assert read_runs(storage) == []


@pytest.fixture(scope="module")
def composed() -> Plan:
    overrides = ["tracking.store=http://me:secret@127.0.0.1:9"]
    return make_plan(compose(Path("experiments/quickstart.yaml"), overrides))


@pytest.fixture
def plan(composed: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(announce, "BEAT_S", 0.02)
    return replace(composed, experiment=replace(composed.experiment, results=f"{tmp_path}/r"))


def until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_announced_run_says_how_far_each_trial_is_and_how_it_ended(
    plan: Plan, tmp_path: Path
) -> None:
    storage, log = plan.storage, tmp_path / "logs" / "x.log"
    log.parent.mkdir()
    first, second = (trial.key for trial in plan.trials[:2])
    train = Event(trial=first, phase=Phase.train, done=30, total=120, note="loss 2.1")
    with Announced(plan, plan.trials[:2], log) as announced:
        (run,) = read_runs(storage)
        assert (run.state, run.holder.pid, run.todo) == (
            State.running,
            os.getpid(),
            [first, second],
        )
        assert {s.phase for s in run.standings.values()} == {"waiting"}
        announced.heard(train)
        until(lambda: read_runs(storage)[0].standings[first].done == 30)
        begun = read_runs(storage)[0].standings[first].since
        announced.heard(replace(train, done=60))
        until(lambda: read_runs(storage)[0].standings[first].done == 60)
        assert read_runs(storage)[0].standings[first].since == begun, "the same phase goes on"
        attack = Event(trial=first, phase=Phase.evaluate, done=9, total=9, durable=True)
        announced.heard(attack)
        announced.ended({second: "out of memory"})
    (run,) = read_runs(storage)
    assert (run.state, run.errors) == (State.failed, {second: "out of memory"})
    assert [run.standings[key].phase for key in (first, second)] == ["complete", "failed"]
    assert len(storage.list("runs/")) == 2, "the beats are gone"
    said = "".join(of_trial(log.read_text().splitlines(keepends=True), first))
    assert re.search(r"\] ResNet-8 train 30 of 120 images  loss 2.1\n", said)
    assert "train 60" not in said, "not more often than every 20 s"
    assert "attack 9 of 9 images" in said
    assert "out of memory" not in said


@pytest.mark.parametrize(
    ("error", "state", "words"),
    [(KeyboardInterrupt(), State.stopped, None), (RuntimeError("x"), State.broken, "RuntimeError")],
)
def test_a_run_that_is_interrupted_or_breaks_says_so(
    plan: Plan, tmp_path: Path, error: BaseException, state: State, words: str | None
) -> None:
    with pytest.raises(type(error)), Announced(plan, plan.trials, tmp_path / "x.log"):
        raise error
    (run,) = read_runs(plan.storage)
    assert run.state is state
    assert (words is None) == ("" not in run.errors)
    assert words is None or words in run.errors[""]


def test_no_password_is_stored(plan: Plan, tmp_path: Path) -> None:
    with Announced(plan, plan.trials, tmp_path / "x.log"):
        pass
    stored = [plan.storage.get(name) for name in plan.storage.list("runs/")]
    assert not any(b"secret" in content for content in stored)
    assert any(b"http://127.0.0.1:9" in content for content in stored)


def test_a_store_that_is_away_costs_news_and_nothing_else(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r").write_text("a file in the place of the root")
    with Announced(plan, plan.trials, tmp_path / "x.log") as announced:
        announced.ended({})
        (tmp_path / "r").unlink()
        until(lambda: states(plan.storage))  # it is made up for
    assert set(states(plan.storage).values()) == {State.finished}


def test_ps_shows_host_process_phase_progress_and_since_when(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, now = open_storage(str(tmp_path), durable=False), time.time()
    standing = {"phase": "train", "since": now - 600, "done": 1, "total": 4, "note": "loss 2.1"}
    put_run(storage, "one", trials={KEYS[0]: standing})
    put_run(storage, "two", name="other", state="finished")
    assert ps(str(tmp_path), everything=False) == 0
    shown = capsys.readouterr().out
    assert re.search(
        rf"one  running  .*, pid {os.getpid()}, since .* \(1.0 h\), heard 0 s ago", shown
    )
    assert re.search(rf"model a  {KEYS[0]}  train  +25%  for 10 min +loss 2.1\n", shown)
    assert re.search(rf"model b  {KEYS[1]}  waiting +for 1.0 h\n", shown)
    assert "two" not in shown
    ps(str(tmp_path), everything=True)
    assert "two  finished" in capsys.readouterr().out


def test_ps_shows_a_dead_run_until_the_same_experiment_runs_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = open_storage(str(tmp_path), durable=False)
    put_run(storage, "one", holder={"started": "1"})
    ps(str(tmp_path), everything=False)
    assert "one  dead" in capsys.readouterr().out
    put_run(storage, "two", state="stopped", begun_s=10)
    ps(str(tmp_path), everything=False)
    assert "Nothing runs" in (shown := capsys.readouterr().out)
    assert "2 ended before" in shown


def test_times_are_said_as_people_say_them() -> None:
    said = {-3: "0 s", 40: "40 s", 119: "119 s", 720: "12 min", 5400: "1.5 h", 200_000: "2.3 days"}
    assert {seconds: ago(seconds) for seconds in said} == said


def test_a_word_names_the_latest_run_or_the_error_says_what_it_can_be(storage: Storage) -> None:
    put_run(storage, "2026-made-5-ab", begun_s=50, holder={"pid": 5})
    put_run(storage, "2026-made-9-cd", begun_s=20, holder={"pid": 9})
    runs = read_runs(storage)
    found = {word: find_run(runs, word, "root").id[-2:] for word in ("made", "5", "2026-made-5")}
    assert found == {"made": "cd", "5": "ab", "2026-made-5": "ab"}
    with pytest.raises(UserError, match=r"'mad' names no run in root: it must be a run's id"):
        find_run(runs, "mad", "root")


def test_a_trial_is_found_in_the_latest_run_that_had_it_to_do(storage: Storage) -> None:
    put_run(storage, "first", begun_s=50, todo=KEYS)
    put_run(storage, "second", begun_s=40, todo=KEYS[:1])
    put_run(storage, "third", begun_s=30, todo=())
    runs = read_runs(storage)
    assert {key[0]: find_trial(runs, key[:5], "root")[1].id for key in KEYS} == {
        "a": "second",
        "b": "first",
    }
    for word in ("aaa", "c" * 16, "A" * 16):
        with pytest.raises(UserError, match=rf"'{word}' is no key of a trial that was run in root"):
            find_trial(runs, word, "root")


LOG = f"""chatter of the driver
2026-11-25 12:00:00 [{KEYS[0]}] model a is to be done
(_trial pid=7) trial {KEYS[0]}
(_trial pid=8) trial {KEYS[1]}
(_trial pid=7) Traceback of a
(_trial pid=8) Traceback of b
(_trial pid=7) trial {KEYS[1]}
(_trial pid=7) of b, too
"""


def test_a_trials_lines_are_those_that_name_it_and_what_its_worker_said_then() -> None:
    kept = [line.split(") ")[-1] for line in of_trial(LOG.splitlines(), KEYS[0])]
    assert kept == [
        f"2026-11-25 12:00:00 [{KEYS[0]}] model a is to be done",
        f"trial {KEYS[0]}",
        "Traceback of a",
    ]
    assert [line.split(") ")[-1] for line in of_trial(LOG.splitlines(), KEYS[1])] == [
        f"trial {KEYS[1]}",
        "Traceback of b",
        f"trial {KEYS[1]}",
        "of b, too",
    ]


def test_logs_are_those_of_the_run_or_the_trial_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, root = open_storage(str(tmp_path), durable=False), str(tmp_path)
    with pytest.raises(UserError, match="No run has written a log"):
        logs(None, root, 0)
    for name in ("one", "two"):
        file = tmp_path / f"{name}.log"
        file.write_text(LOG + f"the end of {name}\n")
        put_run(storage, name, name=name, state="finished", log=str(file))
    put_run(storage, "far", name="far", holder=ELSEWHERE, begun_s=9000)
    logs("one", root, 2)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"{tmp_path}/one.log"
    assert shown[1] == f"... {LOG.count(chr(10)) - 1} lines before; --lines 0 shows all"
    assert shown[-1] == "the end of one"
    logs(KEYS[0][:6], root, 0)
    shown = capsys.readouterr().out.splitlines()
    assert (len(shown), shown[-1]) == (4, "(_trial pid=7) Traceback of a")
    with pytest.raises(UserError, match=r"is not on this machine. It is on other: ask there"):
        logs("far", root, 0)
    assert lines(read_runs(storage)[0], time.time())
