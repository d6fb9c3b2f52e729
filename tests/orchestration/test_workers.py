"""Any number of workers, and any number of interruptions, computes the same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import EPOCH_STEPS, KEY, STEPS, train_job

import s3ta.training
from s3ta_platform import checkpoints
from s3ta_platform.events import Event
from s3ta_platform.groups import Joined
from s3ta_platform.schema_cluster import ClusterSettings
from s3ta_platform.storage import open_storage
from s3ta_platform.train import ToldToLeaveError, train
from s3ta_platform.trials import checkpoint_prefix, checkpoint_steps, read_history, read_trained
from s3ta_platform.wishes import Wish

HERE = Path(__file__).parent
SHORT = 2 * EPOCH_STEPS
"""Steps of a training of two epochs."""


def weights(root: Path, end: int = STEPS) -> dict[str, torch.Tensor]:
    storage, prefix = open_storage(str(root)), checkpoint_prefix(KEY)
    step = checkpoints.latest(storage, prefix)
    assert step == end
    saved = checkpoints.load(storage, prefix, step)
    return {f"{group}/{name}": t for group, ts in saved.tensors.items() for name, t in ts.items()}


def assert_bit_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def curve(root: Path) -> list[dict[str, float]]:
    """The training curve without its times."""
    points = read_history(open_storage(str(root)), KEY)
    return [{name: v for name, v in point.items() if name != "time"} for point in points]


def run_workers(world: int, root: Path, *options: object) -> None:
    """To their end, which is the training's or the step at which they leave."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    store = root.parent / f"store-{len(list(root.parent.glob('store-*')))}"
    script = HERE / "gloo_worker.py"
    workers = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(world), store, root, *map(str, options)],
            env=environment,
        )
        for rank in range(world)
    ]
    assert [w.wait(timeout=300) for w in workers] == [0] * world


def microbatches(file: Path) -> dict[tuple[int, int], list[object]]:
    """What was seen, by step and place; each exactly once."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    found = {(line[0], line[1]): line[2:] for line in lines}
    assert len(found) == len(lines) == STEPS * 6
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed training by one worker, in a process of its own."""
    root = tmp_path_factory.mktemp("alone") / "results"
    run_workers(1, root, "--see", root.parent / "seen")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_gloo_workers_see_the_same_and_end_in_the_weights_of_one(
    world: int, alone: Path, tmp_path: Path
) -> None:
    run_workers(world, tmp_path / "results", "--see", tmp_path / "seen")
    assert microbatches(tmp_path / "seen") == microbatches(alone.parent / "seen")
    assert_bit_equal(weights(alone), weights(tmp_path / "results"))
    assert curve(tmp_path / "results") == curve(alone)


@pytest.mark.slow
def test_two_workers_then_one_then_two_see_the_same_and_end_in_the_same_weights(
    alone: Path, tmp_path: Path
) -> None:
    """Each change comes in the middle of an epoch, where one worker wishes to leave."""
    root, seen = tmp_path / "results", tmp_path / "seen"
    storage = open_storage(str(root))
    for world, leave_at in ((2, 20), (1, 33)):
        run_workers(world, root, "--see", seen, "--leave-at", leave_at)
        assert checkpoint_steps(storage, KEY)[-1] == leave_at
    run_workers(2, root, "--see", seen)
    assert microbatches(seen) == microbatches(alone.parent / "seen")
    assert_bit_equal(weights(alone), weights(root))
    assert curve(root) == curve(alone)


