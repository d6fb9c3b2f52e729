"""`s3ta stop` ends a run as Ctrl-C would; `s3ta retry` runs one of its trials again."""

import os
import signal
import time
from dataclasses import replace
from typing import Any

from s3ta.errors import UserError
from s3ta_platform.hosts import this_host
from s3ta_platform.record import RESULT_VERSION
from s3ta_platform.runs import Run, find_run, find_trial, read_runs
from s3ta_platform.storage import open_storage

POLL_S = 0.2


def stop(word: str | None, results: str, wait_s: float) -> int:
    """Interrupt a run of this host and wait for its end; exit code 1 if it has not ended then."""
    storage = open_storage(results)
    working = [run for run in read_runs(storage) if run.state.may_work]
    run = _to_stop(word, working, storage.root)
    if run.holder.host != this_host():
        raise UserError(
            f"{run.id} runs on {run.host}, pid {run.holder.pid}, which is not this host: stop it "
            "there, with the same command."
        )
    try:
        os.kill(run.holder.pid, signal.SIGINT)
    except ProcessLookupError:
        pass  # it has just ended
    except PermissionError as error:
        raise UserError(
            f"{run.id} (pid {run.holder.pid}) belongs to another user, so it can't be stopped from "
            "here: let that user do it."
        ) from error
    deadline = time.monotonic() + wait_s
    while not run.holder.is_dead():
        if time.monotonic() > deadline:
            print(
                f"{run.id} has not ended after {wait_s:g} s (pid {run.holder.pid}): it may still be"
                " ending its workers. Look again with `s3ta ps`. As a last resort kill that process"
                " (-9): what is stored stays whole."
            )
            return 1
        time.sleep(POLL_S)
    print(f"{run.id} has ended. Started again, it goes on where it ended.")
    return 0


def _to_stop(word: str | None, working: list[Run], root: str) -> Run:
    if not working:
        raise UserError(
            f"Nothing runs in {root}, so there is nothing to stop: see `s3ta ps --all`."
        )
    meant = working if word is None else [run for run in working if run.name == word]
    if len(meant) == 1:
        return meant[0]
    if not meant and word is not None:
        return find_run(working, word, root)
    listed = "".join(f"\n  {run.id}" for run in meant)
    raise UserError(f"{len(meant)} runs are at work in {root}. Name one of them:{listed}")


def retry(word: str, results: str, tracking: str) -> int:
    """Run one trial again, as the latest run had it; exit code 1 if it fails."""
    from s3ta_platform.compose import Composed, Trial, restore
    from s3ta_platform.packing import require_local_room
    from s3ta_platform.plan import make_plan

    storage = open_storage(results)
    runs = read_runs(storage)
    key, run = find_trial(runs, word, storage.root)
    _require_idle(key, runs)
    _require_version(key, run)

    def again(stored: dict[str, Any]) -> Any:
        found = restore(stored, f"the record of {run.id}")
        store = tracking or found.tracking.store
        return replace(found, results=results, tracking=replace(found.tracking, store=store))

    trials = [Trial(trial["point"], again(trial["experiment"])) for trial in run.trials]
    plan = make_plan(Composed(again(run.experiment), trials))
    if key not in {trial.key for trial in plan.trials}:
        raise UserError(
            f"{key} can't be made again: the content of its data files has changed since {run.id}. "
            "Bring the old files back, or run the experiment file, which makes new trials."
        )
    require_local_room(plan.trials, plan.experiment.cluster)
    from s3ta_platform.run import run as run_plan

    return run_plan(plan, only={key})


def _require_idle(key: str, runs: list[Run]) -> None:
    for run in runs:
        standing = run.standings.get(key)
        over = standing is not None and standing.phase in ("complete", "failed")
        if run.state.may_work and key in run.todo and not over:
            raise UserError(
                f"Trial {key} belongs to {run.id}, which is at work ({run.host}, pid "
                f"{run.holder.pid}): wait for its end, or stop it with `s3ta stop {run.id}`."
            )


def _require_version(key: str, run: Run) -> None:
    if run.result_version != RESULT_VERSION:
        raise UserError(
            f"Trial {key} was run by a version whose numbers are others (RESULT_VERSION "
            f"{run.result_version}; this is {RESULT_VERSION}): run the experiment file anew."
        )


def listen_to_stop() -> None:
    """Let `s3ta stop` reach a run that a script has put into the background, where shells make
    processes deaf to SIGINT."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
