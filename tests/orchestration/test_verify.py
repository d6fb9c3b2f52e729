"""`s3ta verify`: sound results pass, and whatever is changed in them is named."""

import csv
import io
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hand_made import CLASSES, PGD, TRIAL_A, TRIAL_B, Evaluation, put_shard, put_table, rewrite

from s3ta.draws import Key, Purpose
from s3ta.errors import UserError
from s3ta.settings import AttackSettings, Goal, Mode
from s3ta.trajectory import trajectories
from s3ta_platform import cli
from s3ta_platform.evaluation_record import EvaluationRecord, write_record
from s3ta_platform.rows import about, read_rows
from s3ta_platform.storage import Storage, open_storage
from s3ta_platform.verify import SHOWN, all_checks, verify
from s3ta_platform.verify_files import check_rows
from s3ta_platform.verify_shards import open_root

pytest_plugins = ["stores"]

UNTARGETED = AttackSettings(goal=Goal.untargeted, epsilon_255=16, readings=[20])
UNTIL = [
    AttackSettings(goal=goal, epsilon_255=16, readings=[20, 50], mode=Mode.until_success)
    for goal in (Goal.untargeted, Goal.random_target)
]
A = Evaluation(attacks=[PGD, UNTARGETED, *UNTIL])
B = Evaluation(trial=TRIAL_B, model="ResNet-18")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    storage = open_storage(str(root), durable=False)
    put_table(root, storage, [A.store(storage), B.store(storage)])
    return root


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(sound, tmp_path / "results"))


@pytest.fixture
def storage(root: Path) -> Storage:
    return open_storage(str(root), durable=False)


def findings(root: Path | str) -> dict[str, list[str]]:
    """The doubts of each check that has some."""
    checks = all_checks(str(root), lambda files: None, lambda: None)
    return {check.name: check.doubts for check in checks if check.doubts}


def notes(root: Path) -> list[str]:
    checks = all_checks(str(root), lambda files: None, lambda: None)
    return [note for check in checks for note in check.notes]


def shard_of(attack: AttackSettings, place: int = -1) -> str:
    """The file of one of A's shards."""
    shards = [s for s in A.record().shards if s["attack"] == attack.name]
    return f"evaluations/{shards[place]['key']}.parquet"


def test_sound_results_pass(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(str(root)) == 0
    out = capsys.readouterr().out
    assert "doubt" not in out
    assert "Everything that can be checked from the stored files agrees." in out
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:8]] == ["ok"] * 8
    assert "660 without a contradiction, in 21 file(s)" in out
    assert "37 number(s) counted again, in 1 file(s)" in out
    assert "\x1b" not in out
    assert findings(root) == {}
    assert notes(root) == []


def test_every_file_is_looked_at_once(root: Path) -> None:
    expected: list[int] = []
    ticks: list[int] = []
    all_checks(str(root), expected.append, lambda: ticks.append(1))
    assert expected == [21 + 2 + 1]
    assert len(ticks) == 21 + 2 + 1


