"""The Ray cluster that a run starts or joins: on loopback, quiet, and left as it was found.

What Ray's own tools offer for tidying up asks the dashboard, which is not running here, and gives
up when a second Ray instance runs on the machine. So this file asks the control store (GCS) of the
cluster that this driver is connected to, with Ray's own token, about this driver's job only.
"""

import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import ray
from ray._private import ray_constants
from ray._private.grpc_utils import init_grpc_channel
from ray._private.log import generate_logging_config
from ray._private.ray_logging import global_worker_stdstream_dispatcher
from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc
from ray.exceptions import RayError

from s3ta.errors import UserError

log = logging.getLogger("ray.s3ta")  # below "ray", so that it ends up in the run's log file

EVERYWHERE = {
    # A finished or dead worker is noticed after 0.2 s instead of 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Waiting for CPUs that another trial still uses is no failure; the default gives up after 60 s.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3600",
    "RAY_TRAIN_METRICS_ENABLED": "0",  # nobody collects them
    # Train sets this for its controller alone. Set for the whole job, the controller's environment
    # is everybody's, and it moves into a worker process that is already there.
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
    # A relative path in a trial means what it means to the driver.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Settings of all processes of the job, on any cluster."""

DRIVER = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing phones out
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a banner at verbosity 0 too
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON, TensorBoard: results are our files
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default; silences a FutureWarning
}

_LOOPBACK_DEVICE = "lo0" if sys.platform == "darwin" else "lo"
LOCAL = {
    # One process less per fit: there are no nodes to be drained.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Undocumented on Linux, and the only setting that keeps every port of Ray off the network.
    ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
    "GLOO_SOCKET_IFNAME": _LOOPBACK_DEVICE,
    "NCCL_SOCKET_IFNAME": _LOOPBACK_DEVICE,
}
"""Settings of all processes of a cluster that is started here."""


@dataclass(frozen=True)
class Cluster:
    """A connection to Ray. `cpus` are logical; `logs` is the folder of Ray's own log files."""

    address: str
    cpus: int
    logs: Path


@contextmanager
def local_cluster(
    *, cpus: int | None = None, address: str = "local", log_file: Path | None = None
) -> Iterator[Cluster]:
    """Ray for the time of a `with` block: started here, or joined at `auto` or host:port.

    `cpus` sets the logical CPUs of a cluster started here; a joined one has its own. What Ray and
    its workers print goes to `log_file`, or, without one, nowhere but to Ray's own log folder.
    At the end whatever this driver still has on the cluster is removed.

    Raises:
        UserError: there is no cluster at `address`, or Ray cannot start here.
    """
    own = address == "local"
    settings = EVERYWHERE | (LOCAL if own else {})
    with _environment(settings | DRIVER), _loopback(own), _ray_prints_to(log_file):
        yield from _session(cpus if own else None, address, log_file is not None, settings)


def _session(
    cpus: int | None, address: str, relay: bool, settings: dict[str, str]
) -> Iterator[Cluster]:
    try:
        context = ray.init(
            address=address,
            num_cpus=cpus,
            include_dashboard=False if address == "local" else None,
            log_to_driver=relay,
            logging_level=logging.INFO if relay else logging.ERROR,
            runtime_env={"env_vars": settings},
        )
    except (ConnectionError, RuntimeError, RayError) as error:
        raise UserError(
            f"cluster.address is {address!r}, and Ray did not answer there: {error}. "
            "Give the host:port of a running cluster, or `local` to start one here."
        ) from error
    info: dict[str, Any] = context.address_info
    logs = Path(info["session_dir"]) / "logs"
    with _relayed(relay):
        try:
            yield Cluster(info["gcs_address"], int(ray.cluster_resources().get("CPU", 0)), logs)
        finally:
            try:
                remove_leftovers()
            except grpc.RpcError as error:  # the cluster itself is gone, and all on it
                log.warning("nothing could be removed from the cluster: %s", error.code())
            finally:
                ray.shutdown()


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _loopback(own: bool) -> Iterator[None]:
    """The variable in LOCAL is read when ray is imported, which may be long past."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = before and not own
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _ray_prints_to(log_file: Path | None) -> Iterator[None]:
    """Send what Ray's Python code says in this process to a file; without one, only errors out."""
    generate_logging_config()  # once per process; ray.init would add its own handler to ours
    logger = logging.getLogger("ray")
    handlers, level = logger.handlers, logger.level
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        logger.handlers = [logging.FileHandler(log_file)]
    try:
        yield
    finally:
        if log_file is not None:
            logger.handlers[0].close()
        logger.handlers = handlers
        logger.setLevel(level)


@contextmanager
def _relayed(relay: bool) -> Iterator[None]:
    """Let what the workers print go the way of Ray's log messages instead of to the terminal."""

    def write(data: dict[str, Any]) -> None:
        who = data.get("actor_name") or data.get("task_name") or "worker"
        for line in data["lines"] if data["pid"] != "autoscaler" else ():
            log.info("(%s pid=%s) %s", who, data["pid"], line)

    if relay:
        global_worker_stdstream_dispatcher.remove_handler("ray_print_logs")
        global_worker_stdstream_dispatcher.add_handler("s3ta", write)
    try:
        yield
    finally:
        global_worker_stdstream_dispatcher.remove_handler("s3ta")


