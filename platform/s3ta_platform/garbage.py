"""`s3ta gc`: what can be removed from a results root, with its size; and its removal.

What a planned or running job needs is never named. A run that may be at work keeps whatever belongs
to its trials. Results of an older RESULT_VERSION are needed by no plan of this version, for their
keys are others: a trial is older if all its runs were, or rows of its evaluations are.
"""

import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from s3ta.errors import UserError
from s3ta_platform import leases
from s3ta_platform.checkpoints import steps, superfluous
from s3ta_platform.evaluation_record import read_records
from s3ta_platform.outcomes import shard_file
from s3ta_platform.record import RESULT_VERSION
from s3ta_platform.rows import METADATA
from s3ta_platform.runs import Run, State, begun_name, read_runs
from s3ta_platform.snapshots import FOLDER as SNAPSHOTS
from s3ta_platform.storage import Storage, open_storage
from s3ta_platform.storage_names import TEMPORARY
from s3ta_platform.tidy import is_stored
from s3ta_platform.trials import BEST_BY, checkpoint_prefix, read_trained

TEMPORARY_S = 86400.0
"""A temporary file of that age has no writer any more."""
NAMED = 20
"""So many names of a kind are listed; --names lists all."""


@dataclass
class Kind:
    """One reason why something can go."""

    words: str
    sizes: dict[str, int] = field(default_factory=dict)
    """Names in the order of their removal, with their bytes."""


class Root:
    """One look at a results root."""

    def __init__(self, storage: Storage) -> None:
        self.storage, self.runs = storage, read_runs(storage)
        self.sizes = storage.sizes()
        self.trials = sorted({n.split("/")[1] for n in self.sizes if n.startswith("trials/")})
        working = [run for run in self.runs if run.state.may_work]
        self.busy = {key for run in working for key in run.todo}
        # A run of an older version may still be at work.
        self.all_current = all(run.result_version == RESULT_VERSION for run in working)

    def below(self, prefix: str) -> list[str]:
        return [name for name in self.sizes if name.startswith(prefix)]


def gc(results: str, *, dry_run: bool, yes: bool, every_name: bool) -> int:
    """Show what can go, and remove it if it is wanted; exit code 0."""
    storage, console = open_storage(results), Console()
    kinds = needless(storage)
    _show(console, storage, kinds, every_name)
    if not kinds or dry_run or not (yes or _agreed()):
        return 0
    # Looked at again: a run may have begun while the answer was thought over.
    names = {name: size for kind in needless(storage) for name, size in kind.sizes.items()}
    for name in names:
        if not name.rpartition("/")[2].startswith(TEMPORARY):
            storage.delete(name)
    storage.clear_temporaries("", TEMPORARY_S)
    console.print(f"removed {len(names):,} files, {in_bytes(sum(names.values()))}")
    return 0


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise UserError(
            "Nothing was removed: without a terminal to ask on it must be said with --yes "
            "(or --dry-run, to look only)."
        )
    return input("Remove all of this? [y/N] ").strip().lower() in ("y", "yes")


def needless(storage: Storage) -> list[Kind]:
    """What can go, by the reason why. A name has one reason."""
    root, found, named = Root(storage), [], set[str]()
    kinds = (
        Kind("temporary files of writers that were killed", storage.temporaries(TEMPORARY_S)),
        _kind(root, "news and records of runs that are over or were run again", _run_files),
        _kind(root, "saved states and leases of work that is stored", _settled),
        _kind(root, "checkpoints that nobody needs, and half-written ones", _checkpoints),
        _kind(root, f"results of an older version (this is {RESULT_VERSION})", _old_results),
    )
    for kind in kinds:
        own = {name: size for name, size in kind.sizes.items() if name not in named}
        named |= own.keys()
        if own:
            found.append(Kind(kind.words, own))
    return found


def _kind(root: Root, words: str, names: Callable[[Root], Iterator[str]]) -> Kind:
    return Kind(words, {name: root.sizes[name] for name in names(root) if name in root.sizes})


def _run_files(root: Root) -> Iterator[str]:
    """Beats of runs that are over, and all of a run that a later one of the same trials follows."""
    latest: dict[tuple[str, ...], Run] = {}
    for run in root.runs:
        latest[run.name, *sorted(str(t["key"]) for t in run.trials)] = run
    for run in root.runs:
        if run.state.may_work:
            continue
        own = root.below(f"runs/{run.id}/")
        yield from (name for name in own if "/beat-" in name and run.state is not State.dead)
        if run not in latest.values():
            # What makes it a run goes last.
            yield from sorted(own, key=lambda name: name == begun_name(run.id))


