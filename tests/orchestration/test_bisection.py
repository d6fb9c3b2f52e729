"""The image that ends its worker is found, and everything else is put together again."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import DATA, evaluate_job, model, train_job

from s3ta.errors import UserError
from s3ta_platform.bisection import Bisection
from s3ta_platform.gallery import read_gallery
from s3ta_platform.jobs import EvaluateJob, open_images
from s3ta_platform.rows import about, merge_rows, read_rows
from s3ta_platform.shard_worker import build_worker
from s3ta_platform.shards import Portraits, Quarantine, Shard, Work, plan_portraits, plan_shards
from s3ta_platform.storage import Storage, open_storage
from s3ta_platform.tickets import JobFailure
from s3ta_platform.train import train

IDS = open_images(DATA.test, DATA, model()).ids_N[:16]
POISON = {int(IDS[3]), int(IDS[10])}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(train_job(str(folder), epochs=1))
    return folder


@pytest.fixture
def job(trained: Path, tmp_path: Path) -> EvaluateJob:
    shutil.copytree(trained, tmp_path / "r")
    return evaluate_job(str(tmp_path / "r"))


@pytest.fixture
def storage(job: EvaluateJob) -> Storage:
    return open_storage(job.root)


def died(work: Work) -> JobFailure:
    return JobFailure(work, "the worker died", 3, died=True)


def run(job: EvaluateJob, storage: Storage, poison: set[int], images: int = 16) -> list[Shard]:
    """Do all shards, where a worker that meets a poisonous image dies; gives the planned ones."""
    do, bisection = build_worker(job, "driver"), Bisection(job, storage, images)
    todo: list[Work] = [*plan_shards(job, IDS)]
    settled = []
    while todo:
        work = todo.pop()
        if isinstance(work, Shard) and poison & {*work.image_ids}:
            todo += bisection.instead(died(work))
            continue
        do(work)
        shard = work.shard if isinstance(work, Quarantine) else work
        assert isinstance(shard, Shard)
        if (whole := bisection.settled(shard)) is not None:
            settled.append(whole)
    return settled


def test_poisonous_images_are_quarantined_and_all_others_are_as_ever(
    job: EvaluateJob, storage: Storage, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "calm")
    calm = replace(job, root=str(tmp_path / "calm"))
    run(calm, open_storage(calm.root), set())
    planned = plan_shards(job, IDS)
    assert {s.key for s in run(job, storage, POISON)} == {s.key for s in planned}
    for shard in planned:
        found = read_rows(storage, shard.name)
        whole = read_rows(open_storage(calm.root), shard.name)
        poison = sorted(POISON & {*shard.image_ids})
        keep = [i not in poison for i in whole["image_id"].to_pylist()]
        assert found.to_pylist() == whole.filter(keep).to_pylist()
        assert about(found)["quarantined"] == dict.fromkeys(map(str, poison), "the worker died")
        assert about(found)["key_parts"] == about(whole)["key_parts"]
    merged = merge_rows(storage, ((s.attack, s.name) for s in planned))
    lost = merged.filter([error != "" for error in merged["quarantined"].to_pylist()])
    assert sorted(zip(lost["image_id"].to_pylist(), lost["step"].to_pylist(), strict=True)) == [
        (i, step) for i in sorted(POISON) for step in (5, 16, 20)
    ]
    assert not any(lost["correct"].to_pylist())
    assert all(lost["fooled"].to_pylist())


def test_many_such_images_are_not_the_images_fault(job: EvaluateJob, storage: Storage) -> None:
    with pytest.raises(UserError, match=r"5 single images .*lower evaluate.tile"):
        run(job, storage, {*IDS.tolist()})


def test_an_error_that_is_no_death_stands(job: EvaluateJob, storage: Storage) -> None:
    shard = plan_shards(job, IDS)[0]
    assert Bisection(job, storage, 16).instead(JobFailure(shard, "ValueError", 1)) == []


def test_a_gallery_that_ends_its_worker_is_left_empty(job: EvaluateJob, storage: Storage) -> None:
    portraits = plan_portraits(job, IDS)
    assert portraits is not None
    bisection = Bisection(job, storage, 16)
    (empty,) = bisection.instead(died(portraits))
    assert isinstance(empty, Portraits)
    assert empty.skip
    assert empty.name == portraits.name
    build_worker(job, "driver")(empty)
    assert read_gallery(storage, portraits) is None
    assert bisection.instead(died(empty)) == []