def test_the_command_exits_with_1_and_says_where_and_what_to_do(
    root: Path,
    storage: Storage,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = shard_of(PGD)
    storage.delete(name)
    monkeypatch.setattr(sys, "argv", ["s3ta", "verify", str(root)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    out = capsys.readouterr().out
    assert name in out
    assert "s3ta run FILE" in out
    assert "doubt  shards" in out
    assert "ok     checkpoints" in out, "it goes on after a problem"


def test_a_place_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to verify"):
        verify(str(tmp_path / "nowhere"))


Columns = dict[str, Any]


def at(rows: Columns, column: str, value: object, step: int = 20, image: int | None = None) -> Any:
    """The column with another value in one row; by default of the first image at that step."""
    changed = np.array(rows[column])
    chosen = rows["step"] == step
    if image is not None:
        chosen &= rows["image_id"] == image
    changed[np.flatnonzero(chosen)[0]] = value
    return changed


def unlike(rows: Columns, column: str) -> Any:
    """The column with one class, that of a robust image at its first reading, moved on by one."""
    right = np.flatnonzero(rows["correct"])[0]
    changed = np.array(rows[column])
    changed[right] = (changed[right] + 1) % CLASSES
    return changed


def everywhere(rows: Columns, column: str) -> Any:
    """The same of one image at all its readings."""
    image = rows["image_id"] == rows["image_id"][0]
    return np.where(image, (rows[column] + 1) % CLASSES, rows[column])


def relabelled(rows: Columns) -> tuple[int, dict[str, Callable[[Columns], Any]]]:
    """A robust image, and the changes that give it another label everywhere in this file."""
    ids, wrong = rows["image_id"], rows["image_id"][~rows["correct"]]
    image = int(ids[~np.isin(ids, wrong)][0])
    label = (image + 1) % CLASSES
    target = Key(1, Purpose.EVAL_TARGET).wrong_classes([image], [label], CLASSES)[0]
    new = {"label": label, "prediction": label, "target": target}

    def change(column: str) -> Callable[[Columns], Any]:
        return lambda r: np.where(r["image_id"] == image, new[column], r[column])

    return image, {column: change(column) for column in new}


FORGERIES: dict[str, tuple[dict[str, Callable[[Columns], Any]], str]] = {
    "label": ({"label": lambda r: everywhere(r, "label")}, "correct is not prediction == label"),
    "label of one reading": ({"label": lambda r: unlike(r, "label")}, "label"),
    "class": ({"prediction": lambda r: at(r, "prediction", 10)}, "none of the 10 classes"),
    "prediction": ({"prediction": lambda r: unlike(r, "prediction")}, "correct is not prediction"),
    "attack's": ({"attack_prediction": lambda r: r["label"] - 1}, "attack_prediction is none"),
    "clean": ({"clean_prediction": lambda r: unlike(r, "clean_prediction")}, "clean_prediction"),
    "target": ({"target": lambda r: everywhere(r, "target")}, "target is not the class drawn"),
    "correct": ({"correct": lambda r: ~r["correct"]}, "correct is not prediction == label"),
    "fooled": ({"fooled": lambda r: ~r["fooled"]}, "fooled is not prediction == target"),
    "linf": ({"linf_255": lambda r: r["linf_255"] + 1e-4}, "linf_255 is beyond epsilon in 40"),
    "linf of one": ({"linf_255": lambda r: at(r, "linf_255", 16.1)}, "beyond epsilon in 1 row"),
    "no linf": ({"linf_255": lambda r: at(r, "linf_255", np.nan)}, "linf_255 is beyond epsilon"),
    "dark": ({"pixel_min": lambda r: at(r, "pixel_min", -1e-6)}, "pixel_min is below 0"),
    "bright": ({"pixel_max": lambda r: at(r, "pixel_max", 1 + 1e-6)}, "pixel_max is above 1"),
    "restart": ({"restart": lambda r: r["restart"] + 1}, "restart is not its trajectory's"),
    "late": ({"first_error_step": lambda r: r["step"] + 1}, "not between -1 and the step"),
    "never": ({"first_error_step": lambda r: 0 * r["step"] - 1}, "first_error_step says never"),
    "not hit": ({"first_target_step": lambda r: 0 * r["step"] - 1}, "first_target_step says never"),
    "now": (
        {"first_error_step": lambda r: np.where(r["correct"], r["step"], r["first_error_step"])},
        "it is right, but first_error_step says wrong",
    ),
    "hit now": (
        {"first_target_step": lambda r: np.where(r["fooled"], r["first_target_step"], r["step"])},
        "it is not fooled, but first_target_step says so",
    ),
    "forgotten": (
        {
            "first_error_step": lambda r: np.where(
                (r["step"] == 50) & (r["first_error_step"] >= 0), 50, r["first_error_step"]
            )
        },
        "first_error_step contradicts an earlier reading",
    ),
    "known too late": (
        {
            "first_target_step": lambda r: np.where(
                (r["step"] == 50) & ~r["fooled"], 11, r["first_target_step"]
            )
        },
        "first_target_step contradicts an earlier reading",
    ),
    "step": ({"step": lambda r: np.where(r["step"] == 20, 21, r["step"])}, "at step 20 is missing"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_column_is_told(name: str, root: Path, storage: Storage) -> None:
    """Its digest is that of the forgery, so only what the rows say can give it away."""
    changes, words = FORGERIES[name]
    file = shard_of(PGD)
    rewrite(storage, file, **changes)
    told = check_rows(open_root(storage)[0], lambda: None).doubts
    assert any(file in doubt and words in doubt for doubt in told), told


def test_an_image_counted_twice_is_told(root: Path, storage: Storage) -> None:
    file = shard_of(PGD)
    rows = read_rows(storage, file)["image_id"].to_numpy()
    first, second = rows[0], rows[1]
    rewrite(storage, file, image_id=lambda r: np.where(rows == second, first, rows))
    (doubts,) = [findings(root)["rows"]]
    assert f"image {first} is counted 2 times at step 20" in doubts[0]
    assert f"image {second} at step 20 is missing" in doubts[1]


def test_a_stranger_among_the_images_is_told(root: Path, storage: Storage) -> None:
    rows = read_rows(storage, shard_of(PGD))["image_id"].to_numpy()
    rewrite(storage, shard_of(PGD), image_id=lambda r: np.where(rows == rows[0], 999, rows))
    assert any("image 999" in d and "does not belong" in d for d in findings(root)["rows"])


def test_a_label_that_only_other_files_contradict_is_told(root: Path, storage: Storage) -> None:
    file = shard_of(PGD)
    table = read_rows(storage, file)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    image, changes = relabelled(columns)
    rewrite(storage, file, **changes)
    doubts = findings(root)["rows"]
    # What a file can say of itself is consistent. Where the changed one comes first, by the names
    # of the files, all others contradict it.
    said = f"label of 1 image(s) is another one than elsewhere, the first: image {image} "
    assert doubts
    assert all(said in doubt for doubt in doubts)


def test_a_clean_prediction_that_differs_between_attacks_is_told(
    root: Path, storage: Storage
) -> None:
    rewrite(storage, shard_of(PGD), clean_prediction=lambda r: everywhere(r, "clean_prediction"))
    found = findings(root)
    assert any("clean_prediction of 1 image(s)" in doubt for doubt in found["rows"])


@pytest.mark.parametrize("attack", UNTIL, ids=lambda a: a.goal.name)
def test_an_image_that_does_not_stay_at_its_goal_is_told(
    attack: AttackSettings, root: Path, storage: Storage
) -> None:
    def released(rows: Columns) -> Any:
        at_goal = rows["fooled"] if attack.goal is Goal.random_target else ~rows["correct"]
        return np.where((rows["step"] == 50) & at_goal, rows["label"], rows["prediction"])

    rewrite(
        storage,
        shard_of(attack),
        prediction=released,
        correct=lambda r: released({**r, "correct": r["prediction"] == r["label"]}) == r["label"],
        fooled=lambda r: r["fooled"] & (r["step"] != 50),
    )
    assert any("in until_success" in doubt for doubt in findings(root)["rows"])


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_is_told_wherever_it_changes_a_row(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path), durable=False)
    record = Evaluation(images=10, attacks=[UNTARGETED]).store(storage)
    name = f"evaluations/{record.shards[0]['key']}.parquet"
    root, path = open_root(storage)[0], tmp_path / name
    before, content = read_rows(storage, name), path.read_bytes()
    told = 0
    for place in range(0, len(content), 97):
        flip(path, place)
        found = check_rows(root, lambda: None).doubts
        assert found or read_rows(storage, name).equals(before), place
        told += any(name in doubt for doubt in found)
        path.write_bytes(content)
    assert told > 30


def test_a_file_whose_rows_are_not_those_it_was_signed_with_is_told(
    root: Path, storage: Storage
) -> None:
    name = shard_of(PGD)
    table = read_rows(storage, name)
    place = table.schema.get_field_index("loss")
    more = table.set_column(place, table.schema.field("loss"), [np.ones(len(table), np.float32)])
    pq.write_table(more, root / name, write_page_checksum=True)
    assert any("another SHA-256" in doubt for doubt in findings(root)["rows"])


def test_a_missing_shard_makes_its_evaluation_incomplete(root: Path, storage: Storage) -> None:
    storage.delete(shard_of(PGD))
    found = findings(root)
    assert "1 of 15 shards are missing" in found["shards"][0]
    assert "40 of 60 images are finished" in found["shards"][0]
    assert f"trial {TRIAL_A} has no complete evaluation" in found["tables"][0]


def test_a_renamed_shard_is_told_by_both_names(root: Path, storage: Storage) -> None:
    name, other = shard_of(PGD), f"evaluations/{'0' * 16}.parquet"
    (root / name).rename(root / other)
    found = findings(root)
    assert name in found["shards"][0]
    assert other in found["other files"][0]
    assert f"its name says {'0' * 16}" in found["other files"][0]


def test_a_shard_in_anothers_place_is_told(root: Path, storage: Storage) -> None:
    shutil.copy(root / shard_of(PGD, 0), root / shard_of(PGD, 1))
    doubts = "\n".join(findings(root)["rows"])
    assert "its name says" in doubts
    assert "its image_ids is" in doubts


@pytest.mark.parametrize(
    ("part", "value"),
    [("model", "f" * 64), ("seed", 2), ("tile", 16), ("images", {"digest": "x"})],
)
def test_a_shard_of_another_evaluation_is_told(
    part: str, value: object, root: Path, storage: Storage
) -> None:
    name = shard_of(PGD)
    parts = about(read_rows(storage, name))["key_parts"]
    rewrite(storage, name, head={"key_parts": {**parts, part: value}})
    doubts = "\n".join(findings(root)["rows"])
    assert "its key is not the digest" in doubts
    assert f"its {part if part != 'images' else 'images_digest'} is" in doubts


def test_a_changed_record_is_told(root: Path, storage: Storage) -> None:
    (record,) = (root / f"trials/{TRIAL_A}/evaluations").iterdir()
    record.write_text(record.read_text().replace('"seed": 1', '"seed": 2'))
    found = findings(root)
    assert record.name in found["evaluations"][0]
    assert "it was changed" in found["evaluations"][0]
    record.write_bytes(b"\xff")
    assert "is not the record" in findings(root)["evaluations"][0]


def test_shards_with_a_gap_or_an_overlap_are_told(root: Path, storage: Storage) -> None:
    good = B.record()
    moved = [{**s, "first": max(0, s["first"] - 1)} for s in good.shards]
    doubled = replace(good, image_ids=[*good.image_ids[:-1], good.image_ids[0]])
    for bad in (replace(good, shards=moved), replace(good, shards=good.shards[1:]), doubled):
        write_record(storage, bad)
    doubts = findings(root)["shards"]
    assert sum("a gap or an overlap" in doubt for doubt in doubts) == 3
    assert sum(f"counts image {good.image_ids[0]} 2 times" in doubt for doubt in doubts) == 1


def test_another_trained_model_is_told(root: Path, storage: Storage) -> None:
    path = root / f"trials/{TRIAL_A}/trained.json"
    path.write_text(path.read_text().replace(A.digest, "e" * 64))
    assert "e" * 12 in findings(root)["models"][0]
    path.write_text("{")
    assert "is not the record of a trained model" in findings(root)["models"][0]
    path.unlink()
    assert "models" not in findings(root)
    assert "was not trained here" in notes(root)[0]


def test_a_damaged_checkpoint_is_told(root: Path) -> None:
    flip(root / f"trials/{TRIAL_B}/checkpoints/0000000007/model.safetensors", 3)
    (doubt,) = findings(root)["checkpoints"]
    assert TRIAL_B in doubt
    assert "was changed" in doubt


def change_table(root: Path, change: Callable[[dict[str, str]], None], line: int = 3) -> None:
    file = root / "sweeps/made/table.csv"
    lines = list(csv.DictReader(io.StringIO(file.read_text())))
    change(lines[line])
    out = io.StringIO()
    writer = csv.DictWriter(out, lines[0].keys())
    writer.writeheader()
    writer.writerows(lines)
    file.write_text(out.getvalue())


CHANGES: list[tuple[str, Callable[[str], str]]] = [
    ("successes", lambda text: str(int(text) + 1)),
    ("total", lambda text: str(int(text) + 1)),
    ("value", lambda text: f"{float(text) + 2e-6:.6f}"),
    ("low", lambda text: f"{float(text) - 2e-6:.6f}"),
    ("high", lambda text: ""),
    ("population", lambda text: "60"),
    ("steps", lambda text: "30"),
    ("attack", lambda text: "pgd_other"),
    ("measure", lambda text: "accuracy"),
    ("key", lambda text: "c" * 16),
]


@pytest.mark.parametrize(("column", "change"), CHANGES, ids=[name for name, _ in CHANGES])
@pytest.mark.parametrize("line", [3, 11], ids=["targeted", "untargeted"])
def test_a_number_that_was_changed_in_a_table_is_told(
    line: int, column: str, change: Callable[[str], str], root: Path
) -> None:
    change_table(root, lambda fields: fields.update({column: change(fields[column])}), line)
    found = findings(root)
    assert list(found) == ["tables"]
    assert len(found["tables"]) == 1
    assert "sweeps/made/table.csv" in found["tables"][0]
    assert "s3ta report FILE" in found["tables"][0]


def test_a_table_that_is_none_is_told(root: Path) -> None:
    file = root / "sweeps/made/table.csv"
    for content in (b"model,key\n", b"\xff\xfe", b"a\0b\n"):
        file.write_bytes(content)
        assert "is not a table of results" in findings(root)["tables"][0]


def test_a_table_of_an_earlier_evaluation_of_the_same_trial_passes(
    root: Path, storage: Storage
) -> None:
    replace(B, images=80, falls={}).store(storage)
    assert findings(root) == {}


def test_quarantined_images_are_known_and_counted_as_not_robust(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path), durable=False)
    ids = A.image_ids
    # One alone, and a whole shard of which nothing is left.
    made = replace(A, quarantined=[ids[2], *ids[40:60]])
    record = made.store(storage)
    put_table(tmp_path, storage, [record])
    assert findings(tmp_path) == {}
    name = f"evaluations/{record.shards[0]['key']}.parquet"
    rewrite(storage, name, head={"quarantined": {str(ids[30]): "the worker died"}})
    doubts = findings(tmp_path)["rows"]
    assert f"image {ids[30]} is quarantined, which is none of its images" in doubts[0]
    assert f"image {ids[2]} at step 10 is missing" in doubts[1]


def early(halfwidth: float) -> Evaluation:
    falls = {i: 5 for i in range(3000) if i % 2}
    return Evaluation(
        images=3000,
        halfwidth=halfwidth,
        falls=falls,
        hits={i: 5 for i in falls if i % 3},
        attacks=[AttackSettings(epsilon_255=16, readings=[20])],
        shard_images=300,
    )


def test_an_early_stop_that_was_allowed_is_no_doubt(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path), durable=False)
    record = early(0.025).store(storage, finished=1200)
    put_table(tmp_path, storage, [record], stop=1100)
    assert findings(tmp_path) == {}
    assert "stopped early, as it was allowed to" in notes(tmp_path)[0]
    assert "1,100 of 3,000 images" in notes(tmp_path)[0]


def test_what_is_stored_beyond_an_early_stop_changes_nothing(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path), durable=False)
    record = early(0.025).store(storage)
    put_table(tmp_path, storage, [record], stop=1100)
    assert findings(tmp_path) == {}


def test_a_stop_that_came_too_early_is_told(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path), durable=False)
    record = early(0.01).store(storage, finished=1200)
    put_table(tmp_path, storage, [record], stop=1100)
    assert "is incomplete" in findings(tmp_path)["shards"][0]


