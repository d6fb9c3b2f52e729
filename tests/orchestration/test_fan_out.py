"""However the images are cut and wherever they are attacked, the rows are the same, each once."""

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tiny import evaluate_job, train_job
from torch import Tensor
from waiting import until

from s3ta.tally import Tally
from s3ta_platform import evaluate as evaluation
from s3ta_platform.cluster import local_cluster
from s3ta_platform.evaluate import evaluate
from s3ta_platform.events import Event
from s3ta_platform.executors import run_inline, run_on_ray
from s3ta_platform.jobs import EvaluateJob, open_images
from s3ta_platform.leftovers import alive
from s3ta_platform.rows import merge_rows
from s3ta_platform.shards import DoWork, Work, evaluation_ids, plan_shards
from s3ta_platform.storage import open_storage
from s3ta_platform.train import train


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Results with a trained model, and no evaluation."""
    folder = str(tmp_path_factory.mktemp("trained"))
    train(train_job(folder, epochs=1))
    return folder


def rows_of(job: EvaluateJob) -> list[dict[str, object]]:
    """All stored rows of an evaluation, sorted; fails where a shard is missing."""
    ids = evaluation_ids(open_images(job.data.test, job.data, job.model).ids_N, job.evaluate)
    shards = plan_shards(job, ids)
    table: pa.Table = merge_rows(open_storage(job.root), ((s.attack, s.name) for s in shards))
    ordered = table.sort_by([("image_id", "ascending"), ("step", "ascending")])
    return ordered.to_pylist()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def undisturbed(root: str) -> list[dict[str, object]]:
    job = evaluate_job(root, shard_images=48)
    evaluate(job, run_inline)
    return rows_of(job)


def test_every_image_has_one_row_per_reading(undisturbed: list[dict[str, object]]) -> None:
    assert len(undisturbed) == 44 * 3
    assert len({(row["image_id"], row["step"]) for row in undisturbed}) == 44 * 3
    assert {row["step"] for row in undisturbed} == {5, 16, 20}


@pytest.mark.parametrize("size", [24, 8])
def test_rows_do_not_depend_on_the_shards(
    size: int, root: str, undisturbed: list[dict[str, object]]
) -> None:
    def backwards(
        build: Callable[[], DoWork], jobs: Iterable[Work], **watch: Any
    ) -> Iterator[tuple[Work, Tally]]:
        return run_inline(build, reversed(list(jobs)), **watch)

    job = evaluate_job(root, shard_images=size)
    evaluate(job, backwards)
    assert rows_of(job) == undisturbed


def test_a_stored_shard_is_never_computed_again(root: str) -> None:
    job = evaluate_job(root, shard_images=16)
    evaluate(evaluate_job(root, shard_images=48), run_inline)  # makes the gallery, too
    assert evaluate(job, run_inline) == 3  # 5 steps on all images are one shard, stored
    events: list[Event] = []
    assert evaluate(job, run_inline, events.append) == 0
    assert events[-1].done == events[-1].total == 44 * 2


def test_a_lost_shard_alone_is_computed_again(root: str) -> None:
    job = evaluate_job(root, shard_images=16)
    evaluate(job, run_inline)
    before, storage = rows_of(job), open_storage(root)
    ids = evaluation_ids(open_images(job.data.test, job.data, job.model).ids_N, job.evaluate)
    storage.delete(plan_shards(job, ids)[2].name)
    assert evaluate(job, run_inline) == 1
    assert rows_of(job) == before


def dies_once(marker: str, job: EvaluateJob, owner: str) -> DoWork:
    """A worker that SIGKILLs itself in the middle of an attack, the first time anywhere."""
    do = evaluation.build_worker(job, owner)

    def doomed(work: Work) -> Tally:
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return do(work)
        from s3ta.attacks import PGD

        steps, look = 0, PGD.look

        def counted(self: PGD, attacked: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal steps
            steps += 1
            if steps == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return look(self, attacked)

        PGD.look = counted  # type: ignore[method-assign]
        return do(work)

    return doomed


@pytest.mark.slow
def test_ray_gives_the_inline_rows_though_a_worker_is_killed_inside_an_attack(
    root: str,
    undisturbed: list[dict[str, object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]
    job, marker = evaluate_job(root, shard_images=40), tmp_path / "killed"
    build = partial(dies_once, str(marker), job, "driver")

    def on_ray(
        _: Callable[[], DoWork], jobs: Iterable[Work], **watch: Any
    ) -> Iterator[tuple[Work, Tally]]:
        return run_on_ray(build, jobs, workers=2, **watch)

    with local_cluster(cpus=2):
        evaluate(job, on_ray)
        until(lambda: alive() == ([], []), 10)  # Ray books a death a moment later
    assert marker.exists()
    assert rows_of(job) == undisturbed
