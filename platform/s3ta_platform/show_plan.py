"""A plan as a person reads it: what would run, what is done, and what it costs."""

from collections.abc import Sequence
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from s3ta.errors import UserError
from s3ta_platform.compose import Composed
from s3ta_platform.costs import TrialCost, in_words, short_count
from s3ta_platform.data_files import NoDataError
from s3ta_platform.novelty import stored_settings, why_new
from s3ta_platform.packing import require_room, room, this_machine, train_at_once
from s3ta_platform.plan import Plan, TrialPlan, TrialState, trial_state
from s3ta_platform.schema import Experiment
from s3ta_platform.work import TrialWork, declared_work, planned_work

TRIALS = ("trial", "key", "varied", "training", "attacks")


def show_plan(console: Console, plan: Plan) -> list[TrialWork]:
    """Print trials, keys, costs, shards, and what is done already; gives the work that is left."""
    e = plan.experiment
    states = [trial_state(plan.storage, t) for t in plan.trials]
    works = [planned_work(plan, trial) for trial in plan.trials]
    table = _table(f"{e.name}: what would run", TRIALS)
    for trial, state in zip(plan.trials, states, strict=True):
        varied = _varied(trial.point)
        cells = (trial.name, trial.key, varied, _training(trial, state), _attacks(state))
        table.add_row(*map(escape, cells))
    console.print(table)
    known = [work for work in works if work]
    _show_costs(console, known)
    _show_attacks(console, e, len(plan.trials[0].test_ids), [work.cost for work in known])
    _show_why(console, plan, states)
    if any(s.trained is None for s in states):
        console.print("A shard's key holds its model's digest, so it is known after training.")
    complete = sum(s.complete for s in states)
    console.print(f"{complete} of {len(states)} trials are complete in {e.results}.")
    return [w for w, state in zip(works, states, strict=True) if w and not state.over]


def _show_why(console: Console, plan: Plan, states: Sequence[TrialState]) -> None:
    """Which trials are new, and why: what is stored is never done again."""
    stored = stored_settings(plan.storage)
    fresh = [t for t, s in zip(plan.trials, states, strict=True) if not (s.trained or s.step)]
    if fresh and not stored:
        console.print(f"All {len(fresh)} trial(s) are new: nothing is stored yet.", highlight=False)
    for trial in fresh if stored else ():
        if why := why_new(trial, stored):
            console.print(f"{trial.name} is {why}.", markup=False, highlight=False)
    _show_packing(
        console, plan, [t for t, s in zip(plan.trials, states, strict=True) if not s.over]
    )


def _show_packing(console: Console, plan: Plan, todo: Sequence[TrialPlan]) -> None:
    """How many trials train at once on this machine; of a cluster that is joined only Ray knows."""
    c = plan.experiment.cluster
    nodes = this_machine(c)
    if not nodes or not todo:
        return
    try:
        require_room(todo, c, nodes)
    except UserError as error:
        console.print(f"This machine has no room for it. {error}", markup=False, highlight=False)
        return
    workers = sorted({leg.workers for trial in todo for leg in trial.legs})
    if workers:
        at_once = min(len(todo), train_at_once(todo, c, nodes))
        each = " to ".join(str(n) for n in dict.fromkeys((workers[0], workers[-1])))
        console.print(
            f"On {nodes[0].cpus:g} CPU(s) {at_once} of {len(todo)} trial(s) "
            f"train at once, on {each} worker(s) each; a model is attacked by up to "
            f"{min(c.evaluate_workers, room(nodes, c))} worker(s).",
            highlight=False,
        )


def show_estimate(console: Console, composed: Composed, absent: NoDataError) -> list[TrialWork]:
    """The same without data, from the numbers of images that the file declares, if it does."""
    e, works = composed.experiment, declared_work(composed)
    if works is None:
        raise absent
    table = _table(f"{e.name}: what would run", TRIALS)
    for trial, work in zip(composed.trials, works, strict=True):
        train = trial.experiment.train
        steps = train.steps_per_epoch(work.train_images) * train.epochs
        shards = sum(attack.shards for attack in work.cost.attacks)
        varied = _varied(trial.point)
        cells = (work.name, "", varied, _updates(steps, train.batch), f"{shards:,} shards")
        table.add_row(*map(escape, cells))
    console.print(table)
    _show_costs(console, works)
    _show_attacks(console, e, works[0].test_images, [work.cost for work in works])
    console.print(
        "The data is not here yet, so numbers of images are those that the file declares, and keys "
        f"are not known. {absent}",
        markup=False,
    )
    return works


