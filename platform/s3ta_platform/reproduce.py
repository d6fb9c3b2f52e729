"""`s3ta reproduce`: a run again, from its capsule, in a fresh clone, held against the first."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from s3ta.errors import UserError
from s3ta_platform.capsule import FOLDER, FORMAT, installed
from s3ta_platform.compose import Composed, Trial, restore
from s3ta_platform.evaluation_record import read_records
from s3ta_platform.outcomes import shard_file
from s3ta_platform.plan import Plan, make_plan
from s3ta_platform.record import RESULT_VERSION
from s3ta_platform.rows import read_rows, rows_digest
from s3ta_platform.storage import NotStored, Storage, open_storage
from s3ta_platform.trials import read_history, read_trained

SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class Sameness:
    """Of one trial, done twice."""

    name: str
    losses: int
    """Points of the training curve."""
    same_losses: int
    largest_difference: float
    same_model: bool
    files: int
    """Of per-example rows, in the first run."""
    same_files: int

    @property
    def whole(self) -> bool:
        """To the last bit."""
        same_losses = self.losses == self.same_losses
        return same_losses and self.same_model and self.files == self.same_files

    def __str__(self) -> str:
        verdict = "the same" if self.whole else "NOT the same"
        far = f" (at most {self.largest_difference:.3g} apart)" if self.largest_difference else ""
        return (
            f"{self.name}: {verdict}. Losses {self.same_losses} of {self.losses}{far}; model "
            f"{'the same' if self.same_model else 'another one'}; files of rows {self.same_files} "
            f"of {self.files}."
        )


def reproduce(word: str, results: str, into: Path, *, here: bool) -> int:
    """Run it again and compare; exit code 1 if anything differs.

    here: with the code that is running, in place of a fresh clone.
    """
    capsule, first = find_capsule(word, results)
    if not here:
        return _in_a_clone(capsule, first, into)
    from s3ta_platform.run import run as run_plan

    plan = plan_again(capsule, into / "results")
    code = run_plan(plan)
    console = Console()
    for difference in different_versions(capsule):
        console.print(difference, markup=False, highlight=False)
    found = [sameness(first, plan.storage, trial.key, trial.name) for trial in plan.trials]
    for same in found:
        console.print(str(same), markup=False, highlight=False, soft_wrap=True)
    return code or int(not all(same.whole for same in found))


def find_capsule(word: str, results: str) -> tuple[dict[str, Any], Storage]:
    """A capsule and the results of its run; by its file, or by an experiment's or its own name."""
    file = Path(word).expanduser()
    if file.is_file():
        inside = file.resolve().parent.name == FOLDER
        root = str(file.resolve().parents[1]) if inside else results
        return read_capsule(file.read_bytes(), str(file)), open_storage(root)
    storage = open_storage(results)
    names = storage.list(f"{FOLDER}/")
    stems = {name.removeprefix(f"{FOLDER}/").removesuffix(".json"): name for name in names}
    found = [s for s in stems if word in (s, s.rpartition("-")[0])]
    if len(found) != 1:
        what = f"{len(found)} capsules" if found else "no capsule"
        listed = "".join(f"\n  {stem}" for stem in found or stems)
        raise UserError(
            f"{word!r} names {what} in {storage.root}. It must be a capsule's file or name, or an "
            f"experiment's name if it has one only.{f' There are:{listed}' if listed else ''}"
        )
    name = stems[found[0]]
    return read_capsule(storage.get(name), storage.uri(name)), storage


def read_capsule(content: bytes, where: str) -> dict[str, Any]:
    """UserError unless it is one."""
    try:
        capsule = json.loads(content)
        good = capsule["format"] == FORMAT
    except (ValueError, KeyError, TypeError):
        good = False
    if not good:
        raise UserError(f"{where} is no capsule of the format {FORMAT}: name another file.")
    return capsule  # type: ignore[no-any-return]


