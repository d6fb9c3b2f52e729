"""`s3ta doctor`: is this machine ready? Each line is ok, or says what to do."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from s3ta.errors import UserError
from s3ta_platform.places import local_root, tracking_address
from s3ta_platform.storage import open_storage

FREE_GB = 2.0

Check = Callable[[], str]
"""Gives a few words when all is well, or raises with the remedy."""


def examine(results: str, tracking: str) -> int:
    """Run every check; exit code 0 if all are ok, else 1."""
    checks: dict[str, Check] = {
        "Python": _python,
        "torch": _torch,
        "Ray": _ray,
        "MLflow store": lambda: _tracking(tracking_address(tracking, results)),
        "results": lambda: _storage(results),
        "free disk": lambda: _disk(local_root(results)),
        "sample data": _sample,
    }
    console, bad = Console(), 0
    for name, check in checks.items():
        try:
            mark, words = "[green]ok[/]  ", check()
        except Exception as error:
            mark, words, bad = "[red]mend[/]", str(error), bad + 1
        console.print(f"{mark}  {name:12}  {escape(words)}", highlight=False, soft_wrap=True)
    return 1 if bad else 0


def _python() -> str:
    return sys.version.split()[0]


def _torch() -> str:
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    where = ", ".join(devices) or f"CPU only, {torch.get_num_threads()} threads"
    return f"{torch.__version__}, {where}"


def _ray() -> str:
    from s3ta_platform.cluster import local_cluster

    with local_cluster(cpus=1):
        import ray

        return f"{ray.__version__}, starts on this machine, on 127.0.0.1 only"


def _tracking(address: str) -> str:
    if address.startswith("sqlite:") and not Path(address.removeprefix("sqlite:///")).exists():
        return f"{address} (made by the first run)"
    from s3ta_platform.tracking import open_tracker

    open_tracker(address, None, "s3ta")
    return address


def _storage(results: str) -> str:
    storage = open_storage(results)
    storage.check_writable()
    return f"{storage.root} can be written"


def _disk(folder: Path) -> str:
    while not folder.exists():
        folder = folder.absolute().parent
    free = shutil.disk_usage(folder).free / 2**30
    if free < FREE_GB:
        raise UserError(f"{free:.1f} GiB free at {folder}: make room for at least {FREE_GB} GiB.")
    return f"{free:.0f} GiB at {folder}"


def _sample() -> str:
    from s3ta_platform.data import read_manifest

    return f"{read_manifest('sample:fashion_mnist/train.parquet').images} training images"