def _settled(root: Root) -> Iterator[str]:
    """As tidy removes them while evaluations run."""
    for name in (*root.below(f"{SNAPSHOTS}/"), *root.below(f"{leases.FOLDER}/")):
        if is_stored(root.storage, name.split("/")[1]):
            yield name


def _checkpoints(root: Root) -> Iterator[str]:
    """Of a trained model all but its own and that of its best epoch; else half-written ones."""
    for key in root.trials:
        if key in root.busy:
            continue
        prefix, trained = checkpoint_prefix(key), read_trained(root.storage, key)
        complete = steps(root.storage, prefix)
        keep = len(complete) if trained is None else 1
        doomed = superfluous(root.storage, prefix, max(keep, 1), BEST_BY) if complete else []
        own = f"{prefix}/{trained.step:010d}/" if trained is not None else None
        yield from (name for name in doomed if own is None or not name.startswith(own))
        yield from _unfinished(root, prefix, complete)


def _unfinished(root: Root, prefix: str, complete: list[int]) -> Iterator[str]:
    """What a killed writer left of a checkpoint beyond the last complete one."""
    folders = {f"{step:010d}" for step in complete}
    for name in root.below(f"{prefix}/"):
        if name.removeprefix(f"{prefix}/").split("/")[0] not in folders:
            yield name


def _old_results(root: Root) -> Iterator[str]:
    """Rows and galleries that say so, and their trials."""
    if not root.all_current:
        return
    folders = ("evaluations", "probes", "analyses")
    found = (name for folder in folders for name in root.below(f"{folder}/"))
    files = [name for name in found if name.endswith(".parquet")]
    rows = {name for name in files if _rows_version(root.storage, name) < RESULT_VERSION}
    yield from rows
    for name in root.below("galleries/"):
        if _gallery_version(root.storage, name) < RESULT_VERSION:
            yield name
    newest: dict[str, int] = {}
    for run in root.runs:
        for key in (str(trial["key"]) for trial in run.trials):
            newest[key] = max(newest.get(key, 0), run.result_version)
    old = {key for key, version in newest.items() if version < RESULT_VERSION}
    for record in read_records(root.storage):
        if any(shard_file(shard) in rows for shard in record.shards):
            old.add(record.trial)
    for key in sorted(old - root.busy):
        yield from root.below(f"trials/{key}/")


def _rows_version(storage: Storage, name: str) -> int:
    """This version where a file does not say: `s3ta verify` looks at damaged ones."""
    try:
        head = json.loads(pq.read_schema(io.BytesIO(storage.get(name))).metadata[METADATA])
        return int(head["key_parts"]["result_version"])
    except (pa.ArrowInvalid, KeyError, ValueError, TypeError):
        return RESULT_VERSION


def _gallery_version(storage: Storage, name: str) -> int:
    """This version where it does not say: those of version 3 and before did not."""
    data = storage.get(name)
    try:
        head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return int(head["__metadata__"]["result_version"])
    except (KeyError, ValueError, TypeError):
        return RESULT_VERSION


def _show(console: Console, storage: Storage, kinds: list[Kind], every_name: bool) -> None:
    if not kinds:
        console.print(f"Nothing can be removed from {storage.root}.", soft_wrap=True)
    for kind in kinds:
        size, count = in_bytes(sum(kind.sizes.values())), len(kind.sizes)
        console.print(f"{kind.words}: {count:,} files, {size}", style="bold", soft_wrap=True)
        shown = list(kind.sizes.items())[: None if every_name else NAMED]
        for name, own in shown:
            console.print(f"  {in_bytes(own):>9}  {name}", highlight=False, soft_wrap=True)
        if len(shown) < count:
            console.print(f"  and {count - len(shown):,} more (--names lists all)")
    if len(kinds) > 1:
        total = sum(sum(kind.sizes.values()) for kind in kinds)
        console.print(f"together {in_bytes(total)}", style="bold")


def in_bytes(count: int) -> str:
    """`912 B`, `1.5 kB`, `60.2 MB`."""
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count} B"
