"""A forecast as a person reads it: hours, cost, memory and storage, and how sure they are."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from s3ta.settings import Dtype
from s3ta_platform.forecast import Forecast, TrialForecast, attained
from s3ta_platform.hardware import PROFILES, Hardware, Range
from s3ta_platform.work import TrialWork

PAPER_HOURS = (42.0, 70.0)
"""For S3TA-2 to S3TA-16 with 10 PGD steps in training (S3TA sec. 4)."""
PAPER_DEVICES = 128
COLUMNS = (
    "trial",
    "training",
    "attacks",
    "cost",
    "memory,\ntraining",
    "memory,\nattacks",
    "stored",
)


def show_forecast(
    console: Console, works: Sequence[TrialWork], found: Forecast, price: float | None, words: str
) -> None:
    """Print it. `words` says where the rates come from; `price` is that of a device's hour."""
    table = Table(title=f"On {found.hardware}:", title_justify="left", title_style="", box=None)
    for column in COLUMNS:
        if column != "cost" or price is not None:
            table.add_column(column, justify="left" if column == "trial" else "right")
    for trial in found.trials:
        table.add_row(*map(escape, _cells(trial, found.hardware.devices, price)))
    console.print(table)
    for line in (*_totals(found, price), words, *_notes(works, found)):
        console.print(line, markup=False, highlight=False)


def _cells(trial: TrialForecast, devices: int, price: float | None) -> list[str]:
    attacked = trial.attacks.times(1 / max(1, min(devices, trial.shards)))
    cost = [] if price is None else [span(trial.device_s.times(price / 3600))]
    return [
        trial.name,
        duration(trial.training_wall),
        duration(attacked),
        *cost,
        gigabytes(trial.training_bytes),
        gigabytes(trial.attack_bytes),
        gigabytes(trial.checkpoint_bytes + trial.row_bytes),
    ]


def _totals(found: Forecast, price: float | None) -> list[str]:
    hours = found.device_hours
    cost = "" if price is None else f", cost {span(hours.times(price))} at {price:g} an hour each"
    return [
        f"In all: {duration(found.wall)} from start to end, {span(hours)} device hours{cost}; "
        f"{gigabytes(found.stored_bytes)} stored."
    ]


def _notes(works: Sequence[TrialWork], found: Forecast) -> list[str]:
    notes = [
        "Memory is weights, gradients, sums and what is kept for gradients, counted from the "
        "layers' shapes: expect a quarter to a half more on a GPU."
    ]
    memory = found.hardware.profile.memory_gb * 1e9
    most = max((max(t.training_bytes, t.attack_bytes) for t in found.trials), default=0)
    if most > memory and found.hardware.profile is not PROFILES["cpu"]:
        notes.append(
            f"{gigabytes(most)} do not fit into {gigabytes(int(memory))}: lower train.microbatch or"
            " evaluate.tile, or set train.recompute=true."
        )
    devices = found.hardware.devices
    few = [w.experiment.train.microbatches for w in works]
    if few and devices > min(few):
        notes.append(
            f"A step of training has {min(few)} microbatches, so no more than {min(few)} of "
            f"{devices} devices share one (train.microbatch)."
        )
    return notes + _beside_the_paper(works, found.hardware)


def _beside_the_paper(works: Sequence[TrialWork], hardware: Hardware) -> list[str]:
    """What the paper's hours say of the share of the peak that was attained."""
    like_it = [
        w
        for w in works
        if w.experiment.about.published.startswith("S3TA") and w.experiment.train.attack.steps == 10
    ]
    if hardware.profile is not PROFILES["tpu-v3"] or not like_it:
        return []
    peak, shares = hardware.profile.peak(Dtype.bfloat16), []
    for work, hours in ((like_it[0], PAPER_HOURS[1]), (like_it[-1], PAPER_HOURS[0])):
        shares.append(attained(work, hours, PAPER_DEVICES) / peak)
    return [
        f"The paper's {PAPER_HOURS[0]:g} to {PAPER_HOURS[1]:g} hours on {PAPER_DEVICES} TPU v3 "
        f"cores imply {100 * min(shares):.0f} to {100 * max(shares):.0f} % of the peak; assumed "
        f"here: {100 * hardware.profile.share16.low:.0f} to "
        f"{100 * hardware.profile.share16.high:.0f} %."
    ]


def from_profile(hardware: Hardware) -> str:
    """Where the numbers of a profile come from."""
    p = hardware.profile
    kinds = [("float32", p.float32, p.share32), ("bfloat16", p.bfloat16, p.share16)]
    words = [
        f"{peak / 1e12:.3g} TFLOP/s in {dtype}, of which {100 * share.low:.0f} to "
        f"{100 * share.high:.0f} % are attained"
        for dtype, peak, share in kinds
        if peak is not None
    ]
    return f"At most {'; '.join(words)}. Source: {p.source}."


def duration(seconds: Range) -> str:
    """`3.1 to 4.2 h`, in the unit that fits."""
    for length, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds.high >= length:
            return f"{span(seconds.times(1 / length))} {unit}"
    return f"{span(seconds)} s"


def span(values: Range) -> str:
    """Two or three digits each; one number where both are the same."""
    low, high = _digits(values.low), _digits(values.high)
    return low if low == high else f"{low} to {high}"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.3g}"


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
