"""Does a sweep fit onto its cluster? Asked before anything starts, answered with the numbers."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from s3ta.errors import UserError
from s3ta_platform.plan import TrialPlan
from s3ta_platform.schema_cluster import ClusterSettings, Executor


@dataclass(frozen=True)
class Node:
    """A machine of the cluster."""

    cpus: float
    gpus: float = math.inf
    """Infinite where only Ray will know."""


def room(nodes: Sequence[Node], settings: ClusterSettings) -> int:
    """How many workers fit at once; one is never spread over two machines."""
    return sum(_on(node, settings) for node in nodes)


def _on(node: Node, settings: ClusterSettings) -> int:
    by_cpu = node.cpus // settings.threads
    if not settings.gpus:
        return int(by_cpu)
    return int(min(by_cpu, node.gpus // settings.gpus))


def require_room(
    trials: Sequence[TrialPlan], settings: ClusterSettings, nodes: Sequence[Node]
) -> None:
    """UserError if a trial could never train, or never be attacked, on these machines."""
    places = room(nodes, settings)
    gpus = f" and {settings.gpus:g} GPU(s)" if settings.gpus else ""
    each = f"each with {settings.threads} thread(s){gpus}"
    if places == 0:
        raise UserError(
            f"No worker fits, {each}: {_words(nodes, settings)}. "
            "Lower cluster.threads or cluster.gpus_per_worker, or use a larger cluster."
        )
    for trial in trials:
        for leg in trial.legs:
            if leg.workers > places:
                own = leg.stage < len(trial.experiment.cluster.stage_workers)
                name = "stage_workers" if own else "train_workers"
                stage = f" in stage {leg.stage + 1} of {trial.name}" if own else ""
                raise UserError(
                    f"cluster.{name} is {leg.workers}{stage}, {each}, but "
                    f"{_words(nodes, settings)}, room for {places}: a trial would wait for ever. "
                    f"Lower cluster.{name} or cluster.threads, or use a larger cluster."
                )


def this_machine(settings: ClusterSettings) -> list[Node]:
    """Where a local Ray would run; of a cluster that is joined only Ray knows the size: none."""
    local = settings.executor is Executor.ray and settings.address == "local"
    return [Node(settings.cpus or os.cpu_count() or 1)] if local else []


def require_local_room(trials: Sequence[TrialPlan], settings: ClusterSettings) -> None:
    """The same before Ray is started, or even imported."""
    if nodes := this_machine(settings):
        require_room(trials, settings, nodes)


def train_at_once(
    trials: Sequence[TrialPlan], settings: ClusterSettings, nodes: Sequence[Node]
) -> int:
    """How many of these trials can train at the same time, where they need the least."""
    least = min((leg.workers for trial in trials for leg in trial.legs), default=1)
    return max(1, room(nodes, settings) // least)


def _words(nodes: Sequence[Node], settings: ClusterSettings) -> str:
    cpus, gpus = (sum(values) for values in zip(*((n.cpus, n.gpus) for n in nodes), strict=True))
    more = f" and {gpus:g} GPU(s)" if settings.gpus and gpus < math.inf else ""
    machines = f" on {len(nodes)} machines" if len(nodes) > 1 else ""
    return f"the cluster has {cpus:g} CPU(s){more}{machines}"
