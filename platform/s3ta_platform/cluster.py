"""The Ray cluster that a run starts or joins: on loopback, quiet, and left as it was found."""

import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import ray
from ray._private import ray_constants
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray._private.log import generate_logging_config
from ray._private.ray_logging import global_worker_stdstream_dispatcher
from ray._private.services import get_ray_address_from_environment
from ray.exceptions import RayError

from s3ta.errors import UserError
from s3ta_platform.leftovers import remove_leftovers
from s3ta_platform.packing import Node

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
OWN = {
    # One process less per fit: the only node is this one, and is not drained.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""Settings of all processes of a cluster started here."""

LOCAL = {
    # Undocumented on Linux, and the only setting that keeps every port of Ray off the network.
    ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
    "GLOO_SOCKET_IFNAME": _LOOPBACK_DEVICE,
    "NCCL_SOCKET_IFNAME": _LOOPBACK_DEVICE,
}
"""Settings of all processes of a cluster on this machine's loopback."""


@dataclass(frozen=True)
class Cluster:
    """A connection to Ray. CPUs are logical; `logs` is the folder of Ray's own log files."""

    address: str
    nodes: tuple[Node, ...]
    logs: Path

    @property
    def cpus(self) -> int:
        return int(sum(node.cpus for node in self.nodes))


@contextmanager
def local_cluster(
    *,
    cpus: int | None = None,
    address: str = "local",
    log_file: Path | None = None,
    hang_s: float = 600.0,
) -> Iterator[Cluster]:
    """Ray for the time of a `with` block: started here, or joined at `auto` or host:port.

    `cpus` sets the logical CPUs of a cluster started here; a joined one has its own. What Ray and
    its workers print goes to `log_file`, or, without one, nowhere but to Ray's own log folder.
    A training worker that does not answer for `hang_s` is replaced.
    At the end whatever this driver still has on the cluster is removed.

    Raises:
        UserError: there is no cluster at `address`, or Ray cannot start here.
    """
    own = address == "local"
    address = address if own else _running(address)
    loopback = own or address.rsplit(":", 1)[0] in ("127.0.0.1", "localhost")
    settings = EVERYWHERE | (LOCAL if loopback else {}) | (OWN if own else {})
    settings["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(hang_s)
    with _environment(settings | DRIVER), _loopback(loopback), _ray_prints_to(log_file):
        yield from _session(cpus if own else None, address, log_file is not None, settings)


def _running(address: str) -> str:
    """The host:port of a cluster that answers. Ray would try for ten minutes to reach another."""
    try:
        found: str = (
            get_ray_address_from_environment("auto", None) if address == "auto" else address
        )
        host, port = found.rsplit(":", 1)
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"cluster.address is {address!r}, and no Ray cluster answers there ({error}). "
            "Give the host:port of a running cluster, or `local` to start one here."
        ) from error
    return found


def _session(
    cpus: int | None, address: str, relay: bool, settings: dict[str, str]
) -> Iterator[Cluster]:
    if address != "local":
        # A cluster started here asks for this user's token; joining, Ray would not show it.
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        context: Any = ray.init(
            address=address,
            num_cpus=cpus,
            include_dashboard=False if address == "local" else None,
            log_to_driver=relay,
            logging_level=logging.getLogger("ray").level,
            runtime_env={"env_vars": settings},
        )
    except (ConnectionError, RayError) as error:
        raise UserError(
            f"Ray could not be started or joined (cluster.address is {address!r}): {error}. "
            "`s3ta doctor` looks for the cause."
        ) from error
    logs = Path(context.address_info["session_dir"]) / "logs"
    resources = (node["Resources"] for node in ray.nodes() if node["Alive"])
    nodes = tuple(Node(r.get("CPU", 0.0), r.get("GPU", 0.0)) for r in resources)
    with _relayed(relay):
        try:
            yield Cluster(context.address_info["gcs_address"], nodes, logs)
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
def _loopback(wanted: bool) -> Iterator[None]:
    """The variable in LOCAL is read when ray is imported, which may be long past."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = before and not wanted
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
    logger.setLevel(logging.ERROR if log_file is None else logging.INFO)
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
