"""A node that leaves the cluster while a worker on it attacks: its work is done on another."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from drill import expect_same, final_rows, planned, snapshots, working
from ray._private.authentication.authentication_token_setup import (
    enable_token_auth_by_default,
    ensure_token_if_auth_enabled,
)
from ray.cluster_utils import Cluster
from waiting import until

from s3ta_platform.cluster import local_cluster
from s3ta_platform.evaluate import evaluate
from s3ta_platform.leftovers import alive
from s3ta_platform.ray_backend import OnRay

pytestmark = pytest.mark.faults


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Any]:
    """A head without CPUs, which asks for this user's token, as `ray start` would make it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHAKY_PACE_S", "0.05")
        patch.setenv("SHAKY_CALM", str(tmp_path / "calm"))
        patch.delenv("RAY_AUTH_MODE", raising=False)  # else what is set here would stay
        enable_token_auth_by_default()
        ensure_token_if_auth_enabled()
        head = {"num_cpus": 0, "include_dashboard": False}
        cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        yield cluster
        cluster.shutdown()


def test_the_work_of_a_lost_node_is_done_by_another(
    file: Path, reference: pa.Table, tmp_path: Path, cluster: Any
) -> None:
    settings = ["evaluate.images=32", "evaluate.gallery_images=0"]
    _, job, _ = planned(file, tmp_path, *settings)
    leaves, _ = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)
    with (
        local_cluster(address=cluster.address, log_file=tmp_path / "ray.log") as joined,
        ThreadPoolExecutor(1) as pool,
    ):
        assert joined.cpus == 2
        done = pool.submit(evaluate, job, OnRay(job.cluster, scratch="").fan_out)
        raylet = leaves.all_processes["raylet"][0].process.pid
        until(lambda: len(snapshots(tmp_path)) == 2 or (done.done() and done.result()))
        children = {p.pid for p in psutil.Process(raylet).children(recursive=True)}
        (victim,) = children & working(tmp_path).keys()  # in the middle of an attack
        cluster.remove_node(leaves, allow_graceful=False)
        (tmp_path / "calm").touch()
        done.result(timeout=120)
        until(lambda: alive() == ([], []), 10)  # Ray books a death a moment later
    until(lambda: not psutil.pid_exists(victim))
    expect_same(final_rows(file, tmp_path, *settings), reference)
