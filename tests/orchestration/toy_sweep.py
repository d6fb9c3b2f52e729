"""Tune over Train without a model: a sweep whose every result is known, and that may be killed.

    python toy_sweep.py RESULTS SCRATCH [--asha] [--step-s SECONDS] KEY...

A trial counts through two stages, each one fit of Ray Train: `total` grows by KEY * unroll at each
step, and the unroll of a stage is what the scheduler has put into the trial's config. What is
durable is ours: RESULTS/KEY/STEP.json, created once; Ray's own files go to SCRATCH, anew for every
start, and are never read. Prints one line of JSON: what was left on the cluster.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from s3ta_platform.cluster import local_cluster
from s3ta_platform.fits import fit
from s3ta_platform.leftovers import alive, remove_leftovers

UNROLLS = (2, 4)  # one stage each
STEPS = 12  # of a stage
EVERY = 3  # steps between checkpoints


def durable(folder: Path) -> tuple[int, int]:
    """The last durable step of a trial, and its total."""
    steps = [int(path.stem) for path in folder.glob("*.json")]
    if not steps:
        return 0, 0
    step = max(steps)
    return step, json.loads((folder / f"{step:04d}.json").read_text())


def folder_of(config: dict[str, Any]) -> Path:
    return Path(config["results"]) / str(config["key"])


def expected(key: int, steps: int) -> int:
    """What the total must be after so many steps."""
    return sum(key * UNROLLS[step // STEPS] for step in range(steps))


def create(path: Path, text: str) -> None:
    """Create-only and whole: the first writer wins."""
    draft = Path(tempfile.mkstemp(dir=path.parent, suffix=".tmp")[1])
    draft.write_text(text)
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line + "\n")


def count(config: dict[str, Any]) -> None:
    """The train loop: from the last durable step to the end of the stage."""
    folder = folder_of(config)
    step, total = durable(folder)
    while step < (config["stage"] + 1) * STEPS:
        total += config["key"] * config["unroll"]
        step += 1
        append(folder / "executed.log", str(step))
        time.sleep(config["step_s"])
        if step % EVERY == 0:
            create(folder / f"{step:04d}.json", json.dumps(total))


def trial(config: dict[str, Any]) -> None:
    """One stage: fit what is not durable yet, report, and be paused or stopped by the scheduler."""
    folder, stage = folder_of(config), config["stage"]
    if durable(folder)[0] < (stage + 1) * STEPS:
        fit(
            count,
            config,
            name=f"{config['key']}-s{stage}",
            scratch=config["scratch"],
            workers=config["workers"],
        )
        append(folder / "fitted.log", str(stage))
    tune.report({"epoch": stage + 1, "score": config["key"]})


def stage_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the stage that is next by the durable files."""
    stage = durable(folder_of(config))[0] // STEPS
    return {**config, "stage": stage, "unroll": UNROLLS[stage], "workers": 1}


class PausesAtStageEnd:
    """A trial that is not stopped at the end of a stage starts anew with the next stage's config.

    Every result is the end of a fit, so nothing runs inside the trial when it is paused.
    """

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        super().on_trial_add(controller, trial)  # type: ignore[misc]
        trial.set_config(stage_config(trial.config))

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision: str = super().on_trial_result(controller, trial, result)  # type: ignore[misc]
        if result["epoch"] == len(UNROLLS):
            return TrialScheduler.STOP
        if decision == TrialScheduler.STOP:
            create(folder_of(trial.config) / "stopped", "")
            return decision
        trial.set_config(stage_config(trial.config))
        return TrialScheduler.PAUSE


class Stages(PausesAtStageEnd, FIFOScheduler):
    """Every trial to its end."""


class StagesUnderAsha(PausesAtStageEnd, AsyncHyperBandScheduler):
    """Ends of stages are the rungs. Tune's own counters restart after a pause: count epochs."""


def finished(folder: Path) -> bool:
    return (folder / "stopped").exists() or durable(folder)[0] == STEPS * len(UNROLLS)


def sweep(keys: list[int], fixed: dict[str, Any], asha: bool, cpus: int) -> None:
    """Run the given trials to their ends. A new Tuner each time: nothing of Ray's is restored."""
    scheduler = (
        StagesUnderAsha(
            time_attr="epoch", metric="score", mode="max", max_t=2, grace_period=1,
            reduction_factor=2,
        )
        if asha
        else Stages()  # type: ignore[no-untyped-call]
    )  # fmt: skip
    ended: Any = tune.Tuner(
        # Training CPUs belong to Train's own placement group, and the function that waits for them
        # must not hold any; some resource a trial must ask for. How many run is set below.
        tune.with_resources(trial, {"CPU": 0, "memory": 100 * 2**20}),
        param_space={"key": tune.grid_search(keys), **fixed},
        tune_config=tune.TuneConfig(
            scheduler=scheduler, max_concurrent_trials=cpus, reuse_actors=True
        ),
        run_config=tune.RunConfig(name="sweep", storage_path=fixed["scratch"], verbose=0),
    ).fit()
    for result in ended:
        if result.error:
            raise result.error


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("results", type=lambda name: Path(name).resolve())
    parser.add_argument("scratch", type=lambda name: Path(name).resolve())
    parser.add_argument("--asha", action="store_true")
    parser.add_argument("--step-s", type=float, default=0.02)
    parser.add_argument("keys", type=int, nargs="+")
    args = parser.parse_args()
    missing = [key for key in args.keys if not finished(args.results / str(key))]
    if not missing:
        print(json.dumps({"missing": []}))
        return
    for key in missing:
        (args.results / str(key)).mkdir(parents=True, exist_ok=True)
    scratch = tempfile.mkdtemp(dir=args.scratch)
    fixed = {"results": str(args.results), "scratch": scratch, "step_s": args.step_s}
    with local_cluster(cpus=2, log_file=args.scratch / "ray.log") as cluster:
        sweep(missing, fixed, args.asha, cluster.cpus)
        before = alive()
        removed = remove_leftovers()
        print(json.dumps({"before": before, "removed": removed, "after": alive()}))


if __name__ == "__main__":
    main()
