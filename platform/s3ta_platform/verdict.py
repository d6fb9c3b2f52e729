"""The gradient-masking verdict: counted from a run's stored rows, printed, and kept as JSON."""

import json
import os
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from s3ta import masking
from s3ta.masking import Check, Status
from s3ta.masking_checks import checks
from s3ta_platform.evidence import Seen, read_evidence
from s3ta_platform.places import report_folder
from s3ta_platform.plan import Plan, TrialPlan
from s3ta_platform.record import plain
from s3ta_platform.trials import Trained

FORMAT = "s3ta-masking-1"
STYLES = {
    Status.passed: "green",
    Status.warn: "yellow",
    Status.fail: "bold red",
    Status.inconclusive: "magenta",
    Status.info: "dim",
}


def judge(plan: Plan, trial: TrialPlan, trained: Trained, console: Console) -> dict[str, Any]:
    """Print one model's verdict and store it; gives it as it is stored."""
    job = trial.evaluation(trained)
    seen = read_evidence(plan.storage, job, trial.test_ids)
    found = checks(seen.evidence)
    words = masking.closing_words(found, seen.reduced)
    name = f"{trial.name}, trial {trial.key}"
    console.print()
    console.print(_table(found, name, _caption(trial, seen)))
    style = STYLES[Status.fail if masking.fails(found) else Status.passed]
    console.print(words, style=style, markup=False, highlight=False)
    said = verdict_of(trial, trained, seen, found, words)
    file = _write(report_folder(plan.experiment), said)
    console.print(f"verdict  {file}", markup=False, highlight=False, soft_wrap=True)
    return said


def _table(found: list[Check], name: str, caption: str) -> Table:
    table = Table(
        title=Text(f"Is the gradient masked? {name}", style="bold"),
        title_justify="left",
        caption=Text(caption),
        caption_justify="left",
        caption_style="",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in ("check", "result"):
        table.add_column(column, no_wrap=True)
    for column in ("number", "pass", "fail"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("remark", style="dim")
    for check in found:
        status = Text(check.status.value, style=STYLES[check.status])
        table.add_row(check.title, status, number(check), check.passes, check.fails, check.note)
    return table


def number(check: Check) -> str:
    """Such as `0.30 pt`."""
    if check.value is None:
        return "\N{EN DASH}"
    if check.unit:
        return f"{check.value:.2f} {check.unit}"
    return f"{check.value:.2f}" if abs(check.value) >= 0.01 else f"{check.value:.1e}"


def _caption(trial: TrialPlan, seen: Seen) -> str:
    masking_ = trial.experiment.masking
    assert masking_ is not None
    sources = ", ".join(f"{s.name} ({s.trial or 'factory'})" for s in trial.sources)
    lost = f"{seen.quarantined} quarantined images are left out. " if seen.quarantined else ""
    return (
        f"{seen.images:,} test images, \N{GREEK SMALL LETTER EPSILON} = "
        f"{masking_.epsilon_255:g}/255, untargeted, any-step. {lost}"
        "W: the worst per image of PGD-CE, margin-PGD, APGD-CE and APGD-T. pt: points, percent of "
        "all images. rho: cosine of gradients and their SPSA estimates, over the expected one. "
        f"Transfer from {sources or 'no other model'}."
    )


def _write(folder: Path, said: dict[str, Any]) -> Path:
    """Beside the report; it replaces an earlier one, whole."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"verdict_{said['trial']}.json"
    unfinished = file.with_suffix(".tmp")
    unfinished.write_text(json.dumps(said, indent=1) + "\n")
    os.replace(unfinished, file)
    return file


def verdict_of(
    trial: TrialPlan, trained: Trained, seen: Seen, found: list[Check], words: str
) -> dict[str, Any]:
    """Everything that the table says, and what it is of."""
    e = trial.experiment
    return {
        "format": FORMAT,
        "model": trial.name,
        "trial": trial.key,
        "model_digest": trained.model_digest,
        "images": seen.images,
        "quarantined": seen.quarantined,
        "seed": e.evaluate.seed,
        "masking": plain(e.masking),
        "attacks": {role: a.name for role, a in e.evaluate.attacks.items()},
        "sources": [{"name": s.name, "trial": s.trial, "digest": s.digest} for s in trial.sources],
        "indicative": seen.reduced,
        "checks": [{**vars(check), "status": check.status.value} for check in found],
        "failed": [check.key for check in found if check.status is Status.fail],
        "verdict": words,
    }
