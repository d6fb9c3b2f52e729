"""`s3ta data import`: with a bar for every file."""

from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from s3ta.errors import UserError
from s3ta_platform.fashion_mnist import import_fashion_mnist
from s3ta_platform.imagenet_a import import_imagenet_a


def import_with_progress(name: str, source: str | None, destination: Path) -> None:
    """Import a data set and say where it is."""
    console = Console()
    bars: dict[str, TaskID] = {}
    with Progress(console=console) as progress:

        def show(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total)
            progress.update(bars[what], completed=done, total=total)

        if name == "fashion-mnist":
            files = import_fashion_mnist(source, destination, show)
        else:
            files = [import_imagenet_a(_folder(source), destination, show)]
    for file in files:
        console.print(f"{file}", highlight=False)
    console.print(
        f"Use it with {_usage(name, destination, files)}", highlight=False, soft_wrap=True
    )


def _folder(source: str | None) -> Path:
    if source is None:
        raise UserError(
            "imagenet-a is imported from the folder of its unpacked archive: name it with "
            "--from FOLDER. The archive is imagenet-a.tar, linked from "
            "https://github.com/hendrycks/natural-adv-examples."
        )
    return Path(source).expanduser()


def _usage(name: str, destination: Path, files: list[Path]) -> str:
    """The groups name files relative to the working directory."""
    group = {"fashion-mnist": "data: fashion_mnist", "imagenet-a": "analyze: imagenet_a"}[name]
    if destination == Path("datasets") / name.replace("-", "_"):
        return f"'- {group}' in an experiment's defaults list"
    if name == "imagenet-a":
        return f"'- {group}' in the defaults list and analyze.natural.location={destination}"
    return " ".join(f"data.{file.stem}={file}" for file in files)