def plan_again(capsule: dict[str, Any], results: Path) -> Plan:
    """The same plan with results elsewhere; UserError if code or data make others of its trials."""
    found = capsule["versions"]["result_version"]
    if found != RESULT_VERSION:
        raise UserError(
            f"The capsule is of RESULT_VERSION {found} and this is {RESULT_VERSION}: their numbers "
            "differ. Leave out --here: then the run's own code is taken."
        )

    def again(stored: dict[str, Any]) -> Any:
        e = restore(stored, "the capsule")
        return replace(e, results=str(results), tracking=replace(e.tracking, store="none"))

    trials = [Trial(trial["point"], again(trial["experiment"])) for trial in capsule["trials"]]
    plan = make_plan(Composed(again(capsule["experiment"]), trials))
    keys = {trial["key"]: trial["name"] for trial in capsule["trials"]}
    lost = [name for key, name in keys.items() if key not in {t.key for t in plan.trials}]
    if lost:
        raise UserError(
            f"{', '.join(lost)} can't be made again: the content of its data files or the code is "
            f"another. The data had the digests {capsule['data']}. Bring the same files back."
        )
    return plan


def different_versions(capsule: dict[str, Any]) -> list[str]:
    """What is installed in another version than then; such a run may differ in last bits."""
    then, now = capsule["lock"], installed()
    names = sorted(n for n in then if then[n] != now.get(n, "") and n != "s3ta-platform")
    if not names:
        return []
    shown = ", ".join(f"{n} {then[n]} (now {now.get(n, 'absent')})" for n in names[:SHOWN])
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"Other versions are installed than then: {shown}{more}."]


def sameness(first: Storage, second: Storage, key: str, name: str) -> Sameness:
    """Hold a trial's two runs against each other, to the last bit."""
    mine, yours = read_history(first, key), read_history(second, key)
    pairs = list(zip(mine, yours, strict=False))
    apart = [abs(a["loss"] - b["loss"]) for a, b in pairs]
    same = sum(_timeless(a) == _timeless(b) for a, b in pairs)
    files = rows_of(first, key)
    return Sameness(
        name=name,
        losses=max(len(mine), len(yours)),
        same_losses=same,
        largest_difference=max(apart, default=0.0),
        same_model=read_trained(first, key) == read_trained(second, key),
        files=len(files),
        same_files=sum(_same_rows(first, second, file) for file in files),
    )


def rows_of(storage: Storage, key: str) -> list[str]:
    """The files of per-example rows that a trial's evaluations have, as far as they are stored."""
    names = {shard_file(s) for r in read_records(storage) if r.trial == key for s in r.shards}
    return sorted(names & set(storage.list("evaluations/")))


def _same_rows(first: Storage, second: Storage, file: str) -> bool:
    try:
        return rows_digest(read_rows(first, file)) == rows_digest(read_rows(second, file))
    except NotStored:
        return False


def _timeless(point: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in point.items() if name != "time"}


def _in_a_clone(capsule: dict[str, Any], first: Storage, into: Path) -> int:
    code = capsule["code"]
    clone = fresh_clone(Path(__file__).resolve().parents[2], code, into / "code")
    file = (into / "capsule.json").resolve()
    file.write_text(json.dumps(capsule))
    paths = [str(clone), str(clone / "platform")]
    command = [sys.executable, "-m", "s3ta_platform", "reproduce", str(file), "--here"]
    options = ["--results", first.root, "--into", str(into.resolve())]
    return subprocess.run(
        [*command, *options], env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, check=False
    ).returncode


def fresh_clone(source: Path, code: dict[str, Any], into: Path) -> Path:
    """A clone of a repository as it was then: the commit, and what had been changed since."""
    if not code["commit"]:
        raise UserError(
            "The capsule names no commit: its code was an installed package. Install the versions "
            "of its lock, and reproduce it with --here."
        )
    if not code["diff_whole"]:
        raise UserError(
            "The capsule's changes can't be applied: a secret was taken out of them. Check out "
            f"{code['commit'][:12]}, make the changes by hand, and reproduce it there with --here."
        )
    if into.exists():
        raise UserError(f"{into} is there already: give --into a new folder.")
    into.parent.mkdir(parents=True, exist_ok=True)
    into = into.resolve()
    _git(["clone", "--quiet", "--no-checkout", str(source), str(into)], code)
    _git(["-C", str(into), "checkout", "--quiet", "--detach", code["commit"]], code)
    if code["diff"]:
        _git(["-C", str(into), "apply", "--whitespace=nowarn", "-"], code, code["diff"])
    return into


def _git(arguments: Sequence[str], code: dict[str, Any], text: str = "") -> None:
    done = subprocess.run(
        ["git", *arguments], input=text.encode(), capture_output=True, check=False
    )
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()
        raise UserError(
            f"The code of the run (commit {code['commit'][:12]}) can't be had from this checkout: "
            f"{words}. Fetch that commit, or check it out yourself and use --here."
        )