def test_a_gap_before_the_stop_is_told(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path), durable=False)
    record = early(0.025).store(storage)
    storage.delete(f"evaluations/{record.shards[1]['key']}.parquet")
    assert "300 of 3,000 images are finished" in findings(tmp_path)["shards"][0]


def test_files_of_no_evaluation_are_told_and_no_doubt(root: Path, storage: Storage) -> None:
    (main,) = (t for t in trajectories(PGD) if t.steps == 50)
    half = put_shard(storage, A, PGD.name, main, A.image_ids[40:50])
    stray = put_shard(storage, replace(A, seed=5), PGD.name, main, A.image_ids[40:50])
    (root / f"evaluations/{'1' * 16}.parquet").write_bytes(b"of an older version")
    assert findings(root) == {}
    told = {name: [n for n in notes(root) if name in n] for name in (half, stray, "1" * 16)}
    assert f"a part of the shard {shard_of(PGD)}" in told[half][0]
    assert "not part of any evaluation" in told[stray][0]
    assert "Not part of any evaluation" in told["1" * 16][0]


def test_a_long_list_is_cut(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (root / "evaluations").iterdir():
        file.write_bytes(b"")
    assert verify(str(root)) == 1
    out = capsys.readouterr().out
    assert out.count("is not a whole file of results") == SHOWN
    assert "... and 1 more" in out


def test_results_on_s3_are_verified(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    results = f"s3://{bucket}/{tmp_path.name}"
    storage = open_storage(results)
    record: EvaluationRecord = B.store(storage)
    table = put_table(tmp_path / "s3ta-local", storage, [record])
    assert findings(results) == {}
    table.write_text(table.read_text().replace(",60,", ",61,", 1))
    assert list(findings(results)) == ["tables"]
