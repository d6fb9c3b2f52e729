"""The commands of `s3ta` about runs that are there: ps, logs, stop, retry, gc (see cli)."""

from typing import Annotated

import typer

Results = Annotated[str, typer.Option(help="The results root.", envvar="S3TA_RESULTS")]
Word = Annotated[
    str | None,
    typer.Argument(
        help="A run: its id or the beginning, an experiment's name, or a process id.",
        metavar="RUN",
        show_default=False,
    ),
]


def ps(
    results: Results = "results",
    everything: Annotated[bool, typer.Option("--all", help="Those that have ended, too.")] = False,
) -> None:
    """Show what runs, where and since when, and how far each trial is."""
    from s3ta_platform.ps import ps as show

    raise typer.Exit(show(results, everything=everything))


def logs(
    word: Annotated[
        str | None,
        typer.Argument(
            help="A run, or the key of a trial for its lines only; by default the latest run.",
            metavar="RUN|KEY",
            show_default=False,
        ),
    ] = None,
    results: Results = "results",
    lines: Annotated[int, typer.Option(help="The last so many; 0 for all.", min=0)] = 200,
) -> None:
    """Print what a run or a trial says: progress, warnings, tracebacks."""
    from s3ta_platform.logs import logs as show

    raise typer.Exit(show(word, results, lines))


def stop(
    word: Word = None,
    results: Results = "results",
    wait: Annotated[float, typer.Option(help="Seconds to wait for its end.", min=0)] = 120.0,
) -> None:
    """End a run of this machine cleanly, as Ctrl-C does. Started again, it goes on from there."""
    from s3ta_platform.control import stop as end

    raise typer.Exit(end(word, results, wait))


def retry(
    key: Annotated[str, typer.Argument(help="A trial's key or its beginning.", metavar="KEY")],
    results: Results = "results",
    tracking: Annotated[
        str,
        typer.Option(
            help="MLflow's address; by default the one of that run.", envvar="S3TA_TRACKING"
        ),
    ] = "",
) -> None:
    """Run one trial again with the settings of its last run, and report."""
    from s3ta_platform.control import retry as again

    raise typer.Exit(again(key, results, tracking))


def gc(
    results: Results = "results",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it without asking.")] = False,
    names: Annotated[bool, typer.Option("--names", help="List every name.")] = False,
) -> None:
    """Show what can be removed, with sizes, and remove it. Nothing that is still needed."""
    from s3ta_platform.garbage import gc as collect

    raise typer.Exit(collect(results, dry_run=dry_run, yes=yes, every_name=names))


COMMANDS = (ps, logs, stop, retry, gc)
