"""Fits of Ray Train as this project runs them: few processes, and no port that others can reach."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util import get_node_ip_address

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
    loop: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    *,
    name: str,
    scratch: Path | str,
    workers: int = 1,
    resources: dict[str, float] | None = None,
    max_failures: int = 2,
) -> None:
    """Run `loop(config)` on each of `workers` train workers until all have returned.

    `resources` are one worker's: {"CPU": 1} unless given. After a worker has died or raised, all
    are started again, up to `max_failures` times: the loop has to go on from what is durable.
    `scratch` is an absolute path, new for every start of the driver: Ray returns the old result
    of a `name` that it has finished there, and unpickles what it finds.

    Raises:
        ray.train.TrainingFailedError: the last failure, when there were too many.
    """
    run_config: Any = RunConfig(
        name=name,
        storage_path=str(scratch),
        # Without the second limit a number of workers that cannot be had is tried for ever.
        failure_config=FailureConfig(
            max_failures=max_failures, controller_failure_limit=max_failures
        ),
    )
    resources = resources or {"CPU": 1}
    scaling = ScalingConfig(
        num_workers=workers,
        use_gpu=resources.get("GPU", 0) > 0,
        resources_per_worker=resources,
    )
    Trainer(loop, train_loop_config=config, scaling_config=scaling, run_config=run_config).fit()


@contextmanager
def process_group(backend: str = "gloo") -> Iterator[tuple[int, int]]:
    """In a train worker: its (rank, world size), joined by torch.distributed if there are several.

    Ray's TorchTrainer would do this too, but then torch's store listens, unauthenticated, on every
    interface, also for a single worker. Here rank 0 listens on its node's own address, which is
    loopback on a cluster started by cluster.local_cluster.
    """
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero

    rank, size = get_context().get_world_rank(), get_context().get_world_size()
    if size == 1:
        yield rank, size
        return
    # torch takes a second or two: after the early return, and not in the controller.
    import torch.distributed

    own: str = get_node_ip_address()  # type: ignore[no-untyped-call]
    server = socket.create_server((own, 0)) if rank == 0 else None
    host, port = broadcast_from_rank_zero(server.getsockname()[:2] if server else None)
    store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        host, port, size, server is not None, master_listen_fd=server.detach() if server else None
    )
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield rank, size
    finally:
        torch.distributed.destroy_process_group()
