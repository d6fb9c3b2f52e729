"""Fits of Ray Train as this project runs them: few processes, and no port that others can reach."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util import get_node_ip_address

from s3ta_platform.notices import Notices
from s3ta_platform.stacks import ask_and_end, listen

if TYPE_CHECKING:
    from s3ta_platform.groups import Group

RESIZED_EVERY_S = 30.0
"""Seconds between looks whether an elastic group can have more workers, and between tries."""
ELASTIC_STARTS = 120
"""So often in vain: an hour's patience."""

UNUSED = {
    # Asks the dashboard, in vain without one; leftovers.remove_orphans does its work.
    "PlacementGroupCleanerCallback",
    # Serves Ray Data; images are read by our own code.
    "DatasetsCallback",
}
"""Parts of Train that cost a fit a process each: 4 of its 8 seconds of CPU time."""


class Trainer(DataParallelTrainer):
    """Ray's trainer, which is TorchTrainer without its process group (see process_group)."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ not in UNUSED]


def fit(
    loop: Callable[[dict[str, Any]], Any],
    config: dict[str, Any],
    *,
    name: str,
    scratch: Path | str,
    workers: int = 1,
    workers_min: int | None = None,
    resources: dict[str, float] | None = None,
    max_failures: int = 2,
) -> Any:
    """Run `loop(config)` on each of `workers` train workers until all have returned.

    Gives what it returned on rank 0. `resources` are one worker's: {"CPU": 1} unless given. After a
    worker has died or raised, all are started again, up to `max_failures` times: the loop has to go
    on from what is durable. With `workers_min` the group is elastic: it runs on so many workers at
    least, and all are started again as nodes leave and come. `scratch` is an absolute path, new for
    every start of the driver: Ray returns the old result of a `name` that it has finished there,
    and unpickles what it finds.

    Raises:
        ray.train.TrainingFailedError: the last failure, when there were too many.
        ray.exceptions.RayActorError: Train's controller has died, whatever the failures allowed.
    """
    elastic = workers_min is not None and workers_min < workers
    callbacks: list[Any] = [Notices()]
    run_config: Any = RunConfig(
        name=name,
        storage_path=str(scratch),
        # Without the second limit a number of workers that cannot be had is tried for ever.
        failure_config=FailureConfig(
            max_failures=max_failures,
            controller_failure_limit=ELASTIC_STARTS if elastic else max_failures,
        ),
        callbacks=callbacks,
    )
    resources = resources or {"CPU": 1}
    scaling = ScalingConfig(
        num_workers=(workers_min, workers) if elastic else workers,  # type: ignore[arg-type]
        use_gpu=resources.get("GPU", 0) > 0,
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=RESIZED_EVERY_S,
    )
    trainer = Trainer(loop, train_loop_config=config, scaling_config=scaling, run_config=run_config)
    with _less_patience() if elastic else nullcontext():
        result: Any = trainer.fit()
    return result.return_value


@contextmanager
def _less_patience() -> Iterator[None]:
    """For an elastic group: after a node has gone Train may count it in for a moment, and wait.

    Train's controller takes its settings from the environment of whoever starts it.
    """
    name = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
    before = os.environ.get(name)
    os.environ[name] = str(RESIZED_EVERY_S)
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


@contextmanager
def process_group(
    device: str = "cpu", hang_s: float = 600.0, patience_s: float = 3600.0
) -> Iterator["Group"]:
    """In a train worker: the workers, joined by torch.distributed if there are several, watched.

    A worker without progress for `hang_s` is ended. A sum may take `patience_s` longer than that:
    so long a worker may wait for the store.

    Ray's TorchTrainer would do the first too, but then torch's store listens, unauthenticated, on
    every interface, also for a single worker. Here rank 0 listens on its node's own address, which
    is loopback on a cluster started by cluster.local_cluster.
    """
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero

    # torch takes a second or two: not in the controller.
    from s3ta_platform.groups import Alone, Joined
    from s3ta_platform.watchdog import Watch

    rank, size = get_context().get_world_rank(), get_context().get_world_size()
    process = listen(ray.get_runtime_context().get_node_id())
    if size == 1:
        with Watch(rank, size, hang_s, None, process, ask_and_end):
            yield Alone()
        return
    import torch.distributed

    own: str = get_node_ip_address()  # type: ignore[no-untyped-call]
    server = socket.create_server((own, 0)) if rank == 0 else None
    host, port = broadcast_from_rank_zero(server.getsockname()[:2] if server else None)
    store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        host, port, size, server is not None, master_listen_fd=server.detach() if server else None
    )
    own_store = torch.distributed.TCPStore(host, port, size, False)  # type: ignore[attr-defined]
    with Watch(rank, size, hang_s, own_store, process, ask_and_end) as watch:
        torch.distributed.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=patience_s + 2 * hang_s),
        )
        group = Joined(rank, size, device, watch)
        try:
            yield group
        finally:
            # Amid a sum it would wait for workers that may never begin it. Whoever fails there
            # tells Train, which ends all of them.
            if not group.begun:
                torch.distributed.destroy_process_group()
