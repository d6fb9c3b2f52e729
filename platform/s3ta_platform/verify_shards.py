"""Can the records of evaluations be read, and is every shard there? Imports no torch."""

from collections import Counter

import numpy as np

from s3ta.errors import UserError
from s3ta_platform.evaluation_record import EvaluationRecord, parse_record, record_names
from s3ta_platform.outcomes import courses, enough_images, finished_images, shard_file
from s3ta_platform.places import command
from s3ta_platform.storage import Storage, StoreAwayError
from s3ta_platform.verified import Check, Root


def open_root(storage: Storage) -> tuple[Root, Check]:
    """All records of evaluations that can be read; a doubt for each that cannot."""
    check, records = Check(name="evaluations"), []
    names = record_names(storage)
    for name in names:
        content = storage.get(name)
        try:
            records.append(parse_record(storage, name, content))
        except UserError as error:
            check.doubts.append(str(error))
    models = {record.model_digest for record in records}
    check.words = f"{len(names)} of {len(models)} model(s)"
    stored = frozenset(n for n in storage.list("evaluations/") if n.endswith(".parquet"))
    return Root(storage=storage, stored=stored, records=records), check


def check_shards(root: Root) -> Check:
    """Is every shard stored that an evaluation needs, and does each image meet each attack once?"""
    check, count = Check(name="shards"), 0
    for record in root.records:
        count += len(record.shards)
        where = f"the evaluation {root.storage.uri(record.name)}"
        check.doubts += [f"{where} {words}" for words in _cut_problems(record)]
        finished, population = finished_images(record, root.stored), len(record.image_ids)
        missing = [s for s in record.shards if shard_file(s) not in root.stored]
        try:
            enough = enough_images(root.storage, record, root.stored) if missing else population
        except StoreAwayError:
            raise
        except ValueError:
            continue  # a damaged file: told where the rows are checked
        if enough is None:
            check.doubts.append(
                f"{where} of {record.model} is incomplete: {len(missing)} of {len(record.shards)} "
                f"shards are missing, the first {shard_file(missing[0])}; {finished:,} of "
                f"{population:,} images are finished. `{command('run FILE')}`, with the experiment "
                "file it came from, computes them."
            )
        elif missing:
            check.notes.append(
                f"{where} of {record.model} stopped early, as it was allowed to: its numbers are "
                f"those of {enough:,} of {population:,} images."
            )
    check.words = f"{count} of {len(root.records)} evaluation(s)"
    return check


def _cut_problems(record: EvaluationRecord) -> list[str]:
    """Are the shards of each trajectory the whole permutation, without gap or overlap?"""
    ids = Counter(record.image_ids)
    problems = [f"counts image {i} {n} times." for i, n in ids.items() if n > 1]
    for course in courses(record):
        ends = np.cumsum([s["images"] for s in course.shards]).tolist()
        if [s["first"] for s in course.shards] != [0, *ends[:-1]] or ends[-1] != len(
            record.image_ids
        ):
            problems.append(f"has shards of {course.attack} with a gap or an overlap.")
    return problems
