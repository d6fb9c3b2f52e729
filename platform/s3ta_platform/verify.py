"""`s3ta verify`: check and count again everything that can be checked from stored files.

A doubt is something that should not be; a note is something to know. Imports no torch.
"""

from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from s3ta.errors import UserError
from s3ta_platform.places import local_root
from s3ta_platform.storage import open_storage
from s3ta_platform.trials import checkpoint_steps
from s3ta_platform.verified import Check, Tick
from s3ta_platform.verify_analyses import check_studies, study_names
from s3ta_platform.verify_files import check_rows, check_strays
from s3ta_platform.verify_models import check_checkpoints, check_digests, trials_in
from s3ta_platform.verify_shards import check_shards, open_root
from s3ta_platform.verify_tables import check_tables, table_files

SHOWN = 20
"""Of one check's doubts, and of its notes, at most so many are printed."""


def verify(results: str) -> int:
    """Check a results root and print what was found; exit code 0, or 1 if there is any doubt."""
    console = Console()
    # Without a terminal a bar would be a line of noise.
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("checking", total=None)

        def expect(files: int) -> None:
            progress.update(bar, total=files)

        checks = all_checks(results, expect, lambda: progress.advance(bar))
    for check in checks:
        _print(console, check)
    doubts = sum(len(check.doubts) for check in checks)
    console.print(
        f"{doubts} doubt(s)."
        if doubts
        else "Everything that can be checked from the stored files agrees.",
        style="red" if doubts else "green",
        highlight=False,
    )
    return 1 if doubts else 0


def all_checks(results: str, expect: Callable[[int], None], tick: Tick) -> list[Check]:
    """Everything, in order; `expect` is told how many ticks there will be."""
    storage = open_storage(results)
    root, records = open_root(storage)
    trials = trials_in(storage)
    if not (root.stored or trials):
        raise UserError(
            f"There is nothing to verify in {storage.root}: it holds neither trials nor "
            "evaluations. Name a results root, as in the setting `results`."
        )
    folder = local_root(results)
    checkpoints = sum(len(checkpoint_steps(storage, trial)) for trial in trials)
    studies = len(study_names(storage))
    expect(len(root.stored) + checkpoints + len(table_files(folder)) + studies)
    return [
        records,
        check_shards(root),
        check_rows(root, tick),
        check_strays(root, tick),
        check_digests(root),
        check_checkpoints(root, tick),
        check_tables(root, folder, tick),
        check_studies(storage, tick),
    ]


def _print(console: Console, check: Check) -> None:
    mark = "[red]doubt[/]" if check.doubts else "[green]ok[/]   "
    words = check.words + (f"; {len(check.doubts)} doubt(s)" if check.doubts else "")
    console.print(f"{mark}  {check.name:12}  {escape(words)}", highlight=False, soft_wrap=True)
    for lines, style in ((check.doubts, ""), (check.notes, "dim")):
        for line in lines[:SHOWN]:
            console.print(
                f"       {line}", style=style, markup=False, highlight=False, soft_wrap=True
            )
        if len(lines) > SHOWN:
            console.print(f"       ... and {len(lines) - SHOWN} more", style=style)
