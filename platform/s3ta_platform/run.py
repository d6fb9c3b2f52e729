"""`s3ta run`: do what the plan misses, log it, report. `s3ta report`: only the report."""

import shlex
import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from rich.console import Console

from s3ta.errors import UserError
from s3ta_platform.analyses import found_by_analyses
from s3ta_platform.announce import Announced
from s3ta_platform.asha import Asha
from s3ta_platform.capsule import write_capsule
from s3ta_platform.collect import collect
from s3ta_platform.control import listen_to_stop
from s3ta_platform.events import Emit, Event, Phase
from s3ta_platform.legs import Leg
from s3ta_platform.live import Display, only_ours
from s3ta_platform.novelty import write_parts
from s3ta_platform.places import command, log_file, report_folder, tracking_address
from s3ta_platform.plan import Plan, TrialPlan, check_checkpoints, trial_state
from s3ta_platform.publish import Publisher
from s3ta_platform.report import write_report
from s3ta_platform.results import SweepResult
from s3ta_platform.schema_cluster import Executor
from s3ta_platform.spending import Budget, require_budget
from s3ta_platform.tables import terminal_table
from s3ta_platform.tracking import Tracker, open_tracker
from s3ta_platform.tracking_ui import compare_url
from s3ta_platform.verdict import judge

UI_ADDRESS = "http://127.0.0.1:5000"
NOT_COMPLETE = "not complete: `s3ta run` with the same file does the rest"

RunTrials = Callable[[list[TrialPlan], Emit], dict[str, str]]
"""Runs trials; gives the errors of those that failed, by key."""


def run(plan: Plan, only: Collection[str] | None = None) -> int:
    """Run an experiment to its report; gives the exit code: 0, or 1 if a trial failed.

    only: of these trials' keys; the report is of all that are complete then.
    """
    plan.storage.check_writable()
    check_checkpoints(plan)
    tracker = _open_tracker(plan)
    log = log_file(plan.experiment)
    listen_to_stop()
    with only_ours(log) as console:
        started = time.monotonic()
        missing = [t for t in plan.trials if not trial_state(plan.storage, t).over]
        todo = [t for t in missing if only is None or t.key in only]
        left = {t.key: NOT_COMPLETE for t in missing if t not in todo}
        require_budget(plan, todo)
        _say_what_comes(console, plan, todo)
        for trial in todo:
            write_parts(plan.storage, trial)
        if todo:
            write_capsule(plan)
        publisher = _open_publisher(plan, tracker, todo)
        try:
            failed = _run_missing(plan, todo, publisher, console, log) if todo else {}
        except BaseException:
            tracker.finish(publisher.sweep, "KILLED")
            for trial in todo:
                over = trial_state(plan.storage, trial).over
                tracker.finish(publisher.run_ids[trial.key], "FINISHED" if over else "KILLED")
            raise
        for trial in plan.trials:
            if trial.key not in left:
                publisher.finish_trial(trial, failed=trial.key in failed)
        result = _report(plan, publisher, left | failed)
        _say_results(console, plan, result, publisher, log, time.monotonic() - started)
        good = _judge(plan, publisher, set(failed), console)
    return 0 if good and not failed else 1


def report(plan: Plan) -> int:
    """Make the report anew from what is stored; exit code 1 if a trial is not complete."""
    states = {t.key: trial_state(plan.storage, t) for t in plan.trials}
    missing = {key: NOT_COMPLETE for key, state in states.items() if not state.over}
    if not any(state.complete for state in states.values()):
        raise UserError(
            f"None of the {len(states)} trials of {plan.experiment.name} is complete in "
            f"{plan.experiment.results}, so there is nothing to report: run the file first."
        )
    tracker = _open_tracker(plan)
    log = log_file(plan.experiment)
    with only_ours(log) as console:
        publisher = _open_publisher(plan, tracker, [])
        result = _report(plan, publisher, missing)
        _say_results(console, plan, result, publisher, log, None)
        good = _judge(plan, publisher, set(missing), console)
    return 0 if good and not missing else 1


def _judge(plan: Plan, publisher: Publisher, failed: set[str], console: Console) -> bool:
    """Where masking is asked for, a verdict per model; gives whether no check has failed."""
    good = True
    for trial in plan.trials if plan.experiment.masking is not None else []:
        trained = trial.trained(plan.storage)
        if trained is not None and trial.key not in failed:
            verdict = judge(plan, trial, trained, console)
            publisher.verdict(trial, verdict)
            good = good and not verdict["failed"]
    return good


def _open_tracker(plan: Plan) -> Tracker:
    e = plan.experiment
    return open_tracker(tracking_address(e.tracking.store, e.results), None, e.tracking.experiment)


def _open_publisher(plan: Plan, tracker: Tracker, todo: list[TrialPlan]) -> Publisher:
    publisher = Publisher(tracker, plan)
    for trial in plan.trials:
        publisher.start_trial(trial)
    for run_id in [publisher.sweep, *(publisher.run_ids[t.key] for t in todo)] if todo else []:
        tracker.running(run_id)
    return publisher


def _report(plan: Plan, publisher: Publisher, failed: dict[str, str]) -> SweepResult:
    names = {t.key: t.name for t in plan.trials}
    by_name = {names[key]: error for key, error in failed.items()}
    folder = report_folder(plan.experiment)
    retries = {
        f"retry {names[key]}": command(f"retry {key}{_results_option(plan)}")
        for key, error in failed.items()
        if error != NOT_COMPLETE
    }
    places = _places(plan, publisher) | retries
    result = collect(plan, publisher.run_ids, by_name, places)
    page = write_report(result, folder, found_by_analyses(plan, result))
    files = [file for part in ("figures", "analyses") for file in sorted((folder / part).glob("*"))]
    publisher.finish(page, files, "FAILED" if failed else "FINISHED")
    return result


