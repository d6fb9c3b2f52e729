"""The command `s3ta`. Heavy imports wait until a command needs them: --help is instant."""

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from s3ta.errors import UserError
from s3ta_platform.cli_runs import COMMANDS, Results

if TYPE_CHECKING:
    from s3ta_platform.plan import Plan

app = typer.Typer(
    help="Adversarially robust image classifiers with sequential attention: "
    "train, attack and compare them from one YAML file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")

MODEL_WORDS = (
    "a trial's key or its beginning, a model's name, an MLflow run id, results/trials/KEY, "
    "or a results root with one model."
)
STOPPED = 130
"""Exit code of what Ctrl-C ended."""

File = Annotated[Path, typer.Argument(help="The experiment file.", metavar="FILE")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Settings to change, such as train.epochs=2.",
        metavar="KEY=VALUE",
        show_default=False,
    ),
]
Tracking = Annotated[
    str,
    typer.Option(
        help="MLflow's address; by default a sqlite file below the results root.",
        envvar="S3TA_TRACKING",
    ),
]


def _plan(file: Path, overrides: list[str] | None) -> "Plan":
    from s3ta_platform.compose import compose
    from s3ta_platform.plan import make_plan

    return make_plan(compose(file, overrides or []))


@app.command()
def run(
    file: File,
    overrides: Overrides = None,
    max_gpu_hours: Annotated[
        float | None,
        typer.Option(help="Do not start if it needs more, and end when so much is spent."),
    ] = None,
) -> None:
    """Run an experiment file: train, attack, log, report. Does only what is not stored yet."""
    from s3ta_platform.packing import require_local_room

    limit = [] if max_gpu_hours is None else [f"budget.gpu_hours={max_gpu_hours}"]
    made = _plan(file, [*(overrides or []), *limit])
    require_local_room(made.trials, made.experiment.cluster)
    from s3ta_platform.run import run as run_plan  # takes seconds: what can't fit is refused before

    raise typer.Exit(run_plan(made))


@app.command()
def plan(
    file: File,
    overrides: Overrides = None,
    hardware: Annotated[
        str,
        typer.Option(help="Forecast hours and cost on h100x8, a100x4, v100, tpu-v3x128, cpux2."),
    ] = "",
    price: Annotated[float | None, typer.Option(help="Of an hour of one of them.")] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Forecast for this machine, measured for a minute.")
    ] = False,
) -> None:
    """Show what would run and what is done already. Starts nothing."""
    from rich.console import Console

    from s3ta_platform.compose import compose
    from s3ta_platform.data_files import NoDataError, resolve
    from s3ta_platform.forecasting import say_forecast
    from s3ta_platform.plan import make_plan
    from s3ta_platform.show_plan import show_estimate, show_plan

    composed, console = compose(file, overrides or []), Console()
    try:
        resolve(composed.experiment.data.test)
    except NoDataError as error:
        left = show_estimate(console, composed, error)
    else:
        left = show_plan(console, make_plan(composed))
    if hardware or calibrate or price is not None:
        say_forecast(
            console, composed.experiment, left, hardware=hardware, price=price, calibrated=calibrate
        )


@app.command()
def simulate(
    files: Annotated[
        list[Path], typer.Argument(help="Experiment files, as one evaluation.", metavar="FILE...")
    ],
    hardware: Annotated[str, typer.Option(help="What each worker has: h100, a100, ...")] = "h100",
    workers: Annotated[str, typer.Option(help="Numbers of workers.")] = "8,64,512,4096",
    spot_loss_per_hour: Annotated[
        float, typer.Option(help="How often an hour a worker is lost.")
    ] = 0.05,
    seed: Annotated[int, typer.Option(help="Of the losses.")] = 0,
) -> None:
    """Simulate the attacks of experiment files on clusters: time, waste, and what is the limit."""
    from s3ta_platform.simulating import simulate_files

    raise typer.Exit(
        simulate_files(
            files,
            hardware=hardware,
            workers=workers,
            losses_per_hour=spot_loss_per_hour,
            seed=seed,
        )
    )


