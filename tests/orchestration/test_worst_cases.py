"""The worst of several starts and of several attacks, counted by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pytest
from hand_made import Evaluation, Rows
from test_report import by_hand, rows_of

from s3ta.settings import AttackSettings, Goal
from s3ta.trajectory import Trajectory
from s3ta_platform.outcomes import courses, read_outcomes, read_worst, together
from s3ta_platform.storage import Storage, open_storage
from s3ta_platform.summaries import Share, Summary, summarise

RIGHT, HIT, OTHER = 0, 1, 2
"""Predictions for label 0 and target 1."""


def rows(attack: str, predictions: Sequence[int], *, target: int = 1, restart: int = 0) -> pa.Table:
    """Images that were all right before the attack, after 50 steps."""
    table = rows_of(attack, 50, [(0, target, 0, prediction) for prediction in predictions])
    place = table.schema.get_field_index("restart")
    restarts = pa.array(np.full(len(predictions), restart, np.int32))
    return table.set_column(place, "restart", restarts)


def summary(*tables: pa.Table) -> Summary:
    return summarise(replace(by_hand(), rows=pa.concat_tables(tables)))


PGD, DLR = "pgd_targeted_eps16", "pgd_targeted_dlr_eps16"


def test_an_image_withstands_several_starts_only_if_it_withstands_each() -> None:
    first = rows(PGD, [RIGHT, RIGHT, HIT, OTHER, RIGHT])
    second = rows(PGD, [RIGHT, HIT, RIGHT, HIT, OTHER], restart=1)
    (reading,) = summary(first, second).readings
    assert reading.top1 == Share(1, 5)
    assert reading.success == Share(3, 5), "hit from one start is a success"


def test_the_worst_case_is_per_image_and_not_the_lowest_of_the_attacks() -> None:
    (worst,) = summary(
        rows(PGD, [RIGHT, RIGHT, HIT, OTHER]), rows(DLR, [RIGHT, HIT, RIGHT, HIT])
    ).worst_cases
    assert worst.attack == "worst_case_eps16"
    assert worst.attacks == (DLR, PGD)
    assert worst.top1 == Share(1, 4), "each attack alone leaves two"
    assert worst.success == Share(3, 4)


def test_each_epsilon_has_a_worst_case_of_its_own_where_it_has_two_attacks() -> None:
    found = summary(
        rows("pgd_untargeted_eps4", [RIGHT, OTHER, OTHER], target=-1),
        rows("pgd_untargeted_margin_adam_eps4", [OTHER, RIGHT, OTHER], target=-1),
        rows("pgd_untargeted_eps16", [OTHER, OTHER, OTHER], target=-1),
        rows("apgd_untargeted_eps16", [RIGHT, RIGHT, OTHER], target=-1),
        rows("square_untargeted_eps8", [RIGHT, RIGHT, RIGHT], target=-1),
    ).worst_cases
    assert {w.epsilon_255: w.top1 for w in found} == {"4": Share(0, 3), "16": Share(0, 3)}
    assert all(not w.success.total for w in found), "no two of them have a target"


def test_success_is_counted_only_over_attacks_with_the_same_targets() -> None:
    (worst,) = summary(
        rows(PGD, [RIGHT, HIT, RIGHT]),
        rows("pgd_least_likely_target_eps16", [HIT, RIGHT, RIGHT]),
        rows("apgd_untargeted_eps16", [RIGHT, RIGHT, OTHER], target=-1),
    ).worst_cases
    assert worst.top1 == Share(0, 3)
    assert not worst.success.total, "one attack alone has the target that is drawn at random"


def test_only_the_last_reading_of_each_attack_counts() -> None:
    early = rows_of(DLR, 10, [(0, 1, 0, HIT)] * 2)
    (worst,) = summary(rows(PGD, [RIGHT, RIGHT]), early, rows(DLR, [RIGHT, HIT])).worst_cases
    assert worst.top1 == Share(1, 2)


@dataclass(kw_only=True)
class TwoStarts(Evaluation):
    """An evaluation whose second start has falls and hits of its own."""

    second_falls: Mapping[int, int] = field(default_factory=dict)
    second_hits: Mapping[int, int] = field(default_factory=dict)

    def rows(self, trajectory: Trajectory, image_ids: Sequence[int]) -> Rows:
        if trajectory.restart == 0:
            return super().rows(trajectory, image_ids)
        falls, hits = self.second_falls, self.second_hits
        other = replace(self, falls=falls, hits=hits, second_falls=self.falls)
        return Evaluation.rows(other, trajectory, image_ids)


@pytest.fixture
def folder(tmp_path: object) -> Storage:
    return open_storage(f"{tmp_path}/r", durable=False)


def test_stored_starts_are_merged_image_by_image(folder: Storage) -> None:
    attack = AttackSettings(epsilon_255=16, readings=[20, 50], restarts=2)
    made = TwoStarts(
        images=12,
        shard_images=5,
        attacks=[attack],
        falls={0: 5, 1: 30},
        hits={0: 30},
        second_falls={1: 10, 2: 50},
        second_hits={2: 50},
        clean_wrong=[7],
        quarantined=[9],
    )
    record = made.store(folder)
    (group,) = together(courses(record))
    assert [course.trajectory["restart"] for course in group] == [0, 1]
    worst = read_worst(folder, record, group, 12)
    ids = record.image_ids
    wrong = [{ids[n] for n in np.flatnonzero(~worst.correct_NR[:, r])} for r in (0, 1)]
    assert wrong == [{0, 1, 9}, {0, 1, 2, 9}]
    fooled = [{ids[n] for n in np.flatnonzero(worst.fooled_NR[:, r])} for r in (0, 1)]
    assert fooled == [{9}, {0, 2, 9}]
    error = [{ids[n] for n in np.flatnonzero(worst.any_error_NR[:, r])} for r in (0, 1)]
    assert error == wrong
    assert {ids[n] for n in np.flatnonzero(~worst.clean_right_N)} == {7, 9}
    assert {ids[n] for n in np.flatnonzero(worst.quarantined_N)} == {9}
    alone = read_outcomes(folder, record, group[0], 12)
    assert {ids[n] for n in np.flatnonzero(~alone.correct_NR[:, 1])} == {0, 1, 9}


def test_labels_and_targets_come_from_the_start_that_has_them(folder: Storage) -> None:
    attack = AttackSettings(epsilon_255=16, readings=[20], restarts=2, goal=Goal.random_target)
    record = TwoStarts(images=6, attacks=[attack], falls={0: 5}, second_falls={0: 5}).store(folder)
    (group,) = together(courses(record))
    first, second = (read_outcomes(folder, record, course, 6) for course in group)
    assert (first.targets_N == second.targets_N).all()
    worst = read_worst(folder, record, group, 6)
    assert (worst.targets_N == first.targets_N).all()
    assert (worst.labels_N == np.array(record.image_ids) % 10).all()
