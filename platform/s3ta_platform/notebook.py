"""Attack a model that is at hand, in this process: no experiment file, no Ray, nothing stored.

    from s3ta.settings import AttackSettings, Goal
    from s3ta_platform.data import ParquetImages
    from s3ta_platform.nearest_mean import nearest_mean
    from s3ta_platform.notebook import evaluate, summary

    test = ParquetImages("sample:fashion_mnist/test.parquet", channels=1)
    images, labels = test.read(test.ids_N[:64])  # uint8 (64, 1, 28, 28), int64 (64,)
    attack = AttackSettings(goal=Goal.untargeted, epsilon_255=8, readings=[10, 50])
    rows = evaluate(nearest_mean(), images, labels, [attack])
    rows.to_pandas()  # one row per image and reading
    summary(rows).to_pandas()  # shares with their intervals

N images with C channels. The rows are those of an experiment file: the same draws, steps and judge.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from s3ta.batch import Conditions
from s3ta.engine import frozen, make_engine
from s3ta.evaluation import OnStep, attack_images
from s3ta.settings import AttackSettings, EngineSettings, Goal
from s3ta.tally import Rows
from s3ta.trajectory import trajectories
from s3ta_platform.devices import pin_arithmetic
from s3ta_platform.notebook_input import batch_of, check_attacks, check_labels, device_of, must_be
from s3ta_platform.probe import a_kind, ask
from s3ta_platform.results import Array, TrialResult
from s3ta_platform.rows import SCHEMA
from s3ta_platform.summaries import Share, summarise

ATTACKS = (AttackSettings(goal=Goal.random_target), AttackSettings(goal=Goal.untargeted))
"""By default: the paper's attack and its untargeted sibling, at 16/255."""


def evaluate(
    model: nn.Module,
    images: Array | Tensor,
    labels: Array | Tensor | Sequence[int],
    attacks: Sequence[AttackSettings] = ATTACKS,
    *,
    ids: Array | Tensor | Sequence[int] | None = None,
    classes: int | None = None,
    seed: int = 1,
    tile: int = 32,
    engine: EngineSettings | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> pa.Table:
    """Attack the model; one row per image, attack and reading. `.to_pandas()` gives a DataFrame.

    model: takes float images (B, C, H, W) in [0, 1], gives logits (B, classes). Preprocessing goes
        inside: `UnitImages(net, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])` of
        `s3ta_platform.foreign`. It is copied, and left as it is.
    images: (N, C, H, W), uint8 or floats in [0, 1]; labels: (N,), whole numbers from 0.
    ids: what draws belong to, one per image: 0, 1, ... by default. An image keeps its target and
        its start wherever it keeps its id and the seed.
    classes: how many logits there must be; as many as there are by default.
    tile: images computed together; a part of the result.
    device: `cpu`, `cuda` or the like; the last bits also depend on it and on torch's threads.

    UserError for what cannot be attacked, before anything is.
    """
    check_attacks(attacks)
    must_be(tile >= 1, "tile", tile, "at least 1")
    must_be(0 <= seed < 2**63, "seed", seed, "from 0 to 2^63 - 1")
    must_be(isinstance(model, nn.Module), "model", a_kind(model), "a torch.nn.Module")
    batch, on = batch_of(images, labels, ids), device_of(device)
    shape_CHW = batch.images_BCHW.shape[1:]
    with _arithmetic(), _bars(progress) as bars:
        with frozen(model):
            known = ask(model, shape_CHW, classes).logits_BC.shape[1]
        check_labels(batch.labels_B, known)
        prepared = make_engine(model, engine or EngineSettings(), shape_CHW, tile, on)
        conditions = Conditions(classes=known, seed=seed, tile=tile)
        tables = []
        for attack in attacks:
            for trajectory in trajectories(attack):
                show = _bar(bars, f"{attack.name}, {trajectory.steps} steps")
                rows = attack_images(prepared, batch, trajectory, conditions, show)
                tables.append(_table(rows, attack.name))
    return pa.concat_tables(tables)


def _table(rows: Rows, attack: str) -> pa.Table:
    table = pa.table([rows[f.name] for f in SCHEMA], schema=SCHEMA)
    return table.append_column("attack", pa.array([attack] * len(table), pa.string()))


def summary(table: pa.Table) -> pa.Table:
    """Shares with their counts and Wilson's 95 % intervals: one row per measure and reading.

    `nominal` is the share right without an attack; `top1` the share right at that step of it;
    `success` the share predicted as the attack's target there, or, untargeted, the share turned
    from right to wrong. What an attack that stops early does not tell is left out.
    """
    trial = TrialResult(
        key="",
        name="",
        parameters=0,
        unroll=None,
        settings={},
        history=[],
        rows=table.append_column("quarantined", pa.array([""] * len(table))),
        planned=len(table["image_id"].unique()),
    )
    counted = summarise(trial)
    lines = [_line("nominal", None, None, counted.nominal)]
    for reading in counted.readings:
        at = (reading.attack, reading.steps)
        lines += [_line("top1", *at, reading.top1), _line("success", *at, reading.success)]
    for worst in counted.worst_cases:
        lines.append(_line("top1", worst.attack, None, worst.top1))
        lines.append(_line("success", worst.attack, None, worst.success))
    return pa.Table.from_pylist([line for line in lines if line["total"]])


def _line(measure: str, attack: str | None, steps: int | None, share: Share) -> dict[str, Any]:
    low, high = share.interval
    return {
        "measure": measure,
        "attack": attack,
        "steps": steps,
        "value": share.value,
        "low": low,
        "high": high,
        "successes": share.successes,
        "total": share.total,
    }


@contextlib.contextmanager
def _arithmetic() -> Iterator[None]:
    """Float32 that is float32, and no races, on an accelerator too; afterwards as it was."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark)
    pin_arithmetic(torch.get_num_threads())
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = before


def _bar(bars: Progress, words: str) -> OnStep:
    """A new bar, and what moves it."""
    task = bars.add_task(words)
    return lambda run: bars.update(task, completed=run.done, total=run.total)


def _bars(shown: bool) -> Progress:
    """A bar per trajectory, where somebody sees it."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=console,
        disable=not (shown and (console.is_terminal or console.is_jupyter)),
    )