def _results_option(plan: Plan) -> str:
    results = plan.experiment.results
    return "" if results == "results" else f" --results {shlex.quote(results)}"


def _places(plan: Plan, publisher: Publisher) -> dict[str, str]:
    """Where everything is, and the commands that look further, as they can be pasted."""
    e = plan.experiment
    folder = report_folder(e)
    trained_here = any(trial.ready is None for trial in plan.trials)
    places = {
        "report": str(folder / "report.html"),
        "figures": str(folder / "figures"),
        **({"analyses": str(folder / "analyses")} if e.analyze.do else {}),
        **({"checkpoints": f"{plan.storage.root}/trials"} if trained_here else {}),
        "per-example results": f"{plan.storage.root}/evaluations",
    }
    if not e.tracking.store:
        places["compare in MLflow"] = command(f"ui{_results_option(plan)}")
    run_ids = [run_id for run_id in publisher.run_ids.values() if run_id]
    if e.tracking.store != "none" and run_ids:
        base = e.tracking.store if e.tracking.store.startswith("http") else UI_ADDRESS
        places["then open"] = compare_url(base, publisher.tracker.experiment_id, run_ids)
    own = Path(e.results).expanduser().resolve()
    if not e.results.startswith("s3://") and own not in (Path.cwd(), *Path.cwd().parents):
        places["start afresh"] = f"rm -r {shlex.quote(e.results)}"
    return places


def _run_missing(
    plan: Plan, todo: list[TrialPlan], publisher: Publisher, console: Console, log: Path
) -> dict[str, str]:
    by_key = {t.key: t for t in plan.trials}
    writing = threading.Lock()
    budget = Budget(plan, lambda words: console.print(words, markup=False, highlight=False))
    with (
        Announced(plan, todo, log) as announced,
        Display(console, {t.key: t.name for t in plan.trials}) as display,
    ):

        def emit(event: Event) -> None:
            announced.heard(event)
            display(event)
            if event.durable:
                with writing:
                    if event.phase is Phase.train:
                        publisher.training(by_key[event.trial])
                    else:  # the last thing that a trial says
                        publisher.finish_trial(by_key[event.trial], failed=False)
            budget.heard(event)

        try:
            failed = _runner(plan, console, log)(todo, emit)
        finally:
            budget.note()
        announced.ended(failed)
    return failed


def _runner(plan: Plan, console: Console, log: Path) -> RunTrials:
    asha = _asha(plan)
    if plan.experiment.cluster.executor is Executor.inline:
        return partial(_run_inline, asha)
    from s3ta_platform.sweep import run_on_ray  # Ray is imported only where it is used

    console.print("[dim]starting Ray and its workers: 20 seconds or so[/]")
    return lambda todo, emit: run_on_ray(todo, asha, plan.experiment.cluster, emit, log)


def _asha(plan: Plan) -> Asha | None:
    """Successive halving, if it is asked for, with all that earlier runs have found."""
    settings = plan.experiment.sweep.halving
    if settings is None:
        return None
    asha = Asha(settings, plan.storage)
    asha.recall(plan.trials)
    return asha


def _run_inline(asha: Asha | None, todo: list[TrialPlan], emit: Emit) -> dict[str, str]:
    from s3ta_platform.trial import Inline, run_trial

    failed = {}
    for trial in todo:
        decide = partial(_goes_on, asha, trial)
        try:
            run_trial(trial, Inline(), emit, decide)
        except (UserError, RuntimeError) as error:  # one trial's failure does not end the sweep
            failed[trial.key] = str(error)
    return failed


def _goes_on(asha: Asha | None, trial: TrialPlan, leg: Leg) -> bool:
    return asha is None or not leg.rung or asha.goes_on(trial, leg.until)


def _say_what_comes(console: Console, plan: Plan, todo: list[TrialPlan]) -> None:
    e = plan.experiment
    console.print(e.about.title or e.name, style="bold", markup=False)
    if e.about.claim:
        console.print(e.about.claim, style="dim", markup=False)
    done = len(plan.trials) - len(todo)
    if not todo:
        console.print(f"Nothing to compute: all {done} trials are stored in {e.results}.")
    elif done:
        console.print(f"{done} of {len(plan.trials)} trials are stored already; doing the rest.")


def _say_results(
    console: Console,
    plan: Plan,
    result: SweepResult,
    publisher: Publisher,
    log: Path,
    seconds: float | None,
) -> None:
    console.print()
    if (
        plan.experiment.masking is None
    ):  # else the verdict comes last, and the table is in the report
        console.print(terminal_table(result))
    for name, why in result.stopped.items():
        console.print(f"{name} {why}", style="dim", markup=False, highlight=False)
    for name, error in result.failed.items():
        words = f"{name} failed: {error}"
        console.print(words, style="red", markup=False, highlight=False, soft_wrap=True)
    if result.failed and seconds is not None:  # they were run just now
        console.print(f"The log: {log}", markup=False, highlight=False, soft_wrap=True)
    width = max(map(len, result.places))
    for label, place in result.places.items():
        console.print(f"{label:{width}}  {place}", markup=False, highlight=False, soft_wrap=True)
    if publisher.tracker.missing:
        console.print(
            f"[yellow]{len(publisher.tracker.missing)} things could not be written to MLflow[/] "
            f"(first: {publisher.tracker.missing[0]}); running the same command again adds them."
        )
    if seconds is not None:
        console.print(f"done in {seconds / 60:.1f} minutes", style="dim")
