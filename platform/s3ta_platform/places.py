"""Where things are put that are not results: reports, logs, the tracking store."""

import os
import shlex
import shutil
import sys
import time
from pathlib import Path

from s3ta_platform.schema import Experiment

LOCAL_FOR_REMOTE = "s3ta-local"
"""Beside results on S3, reports, logs and the default tracking store stay in this folder."""


def local_root(results: str) -> Path:
    """The local folder of a results root."""
    return Path(LOCAL_FOR_REMOTE if results.startswith("s3://") else results).expanduser()


def report_folder(e: Experiment) -> Path:
    return local_root(e.results) / "sweeps" / e.name


def log_file(e: Experiment) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return local_root(e.results) / "logs" / f"{stamp}-{e.name}-{os.getpid()}.log"


def tracking_address(store: str, results: str) -> str:
    """The store asked for; by default a sqlite file below the results root."""
    return store or f"sqlite:///{local_root(results).absolute() / 'mlflow.db'}"


def command(words: str) -> str:
    """The `s3ta` command as it can be pasted here."""
    script = Path(sys.executable).parent / "s3ta"
    if shutil.which("s3ta") == str(script):
        return f"s3ta {words}"
    inside = script.is_relative_to(Path.cwd())
    return f"{shlex.quote(str(script.relative_to(Path.cwd()) if inside else script))} {words}"
