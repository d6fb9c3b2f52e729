"""The model of a rung, attacked while its trial is half-way. Imports no torch."""

from dataclasses import replace

from s3ta_platform.evaluate import FanOut, evaluate
from s3ta_platform.plan import TrialPlan
from s3ta_platform.schema_evaluate import EvaluateSettings, StopSettings
from s3ta_platform.schema_sweep import AshaSettings
from s3ta_platform.storage import Storage
from s3ta_platform.trials import read_trained


def needs_attack(asha: AshaSettings | None) -> bool:
    """Whether the metric is told by an attack, and not by training."""
    return asha is not None and asha.metric.startswith("eval/")


def rung_name(key: str, rung: int) -> str:
    """The trial name under which the model of a rung is on record, and evaluated."""
    return f"{key}-epoch{rung}"


def rung_plan(plan: TrialPlan, rung: int) -> TrialPlan:
    """The model half-way as a trial of its own, to be attacked just enough to know the metric."""
    e = plan.experiment
    assert e.sweep.halving is not None
    settings = rung_evaluation(e.evaluate, e.sweep.halving)
    return replace(
        plan,
        key=rung_name(plan.key, rung),
        name=f"{plan.name} after {rung} of {e.train.epochs} epochs",
        experiment=replace(e, evaluate=settings, sweep=replace(e.sweep, asha=AshaSettings())),
        test_ids=plan.test_ids[: settings.images],
    )


def rung_evaluation(evaluate: EvaluateSettings, asha: AshaSettings) -> EvaluateSettings:
    """The one reading that the metric names, on as many images as it may take."""
    attacks = {}
    for key, attack in evaluate.attacks.items():
        if asha.metric.startswith(f"eval/{attack.name}/"):
            short = replace(attack, readings=[int(asha.metric.rpartition("_")[2])])
            attacks[key] = short if short.name == attack.name else attack
    sizes = [n for n in (asha.images, evaluate.images) if n is not None]
    return replace(
        evaluate,
        attacks=attacks or dict([next(iter(evaluate.attacks.items()))]),
        images=min(sizes, default=None),
        gallery_images=0,
        stop_when=StopSettings(),
    )


def attack_rung(storage: Storage, plan: TrialPlan, rung: int, fan_out: FanOut) -> None:
    """Attack the model of a rung, whose checkpoint is the last one."""
    own = rung_plan(plan, rung)
    trained = read_trained(storage, own.key)
    assert trained is not None, f"training of {plan.key} ended without the record of epoch {rung}"
    evaluate(replace(own.evaluation(trained), checkpoints_of=plan.key), fan_out)
