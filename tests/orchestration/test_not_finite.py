"""Steps that are not finite: named, or passed over, and always in the same way."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from test_workers import assert_bit_equal, curve
from tiny import EPOCH_STEPS, KEY, train_job

import s3ta.training
from s3ta.model import build
from s3ta.order import epoch_order
from s3ta.settings import OnNonfinite
from s3ta_platform import checkpoints, pulse
from s3ta_platform.jobs import open_images, training_ids
from s3ta_platform.not_finite import NotFiniteError
from s3ta_platform.storage import open_storage
from s3ta_platform.train import ToldToLeaveError, train
from s3ta_platform.trials import checkpoint_prefix
from s3ta_platform.wishes import Wish

EPOCHS, END = 2, 2 * EPOCH_STEPS
STEP, INDEX = 17, 2
"""The microbatch whose images become NaN: at step 4 of epoch 1."""


@contextmanager
def poisoned(*steps: int) -> Iterator[None]:
    attack = s3ta.training.attack_microbatch

    def poison(*args: Any) -> Any:
        attacked, labels_B = attack(*args)
        moment, index = args[3], args[4]
        return attacked * (torch.nan if moment.step in steps and index == INDEX else 1), labels_B

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3ta.training, "attack_microbatch", poison)
        yield


def run(root: Path, policy: OnNonfinite, leave_at: int | None = None) -> None:
    """Train, or go on; leave at a step, which is then saved."""

    def wish() -> Wish:
        leaves = leave_at is not None and pulse.read()[1] >= leave_at - 1
        return Wish.LEAVE if leaves else Wish.GO_ON

    with suppress(ToldToLeaveError):
        train(train_job(str(root), EPOCHS, on_nonfinite=policy), wish=wish)


def state(root: Path, step: int) -> dict[str, torch.Tensor]:
    saved = checkpoints.load(open_storage(str(root)), checkpoint_prefix(KEY), step)
    return {f"{group}/{name}": t for group, ts in saved.tensors.items() for name, t in ts.items()}


def suspects() -> list[int]:
    """The images of that microbatch."""
    job = train_job("nowhere")
    ids = training_ids(open_images(job.data.train, job.data, job.model).ids_N, job.data)
    start = (STEP % EPOCH_STEPS) * 48 + INDEX * 8
    found: list[int] = epoch_order(ids, job.train, STEP // EPOCH_STEPS)[start : start + 8].tolist()
    return found


@pytest.fixture(scope="module", params=[OnNonfinite.skip, OnNonfinite.rollback])
def passed_over(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[OnNonfinite, Path]:
    """The policy, and the results of the training in which that step was passed over."""
    root = tmp_path_factory.mktemp("passed")
    with poisoned(STEP):
        run(root, request.param)
    return request.param, root


def test_stop_names_the_step_the_images_and_the_last_good_checkpoint(tmp_path: Path) -> None:
    images = ", ".join(map(str, suspects()))
    for _ in range(2):  # started again, it ends at the same place
        with poisoned(STEP), pytest.raises(NotFiniteError) as caught:
            run(tmp_path, OnNonfinite.stop)
        words = str(caught.value)
        assert "The training loss of step 17 (epoch 1) is nan" in words
        assert f"in the microbatches of images {images}." in words
        assert f"The last good checkpoint is {checkpoint_prefix(KEY)}/0000000013." in words
    assert not (tmp_path / "trials" / KEY / "not_finite").exists()


def test_skip_leaves_weights_momentum_and_statistics_as_they_were(tmp_path: Path) -> None:
    with poisoned(STEP):
        run(tmp_path, OnNonfinite.skip, leave_at=STEP)
        run(tmp_path, OnNonfinite.skip, leave_at=STEP + 1)
        assert_bit_equal(state(tmp_path, STEP), state(tmp_path, STEP + 1))
        run(tmp_path, OnNonfinite.skip, leave_at=STEP + 2)
        before, after = state(tmp_path, STEP + 1), state(tmp_path, STEP + 2)
        assert not torch.equal(before["model/query.0.weight"], after["model/query.0.weight"])


def test_rollback_returns_to_the_end_of_the_last_epoch_and_goes_on_behind_the_step(
    tmp_path: Path,
) -> None:
    with poisoned(STEP):
        run(tmp_path, OnNonfinite.rollback, leave_at=STEP + 1)
    assert_bit_equal(state(tmp_path, EPOCH_STEPS), state(tmp_path, STEP + 1))


def test_rollback_in_the_first_epoch_returns_to_the_beginning(tmp_path: Path) -> None:
    with poisoned(3):
        run(tmp_path, OnNonfinite.rollback, leave_at=4)
    job, found = train_job(str(tmp_path)), state(tmp_path, 4)
    for name, values in build(job.model, job.classes, job.train.seed).state_dict().items():
        assert torch.equal(found[f"model/{name}"], values)
    assert not any(name.startswith("optimizer") for name in found), "no momentum"


def test_what_was_passed_over_is_on_record_and_in_the_curve(
    passed_over: tuple[OnNonfinite, Path],
) -> None:
    policy, root = passed_over
    (file,) = (root / "trials" / KEY / "not_finite").iterdir()
    assert file.name == "0000000017.json"
    assert json.loads(file.read_text()) == {
        "step": STEP,
        "epoch": 1,
        "loss": "nan",
        "image_ids": suspects(),
        "policy": policy.name,
    }
    counts = {point["step"]: point["steps_not_finite"] for point in curve(root)}
    assert counts == {step: int(step > STEP) for step in range(1, END + 1) if step != STEP + 1}


@pytest.mark.parametrize("leave_at", [EPOCH_STEPS + 2, STEP, STEP + 1])
def test_left_and_begun_again_it_ends_in_the_same_weights_and_curve(
    leave_at: int, passed_over: tuple[OnNonfinite, Path], tmp_path: Path
) -> None:
    policy, root = passed_over
    with poisoned(STEP):
        run(tmp_path, policy, leave_at)
        run(tmp_path, policy)
    assert_bit_equal(state(tmp_path, END), state(root, END))
    assert curve(tmp_path) == curve(root)


def test_a_step_on_record_passes_again_where_it_would_be_finite(
    passed_over: tuple[OnNonfinite, Path], tmp_path: Path
) -> None:
    policy, root = passed_over
    record = f"trials/{KEY}/not_finite/0000000017.json"
    open_storage(str(tmp_path)).put_new(record, (root / record).read_bytes())
    run(tmp_path, policy)
    assert_bit_equal(state(tmp_path, END), state(root, END))


def test_more_than_ten_in_an_epoch_are_no_accident(tmp_path: Path) -> None:
    with poisoned(*range(1, 13)), pytest.raises(NotFiniteError, match="step 11 "):
        run(tmp_path, OnNonfinite.skip)
