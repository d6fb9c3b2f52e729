"""`s3ta compare`: its numbers are counted by hand, and unlike evaluations are refused."""

import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hand_made import PGD, TRIAL_A, TRIAL_B, Evaluation, rewrite
from rich.console import Console

from s3ta.errors import UserError
from s3ta.settings import AttackSettings, Goal, Mode
from s3ta.statistics import Z_95
from s3ta_platform import cli
from s3ta_platform.compare import Comparison, compare_models
from s3ta_platform.compare_table import CAVEAT, comparison_table, csv_text
from s3ta_platform.references import find_model
from s3ta_platform.storage import Storage, open_storage

pytest_plugins = ["stores"]

READ_AT_20 = AttackSettings(epsilon_255=16, readings=[20])
UNTARGETED = AttackSettings(goal=Goal.untargeted, epsilon_255=16, readings=[20])
FALLEN_A, FALLEN_B = range(0, 12), range(10, 40)
"""Both fall on 10 and 11; on 0..9 only A, on 12..39 only B."""


def made(trial: str, fallen: Sequence[int], **changes: Any) -> Evaluation:
    """An evaluation on 60 images, whose `fallen` are wrong from step 5, and hit from 15 if even."""
    settings: dict[str, Any] = {
        "falls": dict.fromkeys(fallen, 5),
        "hits": {i: 15 for i in fallen if i % 2 == 0},
        "model": "S3TA-4" if trial == TRIAL_A else "ResNet-18",
        "attacks": [READ_AT_20],
    }
    return Evaluation(trial=trial, **{**settings, **changes})


def pair(**changes: Any) -> tuple[Evaluation, Evaluation]:
    return made(TRIAL_A, FALLEN_A, **changes), made(TRIAL_B, FALLEN_B, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "results"), durable=False)


def compared(folder: Storage, *evaluations: Evaluation) -> Comparison:
    for evaluation in evaluations:
        evaluation.store(folder)
    return compare_models(find_model(TRIAL_A, folder.root), find_model(TRIAL_B, folder.root))


