"""What this driver has on its Ray cluster, and the removal of what a trial or a run left behind.

Ray's own tools for this ask the dashboard, which is not running here, and give up when a second Ray
instance runs on the machine. So this file asks the control store (GCS) of the cluster that this
driver is connected to, with Ray's own token, and about this driver's job only.
"""

import logging
import time
from typing import Any

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

log = logging.getLogger("ray.s3ta")  # below "ray", so that it ends up in the run's log file

TIMEOUT_S = 10  # of one question to the control store


def _channel() -> grpc.Channel:
    channel: grpc.Channel = init_grpc_channel(ray.get_runtime_context().gcs_address)
    return channel


def _actors(channel: grpc.Channel) -> list[Any]:
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    stub = gcs_service_pb2_grpc.ActorInfoGcsServiceStub(channel)
    reply = stub.GetAllActorInfo(gcs_service_pb2.GetAllActorInfoRequest(), timeout=TIMEOUT_S)
    dead = gcs_pb2.ActorTableData.DEAD
    return [a for a in reply.actor_table_data if a.job_id == job and a.state != dead]


def _groups(channel: grpc.Channel) -> list[Any]:
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    stub = gcs_service_pb2_grpc.PlacementGroupInfoGcsServiceStub(channel)
    reply = stub.GetAllPlacementGroup(
        gcs_service_pb2.GetAllPlacementGroupRequest(), timeout=TIMEOUT_S
    )
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


def wait_for_room(within_s: float) -> None:
    """Wait until no placement group of this driver waits for resources, at most `within_s`.

    A group is placed about a second after resources are given back, an actor at once: without a
    wait whoever asks for actors next would always be served before a trial that waits to train.
    """
    deadline = time.monotonic() + within_s
    with _channel() as channel:
        while time.monotonic() < deadline:
            pending = gcs_pb2.PlacementGroupTableData.PENDING
            if all(group.state != pending for group in _groups(channel)):
                return
            time.sleep(0.2)


def _remove_groups(channel: grpc.Channel, groups: list[Any]) -> None:
    stub = gcs_service_pb2_grpc.PlacementGroupInfoGcsServiceStub(channel)
    for group in groups:
        request = gcs_service_pb2.RemovePlacementGroupRequest(
            placement_group_id=group.placement_group_id
        )
        stub.RemovePlacementGroup(request, timeout=TIMEOUT_S)


def _kill(channel: grpc.Channel, actors: list[Any]) -> None:
    stub = gcs_service_pb2_grpc.ActorInfoGcsServiceStub(channel)
    for actor in actors:
        request = gcs_service_pb2.KillActorViaGcsRequest(
            actor_id=actor.actor_id, force_kill=True, no_restart=True
        )
        stub.KillActorViaGcs(request, timeout=TIMEOUT_S)


def remove_leftovers(within_s: float = 10) -> list[str]:
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
