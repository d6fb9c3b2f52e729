"""How a training worker learns that it has to leave, so that all save and leave at the next step.

- SIGTERM to its process.
- Ray drains a node that a worker of the group is on: before a spot instance is taken away, say, if
  whoever learns of that runs `ray drain-node`.
- Ray Train ends the workers itself: after another has died, or to resize an elastic group. It gives
  them five seconds.
"""

import logging
import signal
import threading
from collections.abc import Callable
from typing import Any

from ray.train.v2._internal.execution.callback import WorkerCallback
from ray.train.v2._internal.execution.context import get_train_context

log = logging.getLogger("ray.s3ta")  # ends up in the run's log file

SAVED_WITHIN_S = 4.0
"""Ray Train kills five seconds after it has asked."""

_told = threading.Event()
_left = threading.Event()


class Notices(WorkerCallback):
    """Runs in each worker, in the thread that Ray calls it in, while training runs in another."""

    def after_init_train_context(self) -> None:
        _told.clear()
        _left.set()
        signal.signal(signal.SIGTERM, lambda *_: _tell("it got SIGTERM"))

    def before_worker_shutdown(self) -> None:
        """Give training the time to save and leave, if it can."""
        if not _left.is_set():
            _tell("Ray Train ends the workers")
            _left.wait(SAVED_WITHIN_S)


def _tell(why: str) -> None:
    if not _told.is_set():
        log.warning("this worker will leave at the next step: %s", why)
        _told.set()


def told_to_leave() -> bool:
    """Asked at every step."""
    if not _told.is_set() and get_train_context().preemption_context.preemption_info is not None:
        _tell("a node is being drained")
    return _told.is_set()


def heeding(work: Callable[[], Any]) -> Any:
    """Do the work of a worker that asks `told_to_leave`."""
    _left.clear()
    try:
        return work()
    finally:
        _left.set()
