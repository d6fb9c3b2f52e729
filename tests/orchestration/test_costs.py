"""What a trial costs, against counts by hand."""

from dataclasses import replace

import pytest
import tiny

from s3ta.cost import multiply_adds
from s3ta.settings import (
    AttackSettings,
    Goal,
    Gradient,
    Loss,
    ModelSettings,
    Objective,
    Rule,
    StageSettings,
    Start,
    TrainAttackSettings,
    TrainSettings,
)
from s3ta_platform.costs import TrialCost, in_words, short_count, trial_cost, update_passes
from s3ta_platform.schema_evaluate import EvaluateSettings

SIZE, CLASSES, TRAIN, TEST = 28, 10, 1000, 512
TRAINING = TrainSettings(
    attack=TrainAttackSettings(steps=7), epochs=6, batch=64, microbatch=8, decay_epochs=[]
)


def forward(unroll: int) -> int:
    return multiply_adds(replace(tiny.model(), unroll=unroll), SIZE, CLASSES)


def cost(
    attack: AttackSettings | None = None,
    train: TrainSettings | None = TRAINING,
    model: ModelSettings | None = None,
) -> TrialCost:
    attacks = {} if attack is None else {"it": attack}
    return trial_cost(
        model or tiny.model(),
        train,
        EvaluateSettings(attacks=attacks),
        size=SIZE,
        classes=CLASSES,
        train_images=TRAIN,
        test_images=TEST,
    )


@pytest.mark.parametrize(
    ("objective", "passes"),
    [
        (Objective.plain, 3),  # an update: forward, and twice as much back
        (Objective.adversarial, 2 * 7 + 3),
        (Objective.alp, 2 * 7 + 2 * 3),  # clean and attacked images
        (Objective.llr, 2 * 7 + 2 + 9),
    ],
)
def test_an_update_costs_its_attack_and_its_gradients(objective: Objective, passes: int) -> None:
    train = replace(TRAINING, objective=objective)
    assert update_passes(train, 7) == passes
    # 15 whole batches of 64 of 1000 images, 6 epochs
    assert cost(train=train).training == 6 * 15 * 64 * passes * forward(2)


def test_each_stage_of_a_curriculum_costs_its_own_unroll_and_steps() -> None:
    curriculum = [
        StageSettings(from_epoch=0, unroll=4, attack_steps=5),
        StageSettings(from_epoch=4, unroll=16),
    ]
    found = cost(train=replace(TRAINING, curriculum=curriculum)).training
    image_epochs = 15 * 64
    assert found == image_epochs * (4 * (2 * 5 + 3) * forward(4) + 2 * (2 * 7 + 3) * forward(16))


def test_a_model_that_is_trained_already_costs_only_its_attacks() -> None:
    found = cost(AttackSettings(readings=[100]), train=None)
    assert found.training == 0
    assert found.evaluation == 2 * 100 * TEST * forward(2)
    assert found.forward == forward(2)


def test_readings_of_one_trajectory_cost_its_last_and_ten_steps_are_a_run_of_their_own() -> None:
    (attack,) = cost(AttackSettings(readings=[10, 20, 100])).attacks
    assert (attack.runs, attack.passes) == (2, 2 * 10 + 2 * 100)
    assert attack.multiply_adds == 220 * TEST * forward(2)
    # a shard is 6400 steps: 64 images for 100 steps, 640 for 10
    assert attack.shards == 8 + 1


@pytest.mark.parametrize(
    ("attack", "passes"),
    [
        (AttackSettings(readings=[50], restarts=5), 5 * 2 * 50),
        (AttackSettings(readings=[50], goal=Goal.likeliest, targets=3), 3 * 2 * 50),
        (AttackSettings(readings=[50], gradient=Gradient.spsa, spsa_pairs=8), 50 * (2 * 8 + 1)),
        (
            AttackSettings(readings=[50], goal=Goal.untargeted, rule=Rule.square, loss=Loss.margin),
            50,
        ),
        (AttackSettings(readings=[1], start=Start.clean), 2),
    ],
    ids=["starts", "targets", "spsa", "square", "fgsm"],
)
def test_a_step_costs_what_its_gradient_costs(attack: AttackSettings, passes: int) -> None:
    (found,) = cost(attack).attacks
    assert found.passes == passes
    assert found.multiply_adds == passes * TEST * forward(2)


@pytest.mark.parametrize(("through", "counted"), [(8, 8), (1, 2), (None, 2)])
def test_an_attack_through_more_glances_costs_them_and_the_judge_never_less_than_its_own(
    through: int | None, counted: int
) -> None:
    (found,) = cost(AttackSettings(readings=[20], unroll=through)).attacks
    assert found.multiply_adds == 2 * 20 * TEST * forward(counted)


def test_all_attacks_together_are_the_evaluation() -> None:
    pgd, square = AttackSettings(readings=[20]), AttackSettings(readings=[30], epsilon_255=4)
    found = trial_cost(
        tiny.model(),
        None,
        EvaluateSettings(attacks={"a": pgd, "b": square}),
        size=SIZE,
        classes=CLASSES,
        train_images=TRAIN,
        test_images=TEST,
    )
    assert found.evaluation == 2 * (20 + 30) * TEST * forward(2)
    assert [a.name for a in found.attacks] == [pgd.name, square.name]


def test_numbers_are_said_with_three_digits_and_a_prefix() -> None:
    said = {
        46_160_000_000: "46.2 G",
        1_500: "1.5 k",
        999: "0.999 k",
        2_000_000: "2 M",
        123_456 * 10**10: "1.23 P",
        7 * 10**18: "7 E",
        3 * 10**12: "3 T",
    }
    assert {count: in_words(count) for count in said} == said
    counts = {999: "999", 1000: "1 k", 151_274: "151 k", 999_499: "999 k", 999_500: "1.0 M"}
    assert {count: short_count(count) for count in counts} == counts
