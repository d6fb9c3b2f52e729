"""An attack's settings -> its name -> the title that a reader sees, and what the name tells."""

from typing import Any

import pytest

from s3ta.settings import AttackSettings, Goal, Gradient, Loss, Mode, Rule, Start, Through
from s3ta_platform.attack_names import any_step, attack_title, has_own_step_size

UNTARGETED: dict[str, Any] = {"goal": Goal.untargeted}

TITLES: dict[str, dict[str, Any]] = {
    "targeted PGD, ε = 16/255": {},
    "untargeted PGD, ε = 16/255": UNTARGETED,
    "least likely target PGD, ε = 16/255": {"goal": Goal.least_likely_target},
    "untargeted PGD (margin, Adam), ε = 16/255": {
        **UNTARGETED,
        "loss": Loss.margin,
        "rule": Rule.adam,
    },
    "targeted PGD (DLR), ε = 16/255": {"loss": Loss.dlr},
    "untargeted PGD (step 0.125, 5 starts), ε = 16/255": {
        **UNTARGETED,
        "step_of_epsilon": 0.125,
        "restarts": 5,
    },
    "untargeted PGD (momentum 0.75), ε = 16/255": {**UNTARGETED, "momentum": 0.75},
    "targeted PGD (until success), ε = 16/255": {"mode": Mode.until_success},
    "untargeted PGD (until success, margin), ε = 16/255": {
        **UNTARGETED,
        "loss": Loss.margin,
        "mode": Mode.until_success,
    },
    "untargeted FGSM, ε = 16/255": {**UNTARGETED, "readings": [1], "start": Start.clean},
    "targeted SPSA, ε = 16/255": {"gradient": Gradient.spsa},
    "targeted SPSA (128 pairs), ε = 16/255": {"gradient": Gradient.spsa, "spsa_pairs": 128},
    "targeted PGD (unroll 8), ε = 16/255": {"unroll": 8},
    "targeted PGD (attention), ε = 16/255": {"through": Through.attention},
    "APGD-CE, ε = 16/255": {**UNTARGETED, "rule": Rule.apgd},
    "APGD-T, ε = 16/255": {"goal": Goal.likeliest, "rule": Rule.apgd, "loss": Loss.dlr},
    "FAB-T (3 targets), ε = 16/255": {
        "goal": Goal.likeliest,
        "rule": Rule.fab,
        "loss": Loss.difference,
        "start": Start.clean,
        "targets": 3,
    },
    "Square, ε = 16/255": {**UNTARGETED, "rule": Rule.square, "loss": Loss.margin},
}


@pytest.mark.parametrize("title", TITLES)
def test_a_title_says_what_the_settings_say(title: str) -> None:
    attack = AttackSettings(epsilon_255=16, **{"readings": [100], **TITLES[title]})
    assert attack_title(attack.name) == title


def test_no_two_of_these_attacks_share_a_title_and_an_epsilon_is_said_as_it_is() -> None:
    assert attack_title("pgd_targeted_eps25.5").endswith("ε = 25.5/255")
    assert attack_title("worst_case_eps4") == "worst case of these attacks, ε = 4/255"


def test_only_what_stops_at_its_goal_is_any_step() -> None:
    any_steps = {
        title
        for title, changes in TITLES.items()
        if any_step(AttackSettings(**{"readings": [100], **changes}).name)
    }
    assert any_steps == {
        "targeted PGD (until success), ε = 16/255",
        "untargeted PGD (until success, margin), ε = 16/255",
        "APGD-CE, ε = 16/255",
        "APGD-T, ε = 16/255",
        "FAB-T (3 targets), ε = 16/255",
        "Square, ε = 16/255",
    }


@pytest.mark.parametrize(
    ("changes", "own"),
    [
        ({}, True),
        ({"readings": [16]}, False),
        ({"step_of_epsilon": 0.125}, False),
        ({"rule": Rule.adam}, False),
        ({"gradient": Gradient.spsa}, False),
        ({"momentum": 1.0}, True),
    ],
)
def test_a_reading_is_a_run_of_its_own_where_the_step_size_follows_from_it(
    changes: dict[str, Any], own: bool
) -> None:
    attack = AttackSettings(**{"readings": [10], **changes})
    assert has_own_step_size(attack.name, attack.readings[0]) is own
