"""Adversarial training of one trial: the loop, in order, for one process or many workers.

Every worker runs `train`. Microbatches are dealt out to the workers and added up exactly, so the
weights do not depend on how many there are. Progress survives in checkpoints of our own: whoever
starts the same job again goes on from the last one, and ends with the same bits.
"""

import logging
from collections.abc import Callable
from functools import lru_cache

from s3ta.fastcopy import FastCopy
from s3ta.order import Ids, epoch_order
from s3ta.schedules import learning_rate
from s3ta.sums import StepReport, StepSums
from s3ta.training import Moment, add_microbatch
from s3ta_platform import checkpoints, pulse
from s3ta_platform.devices import pin_arithmetic, resolve_device
from s3ta_platform.events import Emit, Event, Phase, ignore
from s3ta_platform.feed import Share
from s3ta_platform.groups import ALONE, Group
from s3ta_platform.jobs import TrainJob, open_images, training_ids
from s3ta_platform.not_finite import on_record, pass_over
from s3ta_platform.patience import patient
from s3ta_platform.storage import Storage, open_storage
from s3ta_platform.training_state import Training, finish
from s3ta_platform.trials import checkpoint_prefix
from s3ta_platform.wishes import Wish

log = logging.getLogger("ray.s3ta")  # ends up in the run's log file


class ToldToLeaveError(Exception):
    """Training has stopped at a step that is saved, because a worker had to leave."""


def train(
    job: TrainJob,
    group: Group = ALONE,
    emit: Emit = ignore,
    wish: Callable[[], Wish] = lambda: Wish.GO_ON,
) -> None:
    """Train to the end, or to that of the job's leg, from the last checkpoint; rank 0 writes.

    wish: asked at every step. What any worker wishes, all do.

    Raises:
        ToldToLeaveError: on all workers, after the checkpoint.
        NotFiniteError: on all workers, where a step is not finite and may not pass.
    """
    pin_arithmetic(job.threads)
    device, settings = resolve_device(job.device), job.train
    storage = patient(open_storage(job.root), job.cluster.store_patience_s, log.warning, pulse.beat)
    images = open_images(job.data.train, job.data, job.model, job.cluster.read_cache_mb)
    ids = training_ids(images.ids_N, job.data)
    groups = images.groups_of(ids)
    training = Training.begin(job, device, settings.steps_per_epoch(len(ids)))
    _resume(training, storage, group)
    fast = FastCopy(training.model, settings, images.shape_CHW)
    sums = StepSums(training.model, settings)
    not_again = on_record(storage, job.key) if group.rank == 0 else set()

    @lru_cache(maxsize=2)  # the feed may be in the next epoch already
    def order_of(epoch: int) -> Ids:
        return epoch_order(ids, settings, epoch, groups)

    share = Share(images, settings, order_of, training.epoch_steps, group.rank, group.world)
    while training.step < training.end:
        epoch, within = divmod(training.step, training.epoch_steps)
        step_ids = order_of(epoch)[within * settings.batch : (within + 1) * settings.batch]
        moment = Moment(epoch, training.step)
        sums.reset()
        fast.refresh()
        for index, batch in share.of(training.step):
            add_microbatch(
                *(training.called, sums, batch, settings, moment, index, job.classes, device, fast),
                send=(
                    group.begin_sum
                    if group.world > 1 and index + group.world >= settings.microbatches
                    else None
                ),
            )
            pulse.beat(training.step)
        if mine := wish():
            sums.wish(mine - 1)
        if training.step in not_again:
            sums.mark(0)
        group.add_up(sums.flat[:, sums.gradients :])
        report = sums.report()
        rate = learning_rate(settings, training.step / training.epoch_steps)
        if report.not_finite:
            pass_over(training, storage, report, step_ids, write=group.rank == 0)
        else:
            sums.apply()
            training.update(rate)
        training.passed(report, rate)
        to_save, to_leave = report.wishes
        leaving = to_leave > 0 and training.step < training.end
        durable = to_save > 0 or leaving or _is_due(training)
        if group.rank == 0:
            if durable:
                training.save(storage)
            emit(_event(training, report, durable))
        if leaving:
            group.agree(training.step)  # nobody leaves, and ends the others, while rank 0 writes
            raise ToldToLeaveError(f"left at step {training.step}, which is saved")
    if group.rank == 0:
        if training.step == training.total:
            finish(job, storage, training.step, job.key)
        elif job.record and training.step == training.end:
            finish(job, storage, training.step, job.record)


def _resume(training: Training, storage: Storage, group: Group) -> None:
    """From the latest checkpoint, as rank 0 sees it: another may be appearing just now."""
    mine = group.rank == 0
    prefix = checkpoint_prefix(training.job.key)
    step = group.agree((checkpoints.latest(storage, prefix) or 0) if mine else 0)
    if step:
        training.resume(storage, step)


def _is_due(training: Training) -> bool:
    every = training.job.cluster.checkpoint_steps
    return training.at_epoch_end or (every is not None and training.step % every == 0)


def _event(training: Training, report: StepReport, durable: bool) -> Event:
    batch = training.job.train.batch
    return Event(
        trial=training.job.key,
        phase=Phase.train,
        done=training.step * batch,
        total=training.total * batch,
        note=f"loss {report.loss:.2f}",
        durable=durable,
    )
