"""One local cluster for all tests of this file, started in this process."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import ray
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.util.placement_group import placement_group, placement_group_table

from s3ta.errors import UserError
from s3ta_platform.cluster import Cluster, local_cluster
from s3ta_platform.fits import fit, process_group
from s3ta_platform.leftovers import alive, remove_leftovers, remove_orphans

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def log_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs") / "ray.log"


@pytest.fixture(scope="module")
def running(log_file: Path) -> Iterator[Cluster]:
    before = dict(os.environ)
    with local_cluster(cpus=2, log_file=log_file) as cluster:
        yield cluster
    ray_writes = {name for name in os.environ if name.startswith("RAY_") and name not in before}
    assert ray_writes <= {"RAY_AUTH_MODE"}, "the cluster's settings must not outlive it"


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    yield running
    remove_leftovers()


def maker(detached: bool) -> Any:
    """An actor with a placement group of its own, as Train's controller has one."""

    class Maker:
        def __init__(self) -> None:
            self.group = placement_group([{"CPU": 1}], lifetime="detached" if detached else None)
            ray.get(self.group.ready())

        def group_id(self) -> str:
            return str(self.group.id.hex())

    lifetime = "detached" if detached else None
    return ray.remote(Maker).options(num_cpus=0, lifetime=lifetime).remote()


def listening(process: psutil.Process) -> set[str]:
    """The addresses on which a process and its descendants listen."""
    found: set[str] = set()
    for member in [process, *process.children(recursive=True)]:
        try:
            connections = member.net_connections(kind="inet")
        except psutil.NoSuchProcess:
            continue
        found |= {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    return found


LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_every_listening_socket_is_on_loopback(cluster: Cluster) -> None:
    actor = maker(detached=False)
    assert ray.get(ray.remote(lambda: 3).remote()) == 3
    assert ray.get(actor.group_id.remote())
    found = listening(psutil.Process())
    assert found
    assert found <= LOOPBACK


@pytest.mark.filterwarnings("ignore:.use_:DeprecationWarning")
def test_training_workers_add_up_on_loopback_and_need_no_more_actors(
    cluster: Cluster, tmp_path: Path
) -> None:
    def loop(config: dict[str, Any]) -> None:
        import torch

        with process_group() as group:
            rank = group.rank
            total = torch.tensor([[10.0**rank]], dtype=torch.float64)
            group.add_up(total)
            assert group.world == 2
            assert group.agree(7 + rank) == 7
            assert total.item() == 11.0
            found = listening(psutil.Process())
            actors = sorted(name.split()[0] for name in alive()[0])
            Path(config["folder"], f"{rank}.json").write_text(json.dumps([list(found), actors]))
            torch.distributed.barrier()

    fit(loop, {"folder": str(tmp_path)}, name="sum", scratch=tmp_path / "scratch", workers=2)
    for rank in range(2):
        found, actors = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found
        assert set(found) <= LOOPBACK
        assert actors == [
            "RayTrainWorker",
            "RayTrainWorker",
            "SynchronizationActor",
            "TrainController",
            "_AutoscalingCoordinatorActor",
        ]


@pytest.mark.filterwarnings("ignore:.use_:DeprecationWarning")
@pytest.mark.parametrize("fails", [0, 1])
def test_a_worker_that_fails_amid_a_sum_is_told_of_at_once(
    fails: int, cluster: Cluster, tmp_path: Path
) -> None:
    """It has begun a sum that the other never begins, or the other has and it has not."""

    def loop(config: dict[str, Any]) -> None:
        import torch

        with process_group() as group:
            group.begin_sum(torch.zeros(2, 3))
            if group.rank == fails:
                group.begin_sum(torch.zeros(2, 3))
                raise RuntimeError("no memory in the last microbatch")
            group.add_up(torch.zeros(2, 1))
            group.agree(3)

    start = time.monotonic()
    with pytest.raises(ray.train.TrainingFailedError, match="no memory in the last microbatch"):
        fit(loop, {}, name="amid", scratch=tmp_path / "scratch", workers=2, max_failures=0)
    assert time.monotonic() - start < 60


def test_a_client_without_the_token_is_refused(cluster: Cluster) -> None:
    request = gcs_service_pb2.GetAllActorInfoRequest()
    with grpc.insecure_channel(cluster.address) as channel:
        stub = gcs_service_pb2_grpc.ActorInfoGcsServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refusal:
            stub.GetAllActorInfo(request, timeout=10)
    assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_what_a_driver_left_is_removed_detached_or_not(cluster: Cluster) -> None:
    actors = [maker(detached=False), maker(detached=True)]
    groups = {f"placement group {ray.get(actor.group_id.remote())}" for actor in actors}
    assert ray.available_resources().get("CPU", 0) == 0  # type: ignore[no-untyped-call]
    left = alive()
    assert len(left[0]) == 2
    assert set(left[1]) == groups
    removed = remove_leftovers()
    assert set(removed) == {*left[0], *left[1]}
    assert alive() == ([], [])
    assert remove_leftovers() == []


def test_only_the_groups_of_dead_actors_are_orphans(cluster: Cluster) -> None:
    dead, living = maker(detached=False), maker(detached=False)
    lost, kept = ray.get([dead.group_id.remote(), living.group_id.remote()])
    assert remove_orphans() == []
    ray.kill(dead)
    while len(alive()[0]) > 1:
        pass
    assert f"placement group {lost}" in alive()[1], "Ray tidies up itself now: drop remove_orphans"
    assert remove_orphans() == [f"placement group {lost}"]
    assert alive()[1] == [f"placement group {kept}"]
    assert placement_group_table()[lost]["state"] == "REMOVED"


def test_what_workers_print_goes_to_the_log_file(
    cluster: Cluster, log_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def shout() -> None:
        print("a word from a worker")

    ray.get(ray.remote(shout).remote())
    while "a word from a worker" not in log_file.read_text():
        pass
    assert capfd.readouterr() == ("", "")


def test_logical_cpus_are_what_was_asked_for(cluster: Cluster) -> None:
    assert cluster.cpus == 2
    assert socket.gethostbyname(cluster.address.split(":")[0]).startswith("127.")
    assert cluster.logs.is_dir()


JOIN = """
import ray, sys
from s3ta_platform.cluster import local_cluster
from s3ta_platform.leftovers import alive

class Mailbox:
    def answer(self):
        return 42

with local_cluster(cpus=7, address=sys.argv[1]) as cluster:
    mailbox = ray.remote(Mailbox).options(num_cpus=0, lifetime="detached").remote()
    print(ray.get(mailbox.answer.remote()), cluster.cpus, len(alive()[0]))
"""


def test_who_joins_removes_only_his_own(cluster: Cluster) -> None:
    actor = maker(detached=False)
    ray.get(actor.group_id.remote())
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "platform")])}
    environment.pop("RAY_AUTH_MODE", None)  # as in another terminal
    command = [sys.executable, "-c", JOIN, cluster.address]
    joined = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (joined.stdout, joined.stderr) == ("42 2 1\n", "")
    actors = ray._private.state.actors().values()
    states = {actor["ActorClassName"]: actor["State"] for actor in actors}
    assert (states["Mailbox"], len(alive()[0])) == ("DEAD", 1)


def test_an_address_where_nothing_answers_is_refused_at_once() -> None:
    refusal = pytest.raises(UserError, match=r"127\.0\.0\.1:1'.*host:port")
    with refusal, local_cluster(address="127.0.0.1:1"):
        pass
