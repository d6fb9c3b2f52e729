"""How a training worker learns that it should save, or has to leave, after the next step.

- SIGTERM to its process: all save and leave, and Ray Train starts them again.
- Ray drains a node that a worker of the group is on, before a spot instance is taken away, say, if
  whoever learns of that runs `ray drain-node`. All save and go on: until the node is gone Train
  would count it in, and wait for it in vain. At the deadline Train ends the workers itself.
- Train ends the workers: after that, when another has died, or to resize an elastic group. It gives
  them five seconds, in which they save and leave.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from ray.train.v2._internal.execution.callback import WorkerCallback
from ray.train.v2._internal.execution.context import get_train_context

from s3ta_platform.wishes import Wish

log = logging.getLogger("ray.s3ta")  # ends up in the run's log file

SAVED_WITHIN_S = 4.0
"""Ray Train kills five seconds after it has asked."""

_told = threading.Event()
_left = threading.Event()
_drain: list[Any] = []
"""What was last heard of nodes that are being drained."""


class Notices(WorkerCallback):
    """Runs in each worker, in the thread that Ray calls it in, while training runs in another."""

    def after_init_train_context(self) -> None:
        _told.clear()
        _left.set()
        signal.signal(signal.SIGTERM, _on_sigterm)

    def before_worker_shutdown(self) -> None:
        """Give training the time to save and leave, if it can."""
        if not _left.is_set():
            _tell("Ray Train ends the workers")
            _left.wait(SAVED_WITHIN_S)


def _on_sigterm(*_: object) -> None:
    if _told.is_set() or _left.is_set():
        os._exit(128 + signal.SIGTERM)  # it is Ray, or somebody who has no more patience
    _tell("it got SIGTERM")


def _tell(why: str) -> None:
    log.warning("this worker leaves after the next step: %s", why)
    _told.set()


def wish() -> Wish:
    """Asked at every step."""
    if _told.is_set():
        return Wish.LEAVE
    drain = get_train_context().preemption_context.preemption_info
    if drain is None or drain in _drain:
        return Wish.GO_ON
    _drain.append(drain)
    log.warning("training is saved after the next step: nodes are being drained: %s", drain)
    return Wish.SAVE


def heeding(work: Callable[[], Any]) -> Any:
    """Do the work of a worker that asks for its `wish`."""
    _left.clear()
    try:
        return work()
    finally:
        _left.set()
