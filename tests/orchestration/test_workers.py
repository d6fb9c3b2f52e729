"""Any number of workers, and any number of interruptions, computes the same weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import KEY, train_job

from s3ta_platform import checkpoints
from s3ta_platform.events import Event
from s3ta_platform.storage import open_storage
from s3ta_platform.train import train
from s3ta_platform.trials import checkpoint_prefix, read_history, read_trained

HERE = Path(__file__).parent


def weights(root: Path) -> dict[str, torch.Tensor]:
    storage, prefix = open_storage(str(root)), checkpoint_prefix(KEY)
    step = checkpoints.latest(storage, prefix)
    assert step is not None
    saved = checkpoints.load(storage, prefix, step)
    return {f"{group}/{name}": t for group, ts in saved.tensors.items() for name, t in ts.items()}


def assert_bit_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("alone")
    train(train_job(str(root)))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_gloo_workers_end_in_the_weights_of_one(world: int, alone: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    script, store = HERE / "gloo_worker.py", tmp_path / "store"
    workers = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(world), store, tmp_path / "results"],
            env=environment,
        )
        for rank in range(world)
    ]
    assert [w.wait(timeout=300) for w in workers] == [0] * world
    assert_bit_equal(weights(alone), weights(tmp_path / "results"))


def test_the_claim_covers_fifty_adversarial_steps_that_learn(alone: Path) -> None:
    trained = read_trained(open_storage(str(alone)), KEY)
    assert trained is not None
    assert trained.step == 52
    history = read_history(open_storage(str(alone)), KEY)
    assert history[-1]["loss"] < history[0]["loss"] - 0.1


class KilledError(Exception):
    """Stands for the end of a process in the middle of a step."""


@pytest.mark.parametrize("after", [1, 13, 30])
def test_training_killed_after_any_step_ends_in_the_same_weights(
    after: int, alone: Path, tmp_path: Path
) -> None:
    executed: list[int] = []

    def note(event: Event) -> None:
        executed.append(event.done // 48)

    def die(event: Event) -> None:
        note(event)
        if len(executed) == after:
            raise KilledError

    with pytest.raises(KilledError):
        train(train_job(str(tmp_path)), emit=die)
    train(train_job(str(tmp_path)), emit=note)
    assert_bit_equal(weights(alone), weights(tmp_path))
    again = executed[after]
    assert again == after // 13 * 13 + 1, "nothing before the last checkpoint is done twice"
    assert executed[-1] == 52
    losses = [[point["loss"] for point in read_history(open_storage(str(r)), KEY)]
              for r in (alone, tmp_path)]  # fmt: skip
    assert losses[0] == losses[1]


def test_a_trained_trial_is_not_trained_again(alone: Path) -> None:
    events: list[Event] = []
    train(train_job(str(alone)), emit=events.append)
    assert events == []
