"""Many jobs, one function: in this process, or fanned out over Ray actors.

`build()` is called once per process and gives the function that does the jobs, so a model is
loaded once and stays in memory. Both executors yield `(job, result)`, each job exactly once, and
go by the same rules:

- an exception in a job is deterministic: the job has failed, the others go on;
- an OSError (storage hiccup) and the death of the worker that was doing the job are retried after
  a pause, until the job was begun `attempts` times;
- a job that raises `Postponed` is begun again when there is nothing else to do; that is no try;
- a job given up may be replaced: `instead(failure)` gives the jobs to be done instead of it, and
  none where the failure stands; what `instead` raises ends the run;
- when everything else is done and yielded, one `JobsFailedError` names the jobs that have failed;
- an exception in `build` is raised as it is once no worker is left to go on;
- `on_pulse(job, done)` hears now and then how far a running job is, by its own `pulse.beat(done)`.

A retried job may have been done before its worker died: what jobs write must be create-only.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial

from s3ta_platform import pulse
from s3ta_platform.fleet import run_on_ray
from s3ta_platform.tickets import (
    Bad,
    J,
    JobFailure,
    JobsFailedError,
    OnEvent,
    Postponed,
    Queue,
    R,
    attempt,
)

__all__ = ["JobFailure", "JobsFailedError", "Postponed", "run_inline", "run_on_ray"]


def run_inline(
    build: Callable[[], Callable[[J], R]],
    jobs: Iterable[J],
    *,
    attempts: int = 3,
    on_event: OnEvent | None = None,
    instead: Callable[[JobFailure], Sequence[J]] | None = None,
    on_pulse: Callable[[J, float], None] | None = None,
) -> Iterator[tuple[J, R]]:
    """Do the jobs one after another in this process, in order but for those begun again."""
    do, tell = build(), on_event or (lambda text: None)
    queue = Queue(jobs=iter(jobs), attempts=attempts, tell=tell, instead=instead)
    while (ticket := queue.wait_for_next()) is not None:
        pulse.reset()
        with pulse.heard_by(partial(on_pulse, ticket.job)) if on_pulse else nullcontext():
            outcome = attempt(do, ticket.job)
        if isinstance(outcome, Bad):
            queue.take_back(ticket, outcome)
        else:
            yield ticket.job, outcome.value
    queue.raise_failures()
