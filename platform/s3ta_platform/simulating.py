"""`s3ta simulate`: the evaluation of one or more experiment files on clusters of several sizes."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from s3ta.cost import multiply_adds
from s3ta.errors import UserError
from s3ta.trajectory import trajectories
from s3ta_platform.compose import compose
from s3ta_platform.data_files import NoDataError
from s3ta_platform.forecast import FLOP
from s3ta_platform.hardware import Hardware, Profile, Range, parse_hardware
from s3ta_platform.plan import make_plan
from s3ta_platform.shards import shard_size
from s3ta_platform.show_forecast import duration
from s3ta_platform.simulate import Costs, Simulated, recommend, simulate
from s3ta_platform.work import TrialWork, declared_work, planned_work

SIZES = (0.25, 1, 4, 16)
"""Of shards: what the file says, times these."""
METRICS = 4
"""Per reading: top-1 and success, as a series and for the table."""
COLUMNS = ("workers", "time", "useful", "wasted", "losses", "driver", "store", "limit")


def simulate_files(
    files: Sequence[Path], *, hardware: str, workers: str, losses_per_hour: float, seed: int
) -> int:
    """Print the table; exit code 0. UserError for numbers that are none."""
    counts, profile = _counts(workers), parse_hardware(hardware).profile
    if not 0 <= losses_per_hour < math.inf:
        raise UserError(
            f"--spot-loss-per-hour is {losses_per_hour:g}: it must be at least 0 and finite, the "
            "losses that a worker meets in an hour."
        )
    works = [work for file in files for work in works_of(file)]
    console, costs = Console(), Costs(metrics=metrics(works))
    lengths = shard_seconds(works, profile)
    title = _title(works, lengths, profile)
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in (*COLUMNS, "shard_steps"):
        words = column == "limit"
        table.add_column(column, justify="left" if words else "right", no_wrap=True)
    for count in counts:
        found = simulate(lengths, count, costs=costs, losses_per_hour=losses_per_hour, seed=seed)
        best = best_shard_steps(works, Hardware(profile, count), losses_per_hour, seed)
        table.add_row(*_cells(found), f"{best:,}")
    console.print(table)
    console.print(_legend(losses_per_hour, costs), markup=False, highlight=False)
    return 0


def works_of(file: Path) -> list[TrialWork]:
    """The trials of a file; from the numbers that it declares, where its data is not here."""
    composed = compose(file)
    declared = declared_work(composed)
    if declared is not None:
        return declared
    try:
        plan = make_plan(composed)
    except NoDataError as error:
        raise UserError(
            f"{file} can't be simulated without its data, or numbers of images that it declares "
            f"(data.declared_test_images). {error}"
        ) from error
    return [work for trial in plan.trials if (work := planned_work(plan, trial))]


def metrics(works: Sequence[TrialWork]) -> int:
    """Points that an evaluation leaves in MLflow."""
    return METRICS * sum(len(a.readings) for work in works for a in work.cost.attacks)


def shard_seconds(works: Sequence[TrialWork], profile: Profile, times: float = 1.0) -> list[float]:
    """Seconds of every shard on one device, in the order in which they are handed out.

    At the geometric mean of what the device attains. times: of shards of another size.
    """
    shards: list[tuple[float, float]] = []
    for work in works:
        e = work.experiment
        evaluate = replace(e.evaluate, shard_steps=max(1, round(e.evaluate.shard_steps * times)))
        attained = profile.attained(evaluate.engine.dtype)
        rate = math.sqrt(attained.low * attained.high)
        for attack in evaluate.attacks.values():
            unroll = max(attack.unroll or 1, e.model.unroll)
            macs = multiply_adds(replace(e.model, unroll=unroll), work.size, work.classes)
            for run in trajectories(attack):
                size, per_image = shard_size(evaluate, run), run.steps * run.passes_per_step * macs
                for first in range(0, work.test_images, size):
                    images = min(size, work.test_images - first)
                    shards.append((first / work.test_images, FLOP * images * per_image / rate))
    return [seconds for _, seconds in sorted(shards, key=lambda shard: shard[0])]


def best_shard_steps(
    works: Sequence[TrialWork], hardware: Hardware, losses_per_hour: float = 0.0, seed: int = 0
) -> int:
    """The shard size (evaluate.shard_steps) with which so many devices are done first."""
    usual, found = works[0].experiment.evaluate.shard_steps, list[tuple[int, Simulated]]()
    for times in SIZES:
        run = simulate(
            shard_seconds(works, hardware.profile, times),
            hardware.devices,
            costs=Costs(metrics=metrics(works)),
            losses_per_hour=losses_per_hour,
            seed=seed,
        )
        found.append((max(1, round(usual * times)), run))
    return recommend(found)


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise UserError(
            f"--workers is {text!r}: it must be whole numbers of at least 1, such as 8,64,512."
        )
    return counts


def _title(works: Sequence[TrialWork], lengths: Sequence[float], profile: Profile) -> str:
    each = duration(Range(min(lengths), max(lengths)))
    return (
        f"{len(works)} model(s), attacked in {len(lengths):,} shards of {each} on {profile.words}:"
    )


def _cells(found: Simulated) -> list[str]:
    paid = found.workers * found.makespan_s
    return [
        f"{found.workers:,}",
        duration(Range(found.makespan_s, found.makespan_s)),
        f"{100 * found.efficiency:.1f} %",
        f"{100 * found.wasted_s / paid:.1f} %",
        f"{found.losses:,}",
        f"{100 * found.driver_share:.1f} %",
        f"{100 * found.store_share:.1f} %",
        found.limit,
    ]


def _legend(losses_per_hour: float, costs: Costs) -> str:
    return (
        f"Simulated, with {losses_per_hour:g} losses of a worker an hour; a lost one is replaced "
        f"after {costs.start_s:g} s and its shard goes on from what was saved every "
        f"{costs.snapshot_s:g} s.\n"
        f"The driver takes {1000 * costs.driver_s:g} ms for a shard, the store "
        f"{costs.store_per_s:,.0f} puts a second. useful: work that counted, of the workers' time; "
        "wasted: lost work and new starts.\n"
        "limit: what keeps more workers from helping. shard_steps: the evaluate.shard_steps with "
        "which it is done first."
    )
