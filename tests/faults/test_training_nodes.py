"""An elastic training whose nodes are drained, leave and come: 2, then 1, then 2 workers."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from diary import Diary
from lessons import EPOCH_STEPS, STEPS, expect_same, saved, training, training_job
from ray._private.authentication.authentication_token_setup import (
    enable_token_auth_by_default,
    ensure_token_if_auth_enabled,
)
from ray.cluster_utils import Cluster
from waiting import until

from s3ta_platform import fits
from s3ta_platform.cluster import local_cluster

pytestmark = pytest.mark.faults

DEADLINE_S = 15


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without CPUs, which asks for this user's token, as `ray start` would make it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
        patch.delenv("RAY_AUTH_MODE", raising=False)  # else what is set here would stay
        patch.setattr(fits, "RESIZED_EVERY_S", 3.0)
        enable_token_auth_by_default()
        ensure_token_if_auth_enabled()
        head = {"num_cpus": 0, "include_dashboard": False}
        cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        yield cluster
        cluster.shutdown()


def drain(cluster: Any, node: Any) -> None:
    """As whoever hears of a spot instance's end would."""
    command = Path(sys.executable).with_name("ray")
    options = {
        "address": cluster.address,
        "node-id": node.node_id,
        "reason": "DRAIN_NODE_REASON_PREEMPTION",
        "reason-message": "a test",
        "deadline-remaining-seconds": str(DEADLINE_S),
    }
    pairs = [part for name, value in options.items() for part in (f"--{name}", value)]
    done = subprocess.run([command, "drain-node", *pairs], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_drained_node_costs_a_checkpoint_and_the_group_shrinks_and_grows_again(
    lessons: Path, undisturbed: Path, tmp_path: Path, cluster: Any
) -> None:
    settings = ["cluster.checkpoint_steps=null", "cluster.train_workers_min=1"]
    job, diary = training_job(lessons, tmp_path, *settings), Diary(tmp_path, pace_s=0.4)
    leaves, _ = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)

    def workers() -> list[int]:
        """How many there were, one after the other."""
        return [number for number, _ in groupby(entry.workers for entry in diary.entries())]

    with (
        local_cluster(address=cluster.address, log_file=tmp_path / "ray.log") as joined,
        training(job, diary, tmp_path / "scratch"),
    ):
        assert joined.cpus == 2
        until(lambda: len(diary.entries()) > EPOCH_STEPS + 2)
        drain(cluster, leaves)
        until(lambda: saved(tmp_path, job.key) % EPOCH_STEPS, DEADLINE_S)
        assert workers() == [2], "saved long before the deadline, and gone on"
        until(lambda: workers() == [2, 1])
        cluster.remove_node(leaves)
        cluster.add_node(num_cpus=1)
        until(lambda: workers() == [2, 1, 2])
    assert {entry.step for entry in diary.entries()} == set(range(1, STEPS + 1))
    expect_same(tmp_path, undisturbed, job.key)
