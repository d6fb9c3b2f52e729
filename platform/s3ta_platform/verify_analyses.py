"""Every file of an analysis or a probe: whole, unchanged, in place, with its images. No torch."""

from s3ta.errors import UserError
from s3ta_platform.rows import about
from s3ta_platform.storage import NotStored, Storage, StoreAwayError
from s3ta_platform.study_files import read_study
from s3ta_platform.verified import Check, Tick
from s3ta_platform.verify_rows import own_problems


def study_names(storage: Storage) -> list[str]:
    """All stored pieces of analyses, and probes of gradients."""
    folders = ("analyses/", "probes/")
    names = (name for folder in folders for name in storage.list(folder))
    return [name for name in names if name.endswith(".parquet")]


def check_studies(storage: Storage, tick: Tick) -> Check:
    """Every stored piece of an analysis, and every probe."""
    names = study_names(storage)
    check = Check(name="analyses", words=f"{len(names)} piece(s)")
    for name in names:
        tick()
        check.doubts += _problems(storage, name)
    return check


def _problems(storage: Storage, name: str) -> list[str]:
    try:
        table = read_study(storage, name)
    except StoreAwayError:
        raise
    except (UserError, NotStored) as error:
        return [str(error)]
    problems = list(own_problems(table, name))
    planned = about(table).get("key_parts", {}).get("image_ids", [])
    if {*table["image_id"].to_pylist()} != {*planned}:
        problems.append("its images are not those that it says")
    remedy = "Delete it and run again: it is computed anew."
    return [f"{storage.uri(name)}: {words}. {remedy}" for words in problems]
