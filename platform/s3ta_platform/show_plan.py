"""A plan as a person reads it."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from s3ta_platform.plan import Plan, TrialPlan, TrialState, trial_state


def show_plan(console: Console, plan: Plan) -> None:
    """Print trials, keys, shards, and what is done already."""
    e = plan.experiment
    states = [trial_state(plan.storage, t) for t in plan.trials]
    table = Table(
        title=f"{e.name}: what would run", title_justify="left", box=None, padding=(0, 2, 0, 0)
    )
    for column in ("trial", "key", "varied", "training", "attacks"):
        table.add_column(column, no_wrap=column == "key", overflow="fold")
    for trial, state in zip(plan.trials, states, strict=True):
        varied = "\n".join(f"{k}={v}" for k, v in trial.point.items())
        cells = (trial.name, trial.key, varied, _training(trial, state), _attacks(state))
        table.add_row(*map(escape, cells))
    console.print(table)
    images = len(plan.trials[0].test_ids)
    attacks = "; ".join(
        f"{a.name}, read at {', '.join(map(str, a.readings))} steps"
        for a in e.evaluate.attacks.values()
    )
    console.print(f"Each model is attacked on {images} test images: {attacks}.")
    if any(s.trained is None for s in states):
        console.print("A shard's key holds its model's digest, so it is known after training.")
    complete = sum(s.complete for s in states)
    console.print(f"{complete} of {len(states)} trials are complete in {e.results}.")


def _training(trial: TrialPlan, state: TrialState) -> str:
    if trial.ready:
        return f"no training: {trial.experiment.model.factory}"
    if state.trained:
        return "done"
    if state.step:
        return f"from step {state.step} to {trial.steps}"
    return f"{trial.steps} steps of {trial.experiment.train.batch} images"


def _attacks(state: TrialState) -> str:
    left = state.shards - state.shards_done
    if left:
        return f"{state.shards} shards" + (f", {left} of them to do" if state.shards_done else "")
    return f"done ({state.shards} shards)" if state.gallery_done else "only the gallery to do"
