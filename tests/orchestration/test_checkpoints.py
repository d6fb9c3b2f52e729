"""Checkpoints: complete or not there, verified, never executed."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from s3ta.errors import UserError
from s3ta_platform import checkpoints
from s3ta_platform.storage import Storage, open_storage

PREFIX = "trials/0123456789abcdef/checkpoints"
META = {
    "stage": 1,
    "cursor": {"epoch": 2, "image": 640},
    "rate": 0.1 + 0.2,
    "history": [{"step": 1.0, "loss": 2.5}, {"step": 2.0, "loss": math.inf}],
}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path), durable=False)


def some_tensors(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 6, generator=draw)
    return {
        "model": {
            "weight": weight,
            "a view of its transpose": weight.T[1:],
            "channels_last": torch.randn(2, 3, 4, 4, generator=draw).to(
                memory_format=torch.channels_last
            ),
            "count": torch.tensor(7),
            "empty": torch.zeros(0, 3),
            "double": torch.randn(3, generator=draw, dtype=torch.float64),
            "brain": torch.randn(3, generator=draw).bfloat16(),
            "mask": torch.tensor([True, False]),
        },
        "optimizer": {"momentum/weight": weight * 2},
        "nothing yet": {},
    }


def bits(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        name: (t.dtype, t.shape, t.contiguous().reshape(-1).view(torch.uint8).tolist())
        for name, t in state.items()
    }


def path_of(storage: Storage, step: int, file: str) -> Path:
    return Path(storage.root, PREFIX, f"{step:010d}", file)


def test_a_checkpoint_comes_back_bit_for_bit(storage: Storage) -> None:
    tensors = some_tensors()
    assert checkpoints.save(storage, PREFIX, 156, tensors, META) == f"{PREFIX}/0000000156"
    loaded = checkpoints.load(storage, PREFIX, 156)
    assert loaded.step == 156
    assert loaded.meta == META
    assert list(loaded.tensors) == ["model", "optimizer", "nothing yet"]
    for group in tensors:
        assert bits(loaded.tensors[group]) == bits(tensors[group])
    manifest = path_of(storage, 156, "manifest.json").read_bytes()
    assert loaded.digest == hashlib.sha256(manifest).hexdigest()


def test_only_safetensors_and_json_are_stored_and_the_history_apart(storage: Storage) -> None:
    checkpoints.save(storage, PREFIX, 3, some_tensors(), META)
    assert [name.removeprefix(f"{PREFIX}/0000000003/") for name in storage.list()] == [
        "history.json",
        "manifest.json",
        "model.safetensors",
        "nothing yet.safetensors",
        "optimizer.safetensors",
    ]
    manifest = json.loads(path_of(storage, 3, "manifest.json").read_text())
    assert manifest["meta"] == {key: META[key] for key in META if key != "history"}
    raw = path_of(storage, 3, "model.safetensors").read_bytes()
    assert manifest["files"]["model.safetensors"] == {
        "file": "model.safetensors",
        "size": len(raw),
        "sha256": hashlib.sha256(raw).hexdigest(),
    }


def test_a_step_saved_twice_keeps_the_first(storage: Storage) -> None:
    first = checkpoints.save(storage, PREFIX, 5, some_tensors(0), {"who": "first"})
    second = checkpoints.save(storage, PREFIX, 5, some_tensors(1), {"who": "second"})
    assert first == second
    loaded = checkpoints.load(storage, PREFIX, 5)
    assert loaded.meta == {"who": "first"}
    assert bits(loaded.tensors["model"]) == bits(some_tensors(0)["model"])


def test_the_latest_is_the_highest_step_that_is_complete(storage: Storage) -> None:
    assert checkpoints.latest(storage, PREFIX) is None
    for step in (9, 10, 100):
        checkpoints.save(storage, PREFIX, step, some_tensors(), {})
    storage.put_new(f"{PREFIX}/0000000200/model.safetensors", b"no manifest")
    storage.put_new(f"{PREFIX}/0000000300/deeper/manifest.json", b"{}")
    storage.put_new(f"{PREFIX}-of-another/0000000400/manifest.json", b"{}")
    storage.put_new(f"{PREFIX}/notes/manifest.json", b"{}")
    assert checkpoints.steps(storage, PREFIX) == [9, 10, 100]
    assert checkpoints.latest(storage, PREFIX) == 100


KILLED_BEFORE_ITS_NTH_FILE = """
import os, signal, sys, torch
from s3ta_platform import checkpoints
from s3ta_platform.storage import LocalStorage, open_storage
put, left = LocalStorage.put_new, int(sys.argv[3])
def put_or_die(self, name, data):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return put(self, name, data)
LocalStorage.put_new = put_or_die
tensors = {"model": {"a": torch.ones(2)}, "optimizer": {"a": torch.ones(2)}}
checkpoints.save(open_storage(sys.argv[1]), sys.argv[2], 7, tensors, {"history": [1], "by": "dead"})
"""


@pytest.mark.parametrize("files", [2, 3])
def test_a_killed_save_leaves_no_checkpoint_and_does_not_spoil_the_next(
    storage: Storage, files: int
) -> None:
    checkpoints.save(storage, PREFIX, 6, some_tensors(), {})
    died = subprocess.run(
        [sys.executable, "-c", KILLED_BEFORE_ITS_NTH_FILE, storage.root, PREFIX, str(files)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert died.returncode == -signal.SIGKILL
    assert len(storage.list(f"{PREFIX}/0000000007/")) == files
    assert checkpoints.latest(storage, PREFIX) == 6

    # What is computed again may differ in a bit, as on a GPU; the old files must not be taken.
    again = {"model": {"a": torch.ones(2) * 2}, "optimizer": {"a": torch.ones(2)}}
    checkpoints.save(storage, PREFIX, 7, again, {"history": [2], "by": "the next"})
    loaded = checkpoints.load(storage, PREFIX, 7)
    assert loaded.tensors["model"]["a"].tolist() == [2, 2]
    assert loaded.tensors["optimizer"]["a"].tolist() == [1, 1]
    assert loaded.meta == {"history": [2], "by": "the next"}


def test_a_damaged_file_is_named_with_both_digests_and_the_remedy(storage: Storage) -> None:
    checkpoints.save(storage, PREFIX, 1, some_tensors(), META)
    path = path_of(storage, 1, "model.safetensors")
    whole = path.read_bytes()
    expected = hashlib.sha256(whole).hexdigest()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    for damaged in (flipped, whole[:100], b"", b"not safetensors"):
        path.write_bytes(damaged)
        with pytest.raises(UserError) as caught:
            checkpoints.load(storage, PREFIX, 1)
        message = str(caught.value)
        assert path.as_uri() in message
        assert hashlib.sha256(damaged).hexdigest() in message
        assert expected in message
        assert "Delete that checkpoint's folder" in message
    path.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing\. Delete"):
        checkpoints.load(storage, PREFIX, 1)
    path.write_bytes(whole)
    checkpoints.load(storage, PREFIX, 1)


def test_a_file_that_fits_its_digest_but_is_no_safetensors_is_refused(storage: Storage) -> None:
    checkpoints.save(storage, PREFIX, 1, some_tensors(), META)
    forged = b"\x80\x04 a pickle, say"
    path_of(storage, 1, "model.safetensors").write_bytes(forged)
    manifest = path_of(storage, 1, "manifest.json")
    content = json.loads(manifest.read_text())
    content["files"]["model.safetensors"]["sha256"] = hashlib.sha256(forged).hexdigest()
    manifest.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"model\.safetensors is no safetensors file"):
        checkpoints.load(storage, PREFIX, 1)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("{", "is no checkpoint manifest"),
        ("[]", "is no checkpoint manifest"),
        ({"version": 2}, "has the format version 2, this s3ta reads 1"),
        ({"step": 2}, "is not the whole manifest of step 1"),
        ({"files": {}}, "is not the whole manifest of step 1"),
        ({"files": {"model.safetensors": 3}}, "is not the whole manifest of step 1"),
        ({"groups": ["model", "more"]}, "is not the whole manifest of step 1"),
    ],
)
def test_a_bad_manifest_is_refused(storage: Storage, change: Any, complaint: str) -> None:
    checkpoints.save(storage, PREFIX, 1, some_tensors(), META)
    path = path_of(storage, 1, "manifest.json")
    changed = isinstance(change, dict)
    path.write_text(json.dumps(json.loads(path.read_text()) | change) if changed else change)
    with pytest.raises(UserError, match=complaint):
        checkpoints.load(storage, PREFIX, 1)


def test_a_manifest_cannot_point_outside_the_storage(storage: Storage, tmp_path: Path) -> None:
    checkpoints.save(storage, PREFIX, 1, some_tensors(), {})
    path = path_of(storage, 1, "manifest.json")
    content = json.loads(path.read_text())
    content["files"]["model.safetensors"]["file"] = "../../../../../secret"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="is no name for stored data"):
        checkpoints.load(storage, PREFIX, 1)


def test_an_absent_step_is_refused_and_the_others_are_listed(storage: Storage) -> None:
    checkpoints.save(storage, PREFIX, 4, some_tensors(), {})
    with pytest.raises(UserError, match=r"no checkpoint of step 5 in .*; complete ones: \[4\]"):
        checkpoints.load(storage, PREFIX, 5)


def test_pruning_keeps_the_last_ones_and_removes_orphans_before_them(storage: Storage) -> None:
    for step in (1, 2, 3, 4):
        checkpoints.save(storage, PREFIX, step, some_tensors(), META)
    storage.put_new(f"{PREFIX}/0000000000/model.safetensors", b"orphan")
    storage.put_new(f"{PREFIX}/0000000005/model.safetensors", b"being written")
    storage.put_new(f"{PREFIX}/notes.txt", b"not ours")
    checkpoints.prune(storage, PREFIX, keep=2)
    assert checkpoints.steps(storage, PREFIX) == [3, 4]
    left = {name.removeprefix(f"{PREFIX}/").split("/")[0] for name in storage.list()}
    assert left == {"0000000003", "0000000004", "0000000005", "notes.txt"}
    assert checkpoints.load(storage, PREFIX, 3).meta == META
    checkpoints.prune(storage, PREFIX, keep=5)
    assert checkpoints.steps(storage, PREFIX) == [3, 4]


def test_pruning_keeps_the_best_and_the_last_that_has_metrics_too(storage: Storage) -> None:
    """Steps 3, 6, 9, 12, 15 end epochs; 6 and 9 are the best."""
    top1 = {3: 0.3, 6: 0.5, 9: 0.5, 12: 0.4, 15: 0.2}
    kept = {}
    for step in range(1, 18):
        meta = {"metrics": {"top1": top1[step]} if step in top1 else {}}
        checkpoints.save(storage, PREFIX, step, some_tensors(), meta)
        checkpoints.prune(storage, PREFIX, keep=1, best_by="top1")
        kept[step] = checkpoints.steps(storage, PREFIX)
    assert kept[2] == [2]
    assert kept[5] == [3, 5]
    assert kept[8] == [6, 8]
    assert kept[11] == [6, 9, 11]
    assert kept[15] == [6, 15]
    assert kept[17] == [6, 15, 17]


def test_pruning_never_deletes_the_only_checkpoint_to_resume_from(storage: Storage) -> None:
    storage.put_new(f"{PREFIX}/0000000001/model.safetensors", b"being written")
    checkpoints.prune(storage, PREFIX, keep=1)
    assert len(storage.list()) == 1
    with pytest.raises(UserError, match="use 1 or more"):
        checkpoints.prune(storage, PREFIX, keep=0)


def test_a_checkpoint_stops_existing_before_its_files_go(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2, 3):
        checkpoints.save(storage, PREFIX, step, some_tensors(), META)
    deleted: list[str] = []
    delete = type(storage).delete

    def record(self: Any, name: str) -> None:
        deleted.append(name)
        delete(self, name)

    monkeypatch.setattr(type(storage), "delete", record)
    checkpoints.prune(storage, PREFIX, keep=1)
    assert [name.rpartition("/")[2] == "manifest.json" for name in deleted] == [True] * 2 + [
        False
    ] * 8


def test_the_model_digest_is_of_the_content_and_not_of_its_encoding(
    storage: Storage, tmp_path: Path
) -> None:
    state = some_tensors()["model"]
    digest = checkpoints.model_digest(state)
    checkpoints.save(storage, PREFIX, 1, {"model": state}, {})
    assert checkpoints.model_digest(checkpoints.load(storage, PREFIX, 1).tensors["model"]) == digest
    assert checkpoints.model_digest(dict(reversed(state.items()))) == digest
    assert checkpoints.model_digest({"a": torch.zeros(2)}) == (
        # sha256 of the header's length, the header and eight zero bytes, computed by hand
        hashlib.sha256(b"\x1b" + b"\0" * 7 + b'["a", "torch.float32", [2]]' + b"\0" * 8).hexdigest()
    )


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([1.0, 2.0])[:, None]},
        {"b": torch.tensor([1.0, 2.0])},
        {"a": torch.tensor([2.0, 1.0])},
        {"a": torch.tensor([1.0, 2.0]).view(torch.int32)},
        {"a": torch.tensor([1.0]), "b": torch.tensor([2.0])},
    ],
)
def test_the_model_digest_tells_other_content_apart(other: dict[str, torch.Tensor]) -> None:
    ours = checkpoints.model_digest({"a": torch.tensor([1.0, 2.0])})
    assert checkpoints.model_digest(other) != ours


def net(width: int = 3) -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.BatchNorm1d(width))


def test_a_state_is_loaded_into_a_module_of_the_same_shape() -> None:
    source, target = net(), net()
    checkpoints.load_into(target, source.state_dict())
    assert bits(target.state_dict()) == bits(source.state_dict())


def test_a_checkpoint_of_another_architecture_changes_nothing_and_is_explained() -> None:
    target = net()
    before = bits(target.state_dict())
    wrong = dict(net().state_dict())
    del wrong["0.bias"]
    wrong["head.weight"] = torch.zeros(1)
    wrong["0.weight"] = torch.zeros(4, 2)
    wrong["1.bias"] = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(UserError) as caught:
        checkpoints.load_into(target, wrong)
    assert str(caught.value) == (
        "The checkpoint is of another architecture: 0.bias is missing; head.weight is unexpected;"
        " 0.weight is float32[4, 2] but must be float32[3, 2] and 1 more. Use the model settings it"
        " was trained with, or train the model anew in a new results folder."
    )
    assert bits(target.state_dict()) == before


def test_a_file_by_another_writer_of_safetensors_has_the_same_digest() -> None:
    state = {"b": torch.arange(3.0), "a": torch.arange(4)}
    noted = safetensors.torch.save(state, metadata={"note": "another encoding"})
    assert noted != safetensors.torch.save(state)
    read = safetensors.torch.load(noted)
    assert checkpoints.model_digest(read) == checkpoints.model_digest(state)
