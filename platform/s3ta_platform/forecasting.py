"""`s3ta plan --hardware`: the forecast of what is left to do, from a profile or measured here."""

import os
from collections.abc import Sequence

from rich.console import Console

from s3ta.errors import UserError
from s3ta_platform.devices import device_of, gpus, resolve_device
from s3ta_platform.forecast import Forecast, Rates, forecast
from s3ta_platform.hardware import PROFILES, Hardware, parse_hardware
from s3ta_platform.legs import legs_of
from s3ta_platform.packing import Node, room
from s3ta_platform.schema import Experiment
from s3ta_platform.schema_cluster import Executor
from s3ta_platform.show_forecast import from_profile, show_forecast
from s3ta_platform.simulating import best_shard_steps
from s3ta_platform.work import TrialWork


def say_forecast(
    console: Console,
    e: Experiment,
    works: Sequence[TrialWork],
    *,
    hardware: str,
    price: float | None,
    calibrated: bool,
) -> None:
    """Print it; UserError for hardware that is not known, or a price that is none."""
    if price is not None and price < 0:
        raise UserError(f"--price is {price:g}: it must be at least 0, for an hour of a device.")
    if not works:
        console.print("Nothing is left to do that a forecast could be made of.")
        return
    if calibrated:
        if hardware:
            raise UserError(
                f"--hardware is {hardware!r}, and --calibrate is of this machine: give one of them."
            )
        found, words = _measured(console, e, works)
    else:
        known = parse_hardware(hardware or "cpu")
        found, words = forecast(works, known), from_profile(known)
    show_forecast(console, works, found, price, words)
    best = best_shard_steps(works, found.hardware)
    console.print(
        f"Attacks are done first with evaluate.shard_steps={best} (simulated without losses; "
        "`s3ta simulate` shows more).",
        highlight=False,
    )


def _measured(console: Console, e: Experiment, works: Sequence[TrialWork]) -> tuple[Forecast, str]:
    from s3ta_platform.calibrate import SECONDS, calibrate

    device, c = resolve_device(device_of(e.cluster)), e.cluster
    on_ray = c.executor is Executor.ray
    here = Node(c.cpus or os.cpu_count() or 1, gpus(device))
    places = max(1, room([here], c)) if on_ray else 1
    console.print(f"measuring this machine for {SECONDS:g} seconds or so ...")
    at_once = 1 if device == "cuda" else places
    rates = calibrate(works, workers=at_once, threads=c.threads, device=device)
    workers = [_workers(work) for work in works]
    profile = PROFILES["h100" if device == "cuda" else "cpu"]
    found = forecast(
        works,
        Hardware(profile, places, name=f"worker(s) of {c.threads} thread(s) on this machine"),
        measured=rates,
        workers=workers,
        starts=on_ray,
    )
    return found, _rates_in_words(works, rates, at_once)


def _workers(work: TrialWork) -> int:
    e = work.experiment
    return max(leg.workers for leg in legs_of(e.train, e.cluster, e.sweep.halving))


def _rates_in_words(works: Sequence[TrialWork], rates: Sequence[Rates], at_once: int) -> str:
    said = {
        f"{work.name} {rate.training.low / 1e9:.3g} to {rate.training.high / 1e9:.3g} in training, "
        f"{rate.attacks.low / 1e9:.3g} to {rate.attacks.high / 1e9:.3g} in attacks"
        for work, rate in zip(works, rates, strict=True)
    }
    return f"Measured in {at_once} process(es) at once, in GFLOP/s: {'; '.join(sorted(said))}."
