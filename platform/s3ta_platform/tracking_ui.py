"""Tracking addresses, and MLflow's pages over them: how to start them, and links into them.

Imports no mlflow, so that `s3ta ui` and the links cost no time.
"""

import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote, urlsplit

from s3ta.errors import UserError

QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
"""Environment of everything that imports mlflow: it reports nothing to anybody."""


def compare_url(base_url: str, experiment_id: str, run_ids: Sequence[str]) -> str:
    """MLflow's compare page: the curves of these runs in one chart each."""
    runs = quote(json.dumps(list(run_ids), separators=(",", ":")), safe="")
    experiments = quote(json.dumps([experiment_id]), safe="")
    return f"{base_url.rstrip('/')}/#/compare-runs?runs={runs}&experiments={experiments}"


def ui_command(
    address: str, artifacts: str | None, host: str = "127.0.0.1", port: int = 5000
) -> list[str]:
    """The arguments that start MLflow's pages over an sqlite store; start it with ui_environment().

    artifacts: as for open_tracker. UserError where there are no pages to start.
    """
    if address == "none":
        raise UserError("Tracking is switched off (`none`), so there are no pages to show.")
    address = absolute(address)
    if not address.startswith("sqlite:"):
        raise UserError(
            f"{public(address)} is a server and shows its pages itself: open that address."
        )
    if not database(address).is_file():
        raise UserError(
            f"There is no {database(address)} to show: start a run first, or name its results root "
            "with --results."
        )
    options = {
        "--backend-store-uri": address,
        "--default-artifact-root": artifact_uri(address, artifacts) or "",
        "--host": host,
        "--port": str(port),
        "--workers": "1",
    }
    arguments = itertools.chain.from_iterable(options.items())
    return [sys.executable, "-m", "mlflow", "server", *arguments]


def ui_environment() -> dict[str, str]:
    """This process's environment, without telemetry and without eight processes for jobs."""
    return {**os.environ, **QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def absolute(address: str) -> str:
    """The address without a dependence on the working directory; UserError on unknown kinds."""
    if address.startswith(("http://", "https://")) and urlsplit(address).hostname:
        return address.rstrip("/")
    path = address.removeprefix("sqlite:///")
    if not path or path == address:
        raise UserError(
            f"{address!r} is no tracking address: use sqlite:///PATH/mlflow.db,"
            " http://HOST:PORT or none (setting `tracking.store`)."
        )
    return f"sqlite:///{os.path.abspath(os.path.expanduser(path))}"


def database(address: str) -> Path:
    """The file of an absolute sqlite address."""
    return Path(address.removeprefix("sqlite:///"))


def artifact_uri(address: str, artifacts: str | None) -> str | None:
    """Where runs keep their files; None: the server decides."""
    if artifacts is None:
        local = address.startswith("sqlite:")
        return (database(address).parent / "mlflow-artifacts").as_uri() if local else None
    return artifacts if "://" in artifacts else Path(artifacts).expanduser().absolute().as_uri()


def public(address: str) -> str:
    """The address without a user's name and password."""
    if not address.startswith("http"):
        return address
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