@app.command()
def report(file: File, overrides: Overrides = None) -> None:
    """Make the report of an experiment file anew from its stored results."""
    from s3ta_platform.run import report as report_plan

    raise typer.Exit(report_plan(_plan(file, overrides)))


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help=f"The first model: {MODEL_WORDS}", metavar="A")],
    b: Annotated[str, typer.Argument(help="The second model.", metavar="B")],
    results: Results = "results",
    csv: Annotated[Path | None, typer.Option(help="Write the numbers into this file, too.")] = None,
) -> None:
    """Compare two attacked models image by image, with exact paired tests; or two sweeps.

    Of two sweeps (names, or results roots with several models) every number that moved is named.
    """
    from s3ta_platform.compare import compare as compare_models
    from s3ta_platform.compare_sweeps import compare_if_sweeps

    if (code := compare_if_sweeps(a, b, results, csv)) is not None:
        raise typer.Exit(code)
    raise typer.Exit(compare_models(a, b, results, csv))


@app.command()
def reproduce(
    word: Annotated[
        str,
        typer.Argument(help="A capsule's file or name, or an experiment's name.", metavar="RUN"),
    ],
    into: Annotated[Path, typer.Option(help="A new folder for the clone and its results.")],
    results: Results = "results",
    here: Annotated[
        bool, typer.Option("--here", help="With the code that is running, not a fresh clone.")
    ] = False,
) -> None:
    """Run it again from its capsule, in a fresh clone, and compare losses and rows bit for bit."""
    from s3ta_platform.reproduce import reproduce as run_again

    raise typer.Exit(run_again(word, results, into, here=here))


@app.command()
def verify(
    results: Annotated[
        str, typer.Argument(help="The results root.", envvar="S3TA_RESULTS")
    ] = "results",
) -> None:
    """Check stored results and count every number again; exit code 1 if anything is in doubt."""
    from s3ta_platform.verify import verify as verify_results

    raise typer.Exit(verify_results(results))


@app.command()
def ui(
    results: Results = "results",
    tracking: Tracking = "",
    port: Annotated[int, typer.Option(help="On 127.0.0.1.", min=1, max=65535)] = 5000,
) -> None:
    """Open MLflow's pages over the results, on this machine only."""
    from s3ta_platform.places import tracking_address
    from s3ta_platform.tracking_ui import ui_command, ui_environment

    argv = ui_command(tracking_address(tracking, results), None, port=port)
    _require_free(port)
    typer.echo(f"MLflow is on http://127.0.0.1:{port} - stop it with Ctrl-C.")
    typer.echo("The last run printed the link to its compare view; it is in its report, too.")
    os.execve(argv[0], argv, ui_environment())


def _require_free(port: int) -> None:
    """MLflow would say so between many other lines, and exit with code 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"Port {port} of 127.0.0.1 cannot be used ({error.strerror}): it must be free. "
                "Stop what uses it, or choose another one with --port."
            ) from error


@app.command()
def doctor(results: Results = "results", tracking: Tracking = "") -> None:
    """Check Python, torch, Ray, MLflow, storage and disk: each line is ok or says the remedy."""
    from s3ta_platform.doctor import examine

    raise typer.Exit(examine(results, tracking))


for _command in COMMANDS:
    app.command()(_command)


@data_app.command("import")
def import_data(
    name: Annotated[str, typer.Argument(help="fashion-mnist or imagenet-a.", metavar="NAME")],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="fashion-mnist: a folder of IDX files or a base URL, by default whatever is at "
            "hand. imagenet-a: the folder of the unpacked archive.",
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(help="Where the Parquet files go.", show_default="datasets/NAME"),
    ] = None,
) -> None:
    """Bring a data set into the form that experiments read."""
    if name not in ("fashion-mnist", "imagenet-a"):
        raise UserError(
            f"{name!r} is not a data set that can be imported: use fashion-mnist or imagenet-a."
        )
    from s3ta_platform.import_data import import_with_progress

    import_with_progress(name, source, to or Path("datasets") / name.replace("-", "_"))


def main() -> None:
    """Entry point: what is the user's to mend becomes one message and exit code 2."""
    try:
        app()
    except UserError as error:
        typer.echo(f"s3ta: {error}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != STOPPED:  # typer makes it of Ctrl-C
            raise
        typer.echo("\ns3ta: stopped. Started again, a run goes on where it ended.", err=True)
        sys.exit(STOPPED)