def _table(title: str, columns: Sequence[str], right: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in columns:
        justify: Literal["right", "left"] = "right" if column in right else "left"
        kept = column in ("key", *right)
        table.add_column(column, no_wrap=kept, overflow="fold", justify=justify)
    return table


def _show_costs(console: Console, works: Sequence[TrialWork]) -> None:
    """Of trials whose cost is known."""
    if not works:
        return
    columns = ("parameters", "forward pass", "training", "attacks")
    table = _table("What it costs, in multiply-adds (MACs):", ("trial", *columns), right=columns)
    for work in works:
        cost = work.cost
        counts = (cost.forward, cost.training, cost.evaluation)
        table.add_row(escape(work.name), short_count(cost.parameters), *map(in_words, counts))
    console.print(table)
    console.print("A gradient counts as one more pass, an update of the weights as three.")


def _show_attacks(console: Console, e: Experiment, images: int, costs: Sequence[TrialCost]) -> None:
    """The attacks, and their cost where all models' costs are known."""
    if not e.evaluate.attacks:
        raise UserError(
            "evaluate.attacks is empty: a trial is judged by at least one attack. "
            "Add '- attack@evaluate.attacks.pgd: pgd_targeted' to the defaults list."
        )
    table = Table(
        title=f"Each model is attacked on {images:,} test images:",
        title_justify="left",
        title_style="",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for column in ("attack", "read at\nsteps"):
        table.add_column(column, overflow="fold")
    for column in ("runs", "passes\nper image", "shards", "MACs") if costs else ():
        table.add_column(column, justify="right", no_wrap=True)
    for place, attack in enumerate(e.evaluate.attacks.values()):
        cells = [attack.name, ", ".join(map(str, attack.readings))]
        if costs:
            own = [cost.attacks[place] for cost in costs if place < len(cost.attacks)]
            cells += [f"{n:,}" for n in (own[0].runs, own[0].passes, own[0].shards)]
            cells.append(_range([attack.multiply_adds for attack in own]))
        table.add_row(*map(escape, cells))
    console.print(table)


def _range(counts: Sequence[int]) -> str:
    low, high = in_words(min(counts)), in_words(max(counts))
    return low if low == high else f"{low} to {high}"


def _varied(point: dict[str, Any]) -> str:
    """What changes the trial, not what is said about it."""
    return "\n".join(f"{k}={v}" for k, v in point.items() if not k.startswith("about."))


def _updates(steps: int, batch: int) -> str:
    return f"{steps:,} steps of {batch} images"


def _training(trial: TrialPlan, state: TrialState) -> str:
    if trial.ready:
        return f"no training: {trial.experiment.model.factory}"
    if state.trained:
        return "done"
    if state.stopped:
        return f"stopped after epoch {state.stopped.epoch}"
    if state.step:
        return f"from step {state.step} to {trial.steps}"
    return _updates(trial.steps, trial.experiment.train.batch)


def _attacks(state: TrialState) -> str:
    left = state.shards - state.shards_done
    if state.stopped:
        return "none"
    probes = state.probes - state.probes_done
    if left:
        done = f", {left:,} of them to do" if state.shards_done else ""
        looks = f", {probes:,} looks at gradients" if probes else ""
        pieces = f", {state.pieces:,} pieces of analyses" if state.pieces else ""
        return f"{state.shards:,} shards{done}{looks}{pieces}"
    if probes:
        return f"{probes:,} of {state.probes:,} looks at gradients to do"
    if state.pieces > state.pieces_done:
        return f"{state.pieces - state.pieces_done:,} of {state.pieces:,} pieces of analyses to do"
    return f"done ({state.shards} shards)" if state.gallery_done else "only the gallery to do"
