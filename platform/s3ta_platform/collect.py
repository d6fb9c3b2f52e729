"""From the storage to the input of tables and figures. Computes nothing that a shard did."""

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from s3ta_platform.gallery import read_gallery
from s3ta_platform.plan import Plan, TrialPlan
from s3ta_platform.results import SweepResult, TrialResult
from s3ta_platform.rows import merge_rows
from s3ta_platform.shards import plan_portraits, plan_shards
from s3ta_platform.stages import stage_spans
from s3ta_platform.storage import Storage
from s3ta_platform.stored_shards import enough_images
from s3ta_platform.trials import read_history


def collect(
    plan: Plan,
    run_ids: Mapping[str, str | None],
    failed: Mapping[str, str],
    places: Mapping[str, str],
) -> SweepResult:
    """All complete trials of a sweep; `run_ids` by trial key, `failed` by trial name."""
    storage = plan.storage
    sound = [t for t in plan.trials if t.name not in failed]
    trials = [collect_trial(storage, t, run_ids.get(t.key)) for t in sound]
    done = [t for t in trials if t is not None]
    return SweepResult(
        name=plan.experiment.name,
        title=plan.experiment.about.title or plan.experiment.name,
        claim=plan.experiment.about.claim,
        class_names=plan.class_names,
        images=len(plan.trials[0].test_ids),
        trials=done,
        failed=dict(failed),
        stopped={t.name: s.words for t in plan.trials if (s := t.stopped(storage)) is not None},
        places=dict(places),
    )


def collect_trial(storage: Storage, plan: TrialPlan, run_id: str | None) -> TrialResult | None:
    """One trial's results; None unless every shard is there that counts."""
    trained = plan.trained(storage)
    if trained is None:
        return None
    job = plan.evaluation(trained)
    shards = plan_shards(job, plan.test_ids)
    stored = set(storage.list("evaluations/"))
    enough = enough_images(job, storage, plan.test_ids, shards, stored)
    counting = shards if enough is None else [s for s in shards if s.first < enough]
    if any(shard.name not in stored for shard in counting):
        return None
    rows = merge_rows(storage, ((shard.attack, shard.name) for shard in counting))
    if enough is not None:
        rows = rows.filter(pc.is_in(rows["image_id"], pa.array(plan.test_ids[:enough])))
    portraits = plan_portraits(job, plan.test_ids)
    shown = portraits is not None and storage.exists(portraits.name)
    settings = plan.experiment
    return TrialResult(
        key=plan.key,
        name=plan.name,
        parameters=trained.parameters,
        unroll=settings.model.unroll if settings.model.attention is not None else None,
        settings=plan.shown_settings,
        history=[] if plan.ready else read_history(storage, plan.key),
        rows=rows,
        planned=len(plan.test_ids),
        halfwidth=None if enough is None else settings.evaluate.stop_when.halfwidth,
        gallery=read_gallery(storage, portraits) if portraits and shown else None,
        run_id=run_id,
        published=settings.about.published,
        point=plan.point,
        stages=[] if plan.ready else stage_spans(settings.train, settings.model),
    )
