"""The capsule of a run: all that it takes to do it again, in one file that holds no secret.

Settings as they were composed, the code (commit and what was changed since), installed versions,
the data's digests, seeds, hardware. It lies at `capsules/NAME-DIGEST.json` below the results root,
named by its content: the same run from the same code has the same capsule. Imports no torch.
"""

import hashlib
import json
import os
import platform
import re
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from s3ta_platform.plan import Plan, TrialPlan
from s3ta_platform.record import RESULT_VERSION, plain

FORMAT = "s3ta-capsule-1"
FOLDER = "capsules"
HIDDEN = "***"
SECRET_FILES = ("**/.env*", "**/*.pem", "**/*.key", "**/*credentials*", "**/.netrc", "**/.pypirc")
"""Never part of a diff."""
SECRET_NAME = re.compile(
    r"token|secret|passw|credential|api_?key|access_?key|authorization", re.IGNORECASE
)
"""Of environment variables whose values are taken out wherever they appear."""
SHORTEST_SECRET = 6

_URL_LOGIN = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s\"'@]+@")
_ASSIGNED = re.compile(
    r"(?P<name>(?:token|secret|passw\w*|credential|signature|api_?key|access_?key)\w*"
    r"[\"']?\s*[=:]\s*[\"']?)(?=[^\s\"'&]*\d)(?P<value>[A-Za-z0-9_./+=-]{12,})",
    re.IGNORECASE,
)
"""A long value with a digit in it, given to such a name: `token = "..."`, `X-Amz-Signature=...`."""


def write_capsule(plan: Plan) -> str:
    """Store the capsule, unless it is there; gives its name."""
    text = json.dumps(capsule_of(plan), indent=1, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    name = f"{FOLDER}/{plan.experiment.name}-{digest}.json"
    plan.storage.put_new(name, text.encode())
    return name


def capsule_of(plan: Plan) -> dict[str, Any]:
    """What is stored, without secrets."""
    e = plan.experiment
    trials = [
        {"key": t.key, "name": t.name, "point": plain(t.point), "experiment": plain(t.experiment)}
        for t in plan.trials
    ]
    whole = {
        "format": FORMAT,
        "name": e.name,
        "experiment": plain(e),
        "trials": trials,
        "code": code_state(Path(__file__)),
        "lock": installed(),
        "data": {location: digest for t in plan.trials for location, digest in _data(t)},
        "seeds": {t.key: _seeds(t) for t in plan.trials},
        "hardware": hardware(plan),
        "versions": {
            "result_version": RESULT_VERSION,
            "python": platform.python_version(),
            "system": platform.platform(),
        },
    }
    cleaned: dict[str, Any] = without_secrets(whole, secrets_here())
    # A diff in which something was taken out is no diff any more.
    cleaned["code"]["diff_whole"] = cleaned["code"]["diff"] == whole["code"]["diff"]
    return cleaned


def _data(trial: TrialPlan) -> list[tuple[str, str]]:
    d = trial.experiment.data
    found = [(d.test, trial.test_digest)]
    if "images" in trial.parts:  # else it was trained elsewhere
        found.append((d.train, str(trial.parts["images"]["digest"])))
    return found


def _seeds(trial: TrialPlan) -> dict[str, int]:
    e = trial.experiment
    return {"train": e.train.seed, "subset": e.data.subset_seed, "evaluate": e.evaluate.seed}


def hardware(plan: Plan) -> dict[str, Any]:
    """Of the driver's machine."""
    classes = sorted({trial.device_class for trial in plan.trials})
    return {"machine": platform.machine(), "cpus": os.cpu_count(), "device_classes": classes}


@lru_cache(maxsize=1)
def installed() -> dict[str, str]:
    """Versions by name of all distributions; not where they were installed from."""
    return {d.metadata["Name"]: d.version for d in metadata.distributions()}


def code_state(file: Path) -> dict[str, Any]:
    """The commit of the checkout that a file belongs to, and what differs from it.

    Without a checkout, as for an installed package, the commit is empty; the lock has the version.
    """
    folder = file.resolve().parent
    if _git(folder, "ls-files", "--error-unmatch", file.name) is None:
        return {"commit": "", "dirty": False, "diff": "", "untracked": []}
    root = Path((_git(folder, "rev-parse", "--show-toplevel") or "").strip())
    excluded = [f":(exclude,glob){pattern}" for pattern in SECRET_FILES]
    status = _git(root, "status", "--porcelain", "--untracked-files=normal") or ""
    untracked = [line[3:] for line in status.splitlines() if line.startswith("??")]
    return {
        "commit": (_git(root, "rev-parse", "HEAD") or "").strip(),
        "dirty": bool(status.strip()),
        "diff": _git(root, "diff", "--binary", "HEAD", "--", ".", *excluded) or "",
        "untracked": untracked,
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where there is none, or no repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", errors="replace")


def secrets_here() -> tuple[str, ...]:
    """Values of this process's environment that nobody else should see, the longest first."""
    found = {
        value
        for name, value in os.environ.items()
        if SECRET_NAME.search(name) and len(value) >= SHORTEST_SECRET
    }
    return tuple(sorted(found, key=lambda value: (-len(value), value)))


def without_secrets(value: Any, secrets: tuple[str, ...]) -> Any:
    """The same value with every login in a URL, secret and assigned password taken out."""
    if isinstance(value, dict):
        return {
            without_secrets(key, secrets): without_secrets(entry, secrets)
            for key, entry in value.items()
        }
    if isinstance(value, list):
        return [without_secrets(entry, secrets) for entry in value]
    if not isinstance(value, str):
        return value
    for secret in secrets:
        value = value.replace(secret, HIDDEN)
    value = _URL_LOGIN.sub(lambda m: f"{m['scheme']}{HIDDEN}@", value)
    return _ASSIGNED.sub(lambda m: m["name"] + HIDDEN, value)
