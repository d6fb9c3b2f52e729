"""A plan as a person reads it."""

from rich.console import Console
from rich.table import Table

from s3ta_platform.plan import Plan, TrialPlan, TrialState, trial_state


def show_plan(console: Console, plan: Plan) -> None:
    """Print trials, keys, shards, and what is done already."""
    e = plan.experiment
    table = Table(title=f"{e.name}: what would run", title_justify="left")
    for column in ("trial", "key", "varied", "training", "attacks"):
        table.add_column(column)
    states = [trial_state(plan.storage, t) for t in plan.trials]
    for trial, state in zip(plan.trials, states, strict=True):
        varied = ", ".join(f"{k}={v}" for k, v in trial.point.items())
        table.add_row(trial.name, trial.key, varied, _training(trial, state), _attacks(state))
    console.print(table)
    images = len(plan.trials[0].test_ids)
    attacks = ", ".join(
        f"{a.name} read at {', '.join(map(str, a.readings))} steps"
        for a in e.evaluate.attacks.values()
    )
    console.print(f"Each trained model is attacked on {images} test images: {attacks}.")
    complete = sum(s.complete for s in states)
    console.print(f"{complete} of {len(states)} trials are complete in {e.results}.")


def _training(trial: TrialPlan, state: TrialState) -> str:
    if state.trained:
        return "done"
    if state.step:
        return f"from step {state.step} to {trial.steps}"
    return f"{trial.steps} steps of {trial.experiment.train.batch} images"


def _attacks(state: TrialState) -> str:
    if state.trained is None:
        return f"{state.shards} shards, keys known after training"
    if state.shards_done == state.shards:
        return f"done ({state.shards} shards)"
    return f"{state.shards - state.shards_done} of {state.shards} shards to do"