def shown(comparison: Comparison, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(comparison_table(comparison))
    return console.export_text()


def refused(folder: Storage, *evaluations: Evaluation) -> str:
    with pytest.raises(UserError) as caught:
        compared(folder, *evaluations)
    return str(caught.value)


def test_every_number_is_the_one_counted_by_hand(folder: Storage) -> None:
    clean, top1, success = compared(folder, *pair()).endpoints
    assert (clean.attack, clean.of_a, clean.of_b, clean.only_a, clean.only_b) == ("", 57, 57, 0, 0)
    assert (top1.measure, top1.steps, top1.images) == ("top1", 20, 60)
    assert (top1.of_a, top1.of_b) == (48, 30)
    assert (top1.only_a, top1.only_b) == (28, 10), "A is right where only B fell: 12..39"
    d = 18 / 60
    half = Z_95 * (38 - 18**2 / 60) ** 0.5 / 60
    assert top1.difference == pytest.approx((d, d - half, d + half))
    # P(X <= 10) of 38 coins, doubled
    tail = [1, 38, 703, 8436, 73815, 501942, 2760681, 12620256, 48903492, 163011640, 472733756]
    assert top1.p == pytest.approx(2 * sum(tail) / 2**38)
    assert (success.measure, success.of_a, success.of_b) == ("success", 6, 15)
    assert (success.only_a, success.only_b) == (5, 14)
    assert success.difference[0] == pytest.approx(-9 / 60)


def test_the_sides_are_not_mixed_up(folder: Storage) -> None:
    there = compared(folder, *pair()).endpoints
    back = compare_models(find_model(TRIAL_B, folder.root), find_model(TRIAL_A, folder.root))
    for one, other in zip(there, back.endpoints, strict=True):
        assert (one.only_a, one.only_b, one.p) == (other.only_b, other.only_a, other.p)
        assert one.difference[0] == -other.difference[0]


def test_p_values_are_adjusted_for_all_lines(folder: Storage) -> None:
    found = compared(folder, *pair())
    clean, top1, success = (e.p for e in found.endpoints)
    assert found.adjusted == pytest.approx([1.0, 3 * top1, 2 * success])
    assert clean == 1.0


def test_every_reading_of_every_attack_is_compared(folder: Storage) -> None:
    found = compared(folder, *pair(attacks=[PGD, UNTARGETED]))
    assert [(e.attack, e.steps, e.measure) for e in found.endpoints] == [
        ("", 0, "top1"),
        *((PGD.name, steps, m) for steps in (10, 20, 50) for m in ("top1", "success")),
        (UNTARGETED.name, 20, "top1"),
    ]


def test_an_attack_with_targets_of_each_models_own_is_left_out_and_said(folder: Storage) -> None:
    least = AttackSettings(goal=Goal.least_likely_target, epsilon_255=16, readings=[20])
    found = compared(folder, *pair(attacks=[READ_AT_20, least]))
    assert {e.attack for e in found.endpoints} == {"", READ_AT_20.name}
    assert found.notes == [f"{least.name} is left out: its targets are each model's own."]


def test_nothing_is_compared_where_only_such_an_attack_is_shared(folder: Storage) -> None:
    least = AttackSettings(goal=Goal.least_likely_target, epsilon_255=16, readings=[20])
    assert "Attack both in the same way" in refused(folder, *pair(attacks=[least]))


@pytest.mark.parametrize(
    ("goal", "measure", "only_a", "only_b"),
    [(Goal.untargeted, "any_error", 10, 28), (Goal.random_target, "any_target", 5, 14)],
)
def test_an_attack_until_success_is_compared_at_any_step(
    goal: Goal, measure: str, only_a: int, only_b: int, folder: Storage
) -> None:
    attack = replace(READ_AT_20, goal=goal, mode=Mode.until_success)
    found = compared(folder, *pair(attacks=[attack]))
    (endpoint,) = found.endpoints[1:]
    assert (endpoint.measure, endpoint.only_a, endpoint.only_b) == (measure, only_a, only_b)
    assert "at any step" in shown(found)


def test_the_table_fits_and_says_what_it_is(folder: Storage) -> None:
    found = compared(folder, *pair())
    for width in (80, 100):
        text = shown(found, width)
        assert all(len(line) <= width for line in text.splitlines())
        for words in ("S3TA-4", "ResNet-18", "+30.0", "80.0", "50.0", "28", "60 images", CAVEAT):
            assert words in text, words
        assert "…" not in text


def test_the_csv_holds_every_number(folder: Storage) -> None:
    found = compared(folder, *pair())
    lines = list(csv.DictReader(io.StringIO(csv_text(found))))
    assert len(lines) == 3
    top1 = lines[1]
    assert (top1["a"], top1["b"], top1["images"]) == (TRIAL_A, TRIAL_B, "60")
    assert (top1["share_a"], top1["share_b"]) == ("0.800000", "0.500000")
    assert (top1["only_a"], top1["only_b"], top1["difference"]) == ("28", "10", "0.300000")
    assert float(top1["p_holm"]) == pytest.approx(3 * float(top1["p_mcnemar"]), rel=1e-5)


def test_a_quarantined_image_counts_against_its_side(folder: Storage) -> None:
    a, b = made(TRIAL_A, FALLEN_A, quarantined=[50, 51]), made(TRIAL_B, FALLEN_B)
    found = compared(folder, a, b)
    clean, top1, success = found.endpoints
    assert (clean.only_a, clean.only_b) == (0, 2)
    assert (top1.only_a, top1.only_b) == (28, 12)
    assert (success.only_a, success.only_b) == (7, 14)
    assert "2 images are quarantined in A" in found.notes[0]


def test_the_evaluation_with_the_most_common_images_is_taken(folder: Storage) -> None:
    small = pair()
    large = pair(images=80)
    found = compared(folder, *small, *large, made(TRIAL_A, FALLEN_A, images=100))
    assert found.endpoints[0].images == 80
    assert "2 pairs of evaluations could be compared" in found.notes[0]


def test_what_only_one_side_has_is_said(folder: Storage) -> None:
    a, b = made(TRIAL_A, FALLEN_A, attacks=[READ_AT_20, UNTARGETED]), made(TRIAL_B, FALLEN_B)
    found = compared(folder, a, b)
    assert {e.attack for e in found.endpoints} == {"", READ_AT_20.name}
    assert found.notes == [f"Only A has {UNTARGETED.name} read at 20 steps."]


def test_evaluations_that_stopped_early_are_compared_as_far_as_both_are(folder: Storage) -> None:
    """Nobody falls, so 1000 images are enough of A; half of B's do, which takes more."""
    a = made(TRIAL_A, [], images=3000, halfwidth=0.05, falls={0: 5}, shard_images=500)
    half = dict.fromkeys(range(0, 3000, 2), 5)
    b = made(TRIAL_B, [], images=3000, halfwidth=0.025, falls=half, hits={}, shard_images=500)
    a.store(folder, finished=1500)
    b.store(folder, finished=2000)
    found = compare_models(find_model(TRIAL_A, folder.root), find_model(TRIAL_B, folder.root))
    assert {e.images for e in found.endpoints} == {1000}
    assert found.endpoints[1].of_a == 1000 - (0 in a.image_ids[:1000])
    assert found.endpoints[1].of_b == sum(i % 2 for i in b.image_ids[:1000])


UNLIKE = [
    ({"images_digest": "others"}, "test images differ"),
    ({"seed": 2}, "evaluate.seed is 1 and 2"),
    ({"images": 50}, "different images (60 and 50 of them)"),
    ({"attacks": [UNTARGETED]}, f"A was attacked by {READ_AT_20.name}, B by {UNTARGETED.name}"),
    ({"attacks": [replace(READ_AT_20, readings=[20, 40])]}, "steps is 20 and 40"),
]


@pytest.mark.parametrize(("changes", "words"), UNLIKE, ids=[words for _, words in UNLIKE])
def test_unlike_evaluations_are_refused_by_name(
    changes: dict[str, Any], words: str, folder: Storage
) -> None:
    assert words in refused(folder, made(TRIAL_A, FALLEN_A), made(TRIAL_B, FALLEN_B, **changes))


def test_of_attacks_with_one_name_the_setting_that_differs_is_named(folder: Storage) -> None:
    """Names show six digits of epsilon."""
    close = replace(READ_AT_20, epsilon_255=16.000001)
    assert close.name == READ_AT_20.name
    words = refused(folder, made(TRIAL_A, FALLEN_A), made(TRIAL_B, FALLEN_B, attacks=[close]))
    assert f"of the attack {close.name}, epsilon is {16 / 255} and {16.000001 / 255}" in words


def test_the_same_model_is_refused(folder: Storage) -> None:
    a, b = pair()
    assert "nothing to compare" in refused(folder, a, replace(b, digest=a.digest))


def test_an_incomplete_side_is_named_with_what_completes_it(folder: Storage) -> None:
    a, b = pair()
    b.store(folder, finished=40)
    words = refused(folder, a)
    assert f"B (ResNet-18, trial {TRIAL_B}) has 40 of 60 images finished" in words
    assert "s3ta run FILE" in words
    assert "A (" not in words


@pytest.mark.parametrize("column", ["label", "target"])
def test_another_label_or_target_is_refused(column: str, folder: Storage) -> None:
    a, b = pair()
    a.store(folder)
    name = f"evaluations/{b.store(folder).shards[0]['key']}.parquet"
    rewrite(folder, name, **{column: lambda rows: (rows[column] + 1) % 10})
    assert f"the {column}" in refused(folder)
    assert "s3ta verify" in refused(folder)


def test_a_shard_that_lacks_rows_is_refused(folder: Storage) -> None:
    a, b = pair()
    a.store(folder)
    record = b.store(folder)
    shard = replace(b, quarantined=[record.image_ids[0]])
    name = f"evaluations/{record.shards[0]['key']}.parquet"
    folder.delete(name)
    shard.store(folder)
    rewrite(folder, name, head={"quarantined": {}})
    assert f"Image {record.image_ids[0]} lacks rows" in refused(folder)


def test_a_model_is_found_by_anything_that_names_it(
    folder: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair()
    a.store(folder)
    b.store(folder)
    run = json.dumps({"version": 1, "run_id": "f" * 32, "address": "sqlite:///x"}).encode()
    folder.put_new(f"trials/{TRIAL_B}/tracking/0123.json", run)
    alone = open_storage(str(tmp_path / "alone"))
    b.store(alone)
    monkeypatch.chdir(tmp_path)
    words = [TRIAL_B, "bbb", "ResNet-18", b.digest[:8], "f" * 32, "alone", "./alone"]
    paths = [f"results/trials/{TRIAL_B}", f"results/trials/{TRIAL_B}/checkpoints/0000000007"]
    for word in [*words, *paths, str(tmp_path / paths[0])]:
        found = find_model(word, "results")
        assert (found.trial, found.digest) == (TRIAL_B, b.digest), word
    assert find_model("alone", "results").storage.root == alone.root


def test_a_model_on_s3_is_found_by_its_path(bucket: str, tmp_path: Path) -> None:
    root = f"s3://{bucket}/{tmp_path.name}"
    made(TRIAL_B, FALLEN_B).store(open_storage(root))
    for word in (root, f"{root}/trials/{TRIAL_B}", f"{root}/trials/{TRIAL_B}/checkpoints"):
        assert find_model(word, str(tmp_path / "none")).trial == TRIAL_B


def test_a_word_that_names_no_model_or_several_lists_what_there_is(folder: Storage) -> None:
    a, b = pair(model="S3TA-4")
    a.store(folder)
    b.store(folder)
    with pytest.raises(UserError, match="means 2 evaluated models") as several:
        find_model("S3TA-4", folder.root)
    with pytest.raises(UserError, match="names no evaluated model") as none:
        find_model("S3TA-8", folder.root)
    with pytest.raises(UserError, match="names no evaluated model"):
        find_model(f"{folder.root}/trials/{'c' * 16}", folder.root)
    for error in (several, none):
        for trial, digest in ((TRIAL_A, a.digest), (TRIAL_B, b.digest)):
            assert f"S3TA-4: trial {trial}, model {digest[:12]}" in str(error.value)
    with pytest.raises(UserError, match="run an experiment first"):
        find_model("S3TA-4", f"{folder.root}/nowhere")


def test_the_command_prints_the_table_and_writes_the_file(
    folder: Storage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for evaluation in pair():
        evaluation.store(folder)
    file = tmp_path / "new" / "numbers.csv"

    def command(*words: str) -> object:
        monkeypatch.setattr(sys, "argv", ["s3ta", "compare", *words, "--results", folder.root])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code

    assert command("S3TA-4", "ResNet-18", "--csv", str(file)) == 0
    assert CAVEAT in capsys.readouterr().out
    assert file.read_text().count("\n") == 4
    assert command("S3TA-4", "S3TA-4") == 2
    assert "nothing to compare" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert command("S3TA-4", "ResNet-18", "--csv", str(tmp_path / "file" / "x.csv")) == 2
    assert "cannot write" in capsys.readouterr().err