def test_the_claim_covers_fifty_adversarial_steps_that_learn(alone: Path) -> None:
    trained = read_trained(open_storage(str(alone)), KEY)
    assert trained is not None
    assert trained.step == STEPS
    history = curve(alone)
    assert history[-1]["loss"] < history[0]["loss"] - 0.1


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed training of two epochs, in this process."""
    root = tmp_path_factory.mktemp("short")
    train(train_job(str(root), epochs=2))
    return root


class KilledError(Exception):
    """Stands for the end of a process in the middle of a step."""


@pytest.mark.parametrize(("after", "every"), [(1, None), (13, None), (17, None), (9, 5), (20, 3)])
def test_training_killed_after_any_step_ends_in_the_same_weights_and_curve(
    after: int, every: int | None, short: Path, tmp_path: Path
) -> None:
    executed: list[int] = []
    job = train_job(str(tmp_path), epochs=2, cluster=ClusterSettings(checkpoint_steps=every))

    def note(event: Event) -> None:
        executed.append(event.done // 48)

    def die(event: Event) -> None:
        note(event)
        if len(executed) == after:
            raise KilledError

    with pytest.raises(KilledError):
        train(job, emit=die)
    train(job, emit=note)
    assert_bit_equal(weights(short, SHORT), weights(tmp_path, SHORT))
    assert curve(tmp_path) == curve(short)
    saved = max(after // EPOCH_STEPS * EPOCH_STEPS, after // every * every if every else 0)
    assert executed[after] == saved + 1, "nothing before the last checkpoint is done twice"
    assert executed[-1] == SHORT


def test_told_to_leave_at_every_step_it_ends_in_the_same_weights_and_curve(
    short: Path, tmp_path: Path
) -> None:
    """26 starts of training, each of which does one step."""
    job = train_job(str(tmp_path), epochs=2)
    for step in range(1, SHORT):
        with pytest.raises(ToldToLeaveError, match=f"left at step {step}, which is saved"):
            train(job, wish=lambda: Wish.LEAVE)
    train(job, wish=lambda: Wish.LEAVE)
    assert_bit_equal(weights(short, SHORT), weights(tmp_path, SHORT))
    assert curve(tmp_path) == curve(short)


def test_a_wish_to_save_is_done_after_that_step_and_training_goes_on(tmp_path: Path) -> None:
    asked = iter(range(STEPS))
    saved: list[int] = []

    def note(event: Event) -> None:
        if event.durable:
            saved.append(event.done // 48)

    job = train_job(str(tmp_path), epochs=1)
    train(job, emit=note, wish=lambda: Wish.SAVE if next(asked) in (4, 5) else Wish.GO_ON)
    assert saved == [5, 6, 13]


def test_a_trained_trial_is_not_trained_again(alone: Path) -> None:
    events: list[Event] = []
    train(train_job(str(alone)), emit=events.append)
    assert events == []


def test_the_attack_follows_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the copy answers is what the model of this very step answers in test mode."""
    attack, answers = s3ta.training.attack_microbatch, []

    def look(*args: Any) -> Any:
        model, fast = args[0], args[-1]
        attacked, labels_B = attack(*args)
        answers.append(model.eval()(attacked).detach())
        torch.testing.assert_close(fast(attacked).detach(), answers[-1], rtol=1e-3, atol=1e-4)
        return attacked, labels_B

    monkeypatch.setattr(s3ta.training, "attack_microbatch", look)
    train(train_job(str(tmp_path), epochs=1))
    assert len(answers) == EPOCH_STEPS * 6
    assert (answers[-1] - answers[0]).abs().max() > 0.1, "the weights moved"


class Second(Joined):
    """Rank 1 of 2, which rank 0 tells to begin at step 13."""

    def agree(self, number: int) -> int:
        assert number == 0, "what rank 1 sees in the storage counts for nothing"
        return EPOCH_STEPS

    def begin_sum(self, part: torch.Tensor) -> None:
        """Nobody listens."""

    def add_up(self, part: torch.Tensor) -> None:
        raise KilledError


def test_all_workers_begin_where_rank_0_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another checkpoint, of step 26, is there when rank 1 looks."""

    def die(event: Event) -> None:
        if event.done == 26 * 48:
            raise KilledError

    with pytest.raises(KilledError):
        train(train_job(str(tmp_path)), emit=die)
    seen: list[int] = []
    monkeypatch.setattr("s3ta_platform.train.pulse.beat", seen.append)
    with pytest.raises(KilledError):
        train(train_job(str(tmp_path)), Second(rank=1, world=2))
    assert seen == [EPOCH_STEPS] * 3
