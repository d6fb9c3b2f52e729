"""How a run makes itself known in its results root, so that `s3ta ps` finds it (see runs).

It also writes each trial's progress into the run's log file, where `s3ta logs` finds it. A store
that is away costs news, never work: nothing in here waits or raises.
"""

import json
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from s3ta.errors import UserError
from s3ta_platform.events import Event, Phase
from s3ta_platform.leases import Holder, this_process
from s3ta_platform.plan import Plan, TrialPlan
from s3ta_platform.record import RESULT_VERSION, plain
from s3ta_platform.runs import (
    BEAT_S,
    FORMAT,
    Standing,
    State,
    beat_name,
    begun_name,
    ended_name,
)
from s3ta_platform.storage import Storage, open_storage
from s3ta_platform.tracking_ui import public

LOG_EVERY_S = 20.0
"""A trial's progress goes into the log at most so often."""


class Announced:
    """A run, announced for the time of a `with` block."""

    def __init__(self, plan: Plan, todo: Sequence[TrialPlan], log: Path) -> None:
        self.id = f"{log.stem}-{uuid.uuid4().hex[:4]}"
        self.names = {trial.key: trial.name for trial in todo}
        self.errors: dict[str, str] = {}
        self._log, self._begun = log, _begun(self.id, plan, todo, log)
        self._storage = open_storage(plan.experiment.results)
        # Beats are worth nothing after a power loss.
        self._fleeting = open_storage(plan.experiment.results, durable=False)
        now = time.time()
        self._standings = {trial.key: Standing(phase="waiting", since=now) for trial in todo}
        self._logged: dict[tuple[str, str], float] = {}
        self._beats = 0
        self._changing, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="announce", daemon=True)

    def __enter__(self) -> "Announced":
        self._beat()
        for key in self.names:
            self._write(key, "is to be done")
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        state = State.failed if self.errors else State.finished
        if isinstance(error, KeyboardInterrupt):
            state = State.stopped
        elif error is not None:
            state, self.errors[""] = State.broken, f"{type(error).__name__}: {error}"
        ended = {"state": state.value, "errors": self.errors, **self._news()}
        with suppress(OSError, UserError):
            self._put(self._storage, ended_name(self.id), ended)
            for beat in range(max(1, self._beats - 2), self._beats + 1):
                self._storage.delete(beat_name(self.id, beat))

    def heard(self, event: Event) -> None:
        """Something new of a trial; may be called from any thread."""
        phase, now = event.phase.word, time.time()
        with self._changing:
            before = self._standings[event.trial]
            last = event.durable and event.phase is not Phase.train  # perhaps a trial's last event
            self._standings[event.trial] = Standing(
                phase="complete" if last else phase,
                since=before.since if before.phase == phase else now,
                done=event.done,
                total=event.total,
                note=event.note,
            )
        at, finished = (event.trial, phase), event.done >= event.total
        if now - self._logged.get(at, 0.0) >= LOG_EVERY_S or finished:
            self._logged[at] = float("inf") if finished else now
            words = f"{phase} {event.done:,} of {event.total:,} images  {event.note}"
            self._write(event.trial, words.rstrip())

    def ended(self, failed: dict[str, str]) -> None:
        """All trials have come to an end, these with an error."""
        self.errors = dict(failed)
        with self._changing:
            for key, standing in self._standings.items():
                phase = "failed" if key in failed else "complete"
                self._standings[key] = replace(standing, phase=phase)
        for key in self.names:
            self._write(key, f"failed: {failed[key]}" if key in failed else "is complete")

    def _keep_beating(self) -> None:
        while not self._over.wait(BEAT_S):
            self._beat()

    def _beat(self) -> None:
        with suppress(OSError, UserError):
            if not self._beats:  # where the store was away before, this is made up for
                self._put(self._storage, begun_name(self.id), self._begun)
            self._put(self._fleeting, beat_name(self.id, self._beats + 1), self._news())
            self._beats += 1
            if self._beats > 2:  # the one before stays, for somebody who is listing just now
                self._storage.delete(beat_name(self.id, self._beats - 2))

    def _news(self) -> dict[str, Any]:
        with self._changing:
            trials = {key: asdict(standing) for key, standing in self._standings.items()}
        return {"time": time.time(), "trials": trials}

    def _put(self, storage: Storage, name: str, content: dict[str, Any]) -> None:
        storage.put_new(name, json.dumps({"format": FORMAT, **content}).encode())

    def _write(self, key: str, words: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with suppress(OSError), self._log.open("a", encoding="utf-8") as file:
            file.write(f"{stamp} [{key}] {self.names[key]} {words}\n")


def _begun(run: str, plan: Plan, todo: Sequence[TrialPlan], log: Path) -> dict[str, Any]:
    """Who runs what: enough to run any of the trials again."""
    experiment = plain(plan.experiment)
    trials = [
        {"key": t.key, "name": t.name, "point": plain(t.point), "experiment": plain(t.experiment)}
        for t in plan.trials
    ]
    for settings in (experiment, *(trial["experiment"] for trial in trials)):
        settings["tracking"]["store"] = public(settings["tracking"]["store"])  # no password
    holder: Holder = this_process(run)
    return {
        "holder": asdict(holder),
        "name": plan.experiment.name,
        "log": str(log.absolute()),
        "result_version": RESULT_VERSION,
        "experiment": experiment,
        "trials": trials,
        "todo": [trial.key for trial in todo],
    }
