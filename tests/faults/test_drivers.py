"""Drivers that are killed, stopped by Ctrl-C, or two at a time."""

import os
import time
from functools import partial
from pathlib import Path
from signal import SIGINT, SIGKILL

import pyarrow as pa
import pytest
from drill import (
    GETTING_TO_KNOW,
    STEPS,
    Run,
    ended,
    expect_same,
    final_rows,
    snapshots,
    steps_by_process,
    stop,
    stored,
    working,
)

pytestmark = pytest.mark.faults

SHARDS = 6
NO_GALLERY = "evaluate.gallery_images=0"


def test_a_killed_driver_started_again_does_only_what_is_missing(
    file: Path, reference: pa.Table, tmp_path: Path
) -> None:
    root, steps = tmp_path / "r", tmp_path / "steps"
    with ended(Run(file, root, NO_GALLERY, SHAKY_PACE_S=0.03)) as first:
        first.until(lambda: len(stored(root)) >= 2 and working(root))
        first.kill()
        assert first.process.returncode == -SIGKILL
        kept = stored(root)
        assert 2 <= len(kept) < SHARDS, "it was killed half-way"
        with ended(Run(file, root, NO_GALLERY, SHAKY_LOG=steps)) as second:
            printed = second.finish()
        first.expect_gone()
    assert "drill" in printed
    assert {key: stored(root)[key] for key in kept} == kept
    computed = steps_by_process(steps)
    at_most = (SHARDS - len(kept)) * STEPS + len(computed) * GETTING_TO_KNOW
    assert sum(computed.values()) <= at_most, "what was stored is not computed again"
    expect_same(final_rows(file, root), reference)


def test_ctrl_c_ends_within_seconds_and_keeps_what_is_finished(
    file: Path, reference: pa.Table, tmp_path: Path
) -> None:
    root = tmp_path / "r"
    with ended(Run(file, root, NO_GALLERY, SHAKY_PACE_S=0.03)) as run:
        run.until(lambda: len(stored(root)) >= 2 and working(root))
        kept, began = stored(root), time.monotonic()
        os.killpg(run.process.pid, SIGINT)
        printed = run.finish(code=130)
        assert time.monotonic() - began < 15
    assert printed.endswith("s3ta: stopped. Started again, a run goes on where it ended.\n")
    assert "Traceback" not in printed
    assert 2 <= len(stored(root)) < SHARDS, "it was stopped half-way"
    with ended(Run(file, root, NO_GALLERY, "cluster.executor=inline")) as again:
        again.finish()
    assert {key: stored(root)[key] for key in kept} == kept
    expect_same(final_rows(file, root), reference)


def test_two_drivers_at_once_share_the_work(
    file: Path, reference: pa.Table, tmp_path: Path
) -> None:
    root, steps = tmp_path / "r", tmp_path / "steps"
    settings = [
        NO_GALLERY,
        "cluster.snapshot_steps=1000",  # so that what is done twice is done from its beginning
        "tracking.store=",  # in one sqlite file, as by default
    ]

    def driver() -> Run:
        return Run(file, root, *settings, SHAKY_PACE_S=0.03, SHAKY_LOG=steps)

    with ended(driver()) as one, ended(driver()) as other:
        one.until(lambda: len(working(root)) >= 3)
        one.finish()
        other.finish()
    computed = steps_by_process(steps)
    needed = SHARDS * STEPS
    assert sum(computed.values()) <= needed + STEPS + len(computed) * GETTING_TO_KNOW
    assert not list(root.glob("leases/*"))
    assert not list(root.glob("snapshots/*"))
    expect_same(final_rows(file, root), reference)


def test_a_run_survives_the_death_of_every_kind_of_process_that_it_has_started(
    file: Path, reference: pa.Table, tmp_path: Path
) -> None:
    root, calm = tmp_path / "r", tmp_path / "calm"
    with ended(Run(file, root, NO_GALLERY, SHAKY_PACE_S=0.03, SHAKY_CALM=calm)) as run:
        run.until(lambda: snapshots(root))
        for name in ("Mailbox", "ImplicitFunc", "Worker"):  # messages, the trial, a shard
            (victim, *_) = run.until(partial(run.called, f"ray::{name}"))
            stop(victim)
        calm.touch()
        printed = run.finish()
    assert f"{SHARDS} of {SHARDS} shards" in printed, "progress is heard of again"
    expect_same(final_rows(file, root), reference)
