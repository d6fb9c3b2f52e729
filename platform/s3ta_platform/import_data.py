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
    console.print("Use it in an experiment file with 'data: fashion_mnist'.")