def _channel() -> grpc.Channel:
    channel: grpc.Channel = init_grpc_channel(ray.get_runtime_context().gcs_address)
    return channel


def _actors(channel: grpc.Channel) -> list[Any]:
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    stub = gcs_service_pb2_grpc.ActorInfoGcsServiceStub(channel)
    reply = stub.GetAllActorInfo(gcs_service_pb2.GetAllActorInfoRequest(), timeout=10)
    dead = gcs_pb2.ActorTableData.DEAD
    return [a for a in reply.actor_table_data if a.job_id == job and a.state != dead]


def _groups(channel: grpc.Channel) -> list[Any]:
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    stub = gcs_service_pb2_grpc.PlacementGroupInfoGcsServiceStub(channel)
    reply = stub.GetAllPlacementGroup(gcs_service_pb2.GetAllPlacementGroupRequest(), timeout=10)
    removed = gcs_pb2.PlacementGroupTableData.REMOVED
    tables = reply.placement_group_table_data
    return [g for g in tables if g.creator_job_id == job and g.state != removed]


def _describe(living: list[Any]) -> list[str]:
    """`what id` of each, sorted."""
    return sorted(
        f"{thing.class_name} {thing.actor_id.hex()}"
        if isinstance(thing, gcs_pb2.ActorTableData)
        else f"placement group {thing.placement_group_id.hex()}"
        for thing in living
    )


def alive() -> tuple[list[str], list[str]]:
    """The actors and the placement groups of this driver that exist now, each as `what id`."""
    with _channel() as channel:
        return _describe(_actors(channel)), _describe(_groups(channel))


def _remove_groups(channel: grpc.Channel, groups: list[Any]) -> None:
    stub = gcs_service_pb2_grpc.PlacementGroupInfoGcsServiceStub(channel)
    for group in groups:
        request = gcs_service_pb2.RemovePlacementGroupRequest(
            placement_group_id=group.placement_group_id
        )
        stub.RemovePlacementGroup(request, timeout=10)


def _kill(channel: grpc.Channel, actors: list[Any]) -> None:
    stub = gcs_service_pb2_grpc.ActorInfoGcsServiceStub(channel)
    for actor in actors:
        request = gcs_service_pb2.KillActorViaGcsRequest(
            actor_id=actor.actor_id, force_kill=True, no_restart=True
        )
        stub.KillActorViaGcs(request, timeout=10)


def remove_leftovers(within_s: float = 10.0) -> list[str]:
    """Remove every actor and placement group of this driver, detached ones too, and wait for it.

    For the end of a run: it makes no difference between what leaked and what is in use. Returns
    what was removed, each as `what id`; what is still there after `within_s` is logged.
    """
    deadline = time.monotonic() + within_s
    seen: set[str] = set()
    with _channel() as channel:
        while True:
            actors, groups = _actors(channel), _groups(channel)
            if not actors and not groups:
                break
            if time.monotonic() > deadline:
                log.warning("not removed in %g s: %s", within_s, _describe(actors + groups))
                break
            seen.update(_describe(actors + groups))
            _remove_groups(channel, groups)
            _kill(channel, actors)
            time.sleep(0.05)
    for what in sorted(seen):
        log.info("removed %s", what)
    return sorted(seen)


def remove_orphans() -> list[str]:
    """Remove the placement groups of this driver whose maker, an actor, has died.

    Safe at any time while a sweep runs. Ray keeps the group of a dead Train controller for as long
    as the driver lives, and the CPUs in it are lost to the trials that follow.
    """
    nil = ray.ActorID.nil().binary()  # made by the driver or a task: not an orphan
    with _channel() as channel:
        orphans = [
            group
            for group in _groups(channel)
            if group.creator_actor_dead and group.creator_actor_id not in (b"", nil)
        ]
        _remove_groups(channel, orphans)
    for what in _describe(orphans):
        log.info("removed %s", what)
    return _describe(orphans)


@contextmanager
def process_group(backend: str = "gloo") -> Iterator[tuple[int, int]]:
    """In a train worker: its (rank, world size), joined by torch.distributed if there are several.

    To be used with Ray's DataParallelTrainer. Its TorchTrainer would do this too, but torch's store
    then listens, unauthenticated, on every interface; here rank 0 listens on its node's own
    address, which is loopback on a cluster started here.
    """
    import torch.distributed
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero

    rank, size = get_context().get_world_rank(), get_context().get_world_size()
    if size == 1:
        yield rank, size
        return
    server = socket.create_server((ray.util.get_node_ip_address(), 0)) if rank == 0 else None
    host, port = broadcast_from_rank_zero(server.getsockname()[:2] if server else None)
    store = torch.distributed.TCPStore(
        host, port, size, server is not None, master_listen_fd=server.detach() if server else None
    )
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield rank, size
    finally:
        torch.distributed.destroy_process_group()
