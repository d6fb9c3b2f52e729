"""A training in legs: each is one fit of Ray Train, and where it ends something is decided.

A leg ends with a stage of the curriculum, at a rung of successive halving, or with training. Pure
functions of the settings: what a leg computes is the same as if training went on without a break.
"""

from dataclasses import dataclass

from s3ta.schedules import stage_at, stage_index
from s3ta.settings import TrainSettings
from s3ta_platform.schema_cluster import ClusterSettings
from s3ta_platform.schema_sweep import AshaSettings


@dataclass(frozen=True, kw_only=True)
class Leg:
    """A piece of a training, within one stage."""

    until: int
    """It ends with that many epochs done."""
    stage: int
    """Of the curriculum, from 0."""
    unroll: int | None
    """Glances in this stage; None for the model's own."""
    workers: int
    rung: bool
    """Successive halving decides at its end."""
    last: bool


def legs_of(
    train: TrainSettings, cluster: ClusterSettings, asha: AshaSettings | None
) -> tuple[Leg, ...]:
    """All legs of a training, in order."""
    rungs = rungs_of(asha, train.epochs)
    ends = {train.epochs, *rungs, *(stage.from_epoch for stage in train.curriculum[1:])}
    return tuple(
        Leg(
            until=until,
            stage=stage_index(train, until - 1),
            unroll=stage_at(train, until - 1).unroll,
            workers=_workers(cluster, stage_index(train, until - 1)),
            rung=until in rungs,
            last=until == train.epochs,
        )
        for until in sorted(ends)
    )


def rungs_of(asha: AshaSettings | None, epochs: int) -> tuple[int, ...]:
    """The epochs at which trials are compared: grace, grace x factor, ... before the end."""
    found: list[int] = []
    rung = asha.grace_epochs if asha else epochs
    while asha is not None and rung < epochs:
        found.append(rung)
        rung *= asha.reduction_factor
    return tuple(found)


def legs_left(legs: tuple[Leg, ...], step: int, epoch_steps: int) -> tuple[Leg, ...]:
    """What a training that is saved at `step` has before it.

    At the very end of a leg that leg still counts: whether its end was told, and what was decided,
    is not stored, and nothing has been done since.
    """
    return tuple(leg for leg in legs if leg.until * epoch_steps >= step)


def _workers(cluster: ClusterSettings, stage: int) -> int:
    own = cluster.stage_workers
    return own[stage] if stage < len(own) else cluster.train_workers
