"""Capsules: all that a run was, no secret among it, and a clone that is the code it ran."""

import json
import subprocess
from pathlib import Path

import pytest

from s3ta.errors import UserError
from s3ta_platform.capsule import (
    capsule_of,
    code_state,
    secrets_here,
    without_secrets,
    write_capsule,
)
from s3ta_platform.compose import compose
from s3ta_platform.plan import Plan, make_plan
from s3ta_platform.record import RESULT_VERSION
from s3ta_platform.reproduce import find_capsule, fresh_clone, plan_again, read_capsule

FILE = """
defaults:
  - schema
  - data: fashion_mnist_sample
  - model: small_s3ta
  - train: small_adversarial
  - attack@evaluate.attacks.pgd: small_pgd
  - _self_
name: mine
data: {train_images: 100}
train: {epochs: 3, batch: 32, microbatch: 8}
evaluate: {images: 40, tile: 8}
sweep: {grid: {train.seed: [3, 4]}}
"""


def planned(folder: Path, *overrides: str) -> Plan:
    file = folder / "mine.yaml"
    file.write_text(FILE)
    return make_plan(compose(file, [f"results={folder}/r", *overrides]))


def test_a_capsule_holds_what_a_run_is_made_of(tmp_path: Path) -> None:
    plan = planned(tmp_path, "tracking.store=none")
    capsule = json.loads(plan.storage.get(write_capsule(plan)))
    assert capsule == capsule_of(plan)
    first, second = plan.trials
    assert capsule["seeds"][first.key] == {"train": 3, "subset": 0, "evaluate": 1}
    assert capsule["seeds"][second.key]["train"] == 4
    assert capsule["data"]["sample:fashion_mnist/test.parquet"] == first.test_digest
    assert capsule["versions"]["result_version"] == RESULT_VERSION
    assert capsule["lock"]["torch"]
    assert [trial["key"] for trial in capsule["trials"]] == [first.key, second.key]
    again = plan_again(capsule, tmp_path / "again")
    assert [(t.key, t.name) for t in again.trials] == [(t.key, t.name) for t in plan.trials]
    assert again.experiment.results == str(tmp_path / "again")
    assert write_capsule(plan) == write_capsule(plan)  # named by its content, written once


def test_no_secret_of_environment_address_or_changes_enters_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "hunter2-hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    plan = planned(
        tmp_path,
        "tracking.store='http://user:pa55word@host:5000'",
        "about.title='with hunter2-hunter2 and wJalrXUtnFEMI'",
    )
    text = json.dumps(capsule_of(plan))
    for secret in ("pa55word", "hunter2", "wJalrXUtnFEMI", "user:"):
        assert secret not in text
    assert "http://***@host:5000" in text
    assert "with *** and ***" in text


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("s3://key:secret@bucket/x", "s3://***@bucket/x"),
        ("+token = 'ghp_0123456789abcdef'", "+token = '***'"),
        (
            "https://h/x?X-Amz-Signature=0123456789abcdef01&n=1",
            "https://h/x?X-Amz-Signature=***&n=1",
        ),
        ("password: correct-horse-battery-1", "password: ***"),
        # What only looks like it stays, or no change could be applied again.
        ("+    token: str | None = None", "+    token: str | None = None"),
        ("+secrets = secrets_here()", "+secrets = secrets_here()"),
        ("a@b.c and x@y", "a@b.c and x@y"),
    ],
)
def test_secrets_are_taken_out_of_any_text(text: str, hidden: str) -> None:
    assert without_secrets({"k": [text]}, ()) == {"k": [hidden]}


def test_short_values_of_the_environment_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "1")
    assert "1" not in secrets_here()


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "-q")
    (root / "code.py").write_text("x = 1\n")
    (root / ".env").write_text("nothing\n")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    return root


def test_a_changed_tree_is_marked_and_cloned_with_its_changes(
    repository: Path, tmp_path: Path
) -> None:
    clean = code_state(repository / "code.py")
    assert (clean["dirty"], clean["diff"]) == (False, "")
    assert clean["commit"] == git(repository, "rev-parse", "HEAD").strip()
    (repository / "code.py").write_text("x = 2\n")
    (repository / "new.py").write_text("")
    (repository / ".env").write_text("TOKEN=do-not-tell-1\n")
    changed = code_state(repository / "code.py")
    assert (changed["dirty"], changed["untracked"]) == (True, ["new.py"])
    assert "+x = 2" in changed["diff"]
    assert "do-not-tell" not in json.dumps(changed)
    git(repository, "commit", "-qam", "second")
    clone = fresh_clone(repository, {**changed, "diff_whole": True}, tmp_path / "clone")
    assert (clone / "code.py").read_text() == "x = 2\n"
    assert git(clone, "rev-parse", "HEAD").strip() == changed["commit"]


def test_code_that_no_commit_holds_has_none_and_is_not_cloned(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("")
    code = code_state(tmp_path / "code.py")
    assert code["commit"] == ""
    with pytest.raises(UserError, match="names no commit"):
        fresh_clone(tmp_path, {**code, "diff_whole": True}, tmp_path / "clone")


def test_changes_with_a_secret_taken_out_are_refused(tmp_path: Path) -> None:
    code = {"commit": "0" * 40, "diff": "+token = ***", "diff_whole": False}
    with pytest.raises(UserError, match="a secret was taken out"):
        fresh_clone(tmp_path, code, tmp_path / "clone")


def test_a_commit_that_is_not_there_is_refused(repository: Path, tmp_path: Path) -> None:
    code = {"commit": "1" * 40, "diff": "", "diff_whole": True}
    with pytest.raises(UserError, match="can't be had from this checkout"):
        fresh_clone(repository, code, tmp_path / "clone")


def test_a_capsule_is_found_by_file_name_and_experiment(tmp_path: Path) -> None:
    plan = planned(tmp_path, "tracking.store=none")
    name, root = write_capsule(plan), f"{tmp_path}/r"
    stem = name.removeprefix("capsules/").removesuffix(".json")
    for word in ("mine", stem, f"{root}/{name}"):
        capsule, storage = find_capsule(word, root)
        assert (capsule["name"], storage.root) == ("mine", root)
    with pytest.raises(UserError, match=f"names no capsule .*\n  {stem}"):
        find_capsule("other", root)
    with pytest.raises(UserError, match="no capsule of the format"):
        read_capsule(b"{}", "it")


def test_a_capsule_of_another_version_is_refused(tmp_path: Path) -> None:
    capsule = capsule_of(planned(tmp_path, "tracking.store=none"))
    capsule["versions"]["result_version"] = 1
    with pytest.raises(UserError, match="RESULT_VERSION 1 and this is"):
        plan_again(capsule, tmp_path)
