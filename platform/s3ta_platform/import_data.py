"""`s3ta data import`: with a bar for every file."""

from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from s3ta_platform.fashion_mnist import import_fashion_mnist


def import_with_progress(source: str | None, destination: Path) -> None:
    """Import Fashion-MNIST and say where it is."""
    console = Console()
    bars: dict[str, TaskID] = {}
    with Progress(console=console) as progress:

        def show(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total)
            progress.update(bars[what], completed=done, total=total)

        files = import_fashion_mnist(source, destination, show)
    for file in files:
        console.print(f"{file}", highlight=False)
    # That group names these files relative to the working directory.
    by_group = destination == Path("datasets/fashion_mnist")
    settings = " ".join(f"data.{file.stem}={file}" for file in files)
    words = "'- data: fashion_mnist' in the defaults list" if by_group else settings
    console.print(f"Use it in an experiment with {words}", highlight=False, soft_wrap=True)
