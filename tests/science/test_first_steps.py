"""The first step at which an attack hit: asked of the model itself, however wrong its copy is."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from s3ta.attacks import PGD
from s3ta.batch import Batch, Conditions, draw_targets, to_unit
from s3ta.draws import Key, Purpose
from s3ta.engine import Engine
from s3ta.evaluation import AttackRun, attack_images
from s3ta.hits import NEVER, Hits
from s3ta.settings import Dtype, EngineSettings, Goal, Loss
from s3ta.tally import Rows
from s3ta.trajectory import Trajectory

Batches = Callable[..., Batch]
Engines = Callable[..., Engine]
Trajectories = Callable[..., Trajectory]
Ints = npt.NDArray[np.int64]
PLAIN = EngineSettings(fold=False, channels_last=False)
TILE, SHAPE = 16, (1, 6, 6)
CONDITIONS = Conditions(classes=5, seed=3, tile=TILE)
EPSILON_255 = {Goal.random_target: 16.0, Goal.untargeted: 3.0}

# One pixel that moves 1/64 a step: the classes change between the third and the fourth place, and
# between the sixth and the seventh.


class _OnePixel(nn.Module):
    """Class 0 up to 0.5 + 2.5/64, class 1 up to 0.5 + 5.5/64, then class 2.

    With `shift` it takes the pixel to lie so many steps further up.
    """

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, images: Tensor) -> Tensor:
        x_B = (images.flatten() - 0.5) * 64 + self.shift
        one_B = x_B - 2.5
        return torch.stack([0 * x_B, one_B, one_B + 8 * (x_B - 5.5)], dim=1) / 16


@pytest.fixture
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attacks start at the image: the middle of the ball is drawn."""

    def half(key: Key, image_ids: Sequence[int], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        assert key.purpose is Purpose.EVAL_NOISE
        return np.full((len(image_ids), *shape), 0.5, np.float32)

    monkeypatch.setattr(Key, "uniform", half)


def _one_pixel_rows(
    x: float,
    label: int,
    target: int | None,
    *readings: int,
    shift: float = 0.0,
    until_success: bool = False,
) -> Rows:
    """Rows of one image; the attack's copy of the model is shifted."""
    goal = Goal.untargeted if target is None else Goal.random_target
    trajectory = Trajectory(
        goal=goal,
        loss=Loss.cross_entropy,
        epsilon=0.25,
        step_size=1 / 64,
        steps=max(readings),
        readings=readings,
        until_success=until_success,
    )
    engine = Engine(_OnePixel(), _OnePixel(shift), PLAIN, folded=False)
    batch = Batch(
        images_BCHW=np.full((1, 1, 1, 1), x, np.float32),
        labels_B=np.array([label]),
        image_ids_B=np.array([7]),
    )
    run = AttackRun(engine, batch, trajectory, Conditions(classes=3, seed=0, tile=2))
    if target is not None:
        run.targets.targets_N[:] = target
    return run.run()


@pytest.mark.usefixtures("no_noise")
@pytest.mark.parametrize("until_success", [False, True])
@pytest.mark.parametrize(
    ("x", "label", "first_error", "first_target"),
    [
        (0.5, 0, 3, 6),
        (0.5 + 3 / 64, 0, 0, 3),
        (0.5 + 6 / 64, 0, 0, 0),
        (0.5 - 4 / 64, 0, 7, 10),
        (0.5 - 5 / 64, 0, 8, NEVER),  # one step short of the target
        (0.0625, 0, NEVER, NEVER),  # out of reach
        (0.5, 1, 0, 6),  # wrong at the start, right from step 3 to 5
    ],
)
def test_first_steps_are_those_of_the_known_crossings(
    x: float, label: int, first_error: int, first_target: int, until_success: bool
) -> None:
    rows = _one_pixel_rows(x, label, 2, 10, until_success=until_success)
    assert rows["first_error_step"].tolist() == [first_error]
    assert rows["first_target_step"].tolist() == [first_target]


@pytest.mark.usefixtures("no_noise")
@pytest.mark.parametrize("until_success", [False, True])
def test_an_untargeted_attack_has_no_first_target_step(until_success: bool) -> None:
    rows = _one_pixel_rows(0.5, 0, None, 10, until_success=until_success)
    assert rows["first_error_step"].tolist() == [3]
    assert rows["first_target_step"].tolist() == [NEVER]


@pytest.mark.usefixtures("no_noise")
def test_each_reading_tells_its_own_step() -> None:
    rows = _one_pixel_rows(0.5, 0, 2, 1, 2, 3, 5, 6, 9)
    assert rows["step"].tolist() == [1, 2, 3, 5, 6, 9]
    assert rows["prediction"].tolist() == [0, 0, 1, 1, 2, 2]
    assert (rows["linf_255"] * 64 / 255).tolist() == pytest.approx([1, 2, 3, 5, 6, 9])
    assert (rows["pixel_max"] - 0.5).tolist() == [n / 64 for n in (1, 2, 3, 5, 6, 9)]
    assert rows["first_error_step"].tolist() == [-1, -1, 3, 3, 3, 3]
    assert rows["first_target_step"].tolist() == [-1, -1, -1, -1, 6, 6]
    # z_0 - max(z_1, z_2) = (2.5 - n) / 16 up to the sixth place.
    assert (rows["margin"][:4] * 16).tolist() == [1.5, 0.5, -0.5, -2.5]
    assert (np.diff(rows["loss"]) < 0).all()  # -log p(target) falls


# The copy that leads the attack is wrong; its way is the same.


@pytest.mark.usefixtures("no_noise")
@pytest.mark.parametrize("until_success", [False, True])
def test_a_hit_that_the_model_denies_is_dropped_and_what_it_sees_itself_counts(
    until_success: bool,
) -> None:
    """The copy sees an error from step 1 on, and the target from step 4 on: 2 steps too early."""

    def first(column: str, *readings: int) -> list[int]:
        rows = _one_pixel_rows(0.5, 0, 2, *readings, shift=2, until_success=until_success)
        return rows[f"first_{column}_step"].tolist()  # type: ignore[no-any-return]

    # The copy's claims, of steps 1 and 4, are asked about, and denied, at the reading of step 10;
    # there the model itself sees both.
    assert first("error", 10) == first("target", 10) == [10]
    # Denied at step 2, the copy claims an error again at the next step, rightly.
    assert first("error", 2, 4, 10) == [NEVER, 3, 3]
    assert first("target", 5, 8) == [NEVER, 6]
    assert first("target", 2, 5) == [NEVER, NEVER]


@pytest.mark.usefixtures("no_noise")
@pytest.mark.parametrize("until_success", [False, True])
def test_hits_that_the_copy_never_sees_are_seen_at_readings(until_success: bool) -> None:
    rows = _one_pixel_rows(0.5, 0, 2, 1, 2, 4, 5, 8, 10, shift=-20, until_success=until_success)
    assert rows["attack_prediction"].tolist() == [0] * 6
    assert rows["first_error_step"].tolist() == [-1, -1, 4, 4, 4, 4]
    assert rows["first_target_step"].tolist() == [-1, -1, -1, -1, 8, 8]
    expected = [0, 0, 1, 1, 2, 2]
    assert rows["prediction"].tolist() == expected
    solved = [8 / 64, (8 if until_success else 10) / 64]
    assert (rows["pixel_max"][4:] - 0.5).tolist() == solved


@pytest.mark.usefixtures("no_noise")
def test_a_later_claim_does_not_replace_what_the_model_saw_at_a_reading() -> None:
    """The copy is 2 steps late: it claims steps 5 and 8, which the readings had found before."""
    rows = _one_pixel_rows(0.5, 0, 2, 4, 7, 10, shift=-2)
    assert rows["first_error_step"].tolist() == [4, 4, 4]
    assert rows["first_target_step"].tolist() == [-1, 7, 7]


def test_point_and_prediction_of_a_claim_are_those_of_its_first_step() -> None:
    hits = Hits(torch.zeros(3, 1, 1, 1))
    for step, hit, predictions in ((1, [1, 0, 0], [5, 6, 7]), (2, [1, 1, 0], [8, 9, 7])):
        steps_B = torch.full((3,), step, dtype=torch.int32)
        points = torch.full((3, 1, 1, 1), float(step))
        hits.note(torch.tensor(hit).bool(), torch.tensor(predictions), steps_B, points)
    assert hits.step_B.tolist() == [1, 2, NEVER]
    assert hits.points.flatten().tolist() == [1, 2, 0]
    assert hits.predictions_B.tolist() == [5, 9, 0]
    assert hits.first_B.tolist() == [NEVER] * 3  # the judge was not asked yet


@pytest.mark.usefixtures("no_noise")
@pytest.mark.parametrize(("shift", "expected"), [(0, 3), (2, 20), (-20, 20)])
def test_without_a_reading_the_judge_is_asked_every_16_steps(shift: float, expected: int) -> None:
    """What the copy claimed at step 1 is denied at step 16; then it claims step 16 itself."""
    rows = _one_pixel_rows(0.5, 0, None, 20, shift=shift)
    assert rows["first_error_step"].tolist() == [16 if shift == 2 else expected]


# Against the plain attack that asks the model at every step.


def _slow(engine: Engine, batch: Batch, trajectory: Trajectory) -> Ints:
    """What the model says of every image after every step: (steps + 1, N)."""
    targets_N, at = _targets(batch), []
    for start in range(0, len(batch), TILE):
        index = np.arange(start, start + TILE) % len(batch)  # filled up with other images
        pgd = PGD(
            engine.logits,
            trajectory,
            to_unit(batch.images_BCHW[index]).to(memory_format=engine.memory),
            torch.from_numpy(batch.labels_B[index]),
            torch.from_numpy(targets_N[index]) if trajectory.goal is Goal.random_target else None,
        )
        draws = Key(CONDITIONS.seed, Purpose.EVAL_NOISE).uniform(batch.image_ids_B[index], SHAPE)
        attacked = pgd.begin(torch.from_numpy(draws).to(memory_format=engine.memory))
        predictions = [engine.judged(attacked).argmax(1).numpy()]
        for _ in range(trajectory.steps):
            pgd.run(attacked, 1)
            predictions.append(engine.judged(attacked).argmax(1).numpy())
        at.append(np.stack(predictions))
    return np.concatenate(at, axis=1)[:, : len(batch)]


def _targets(batch: Batch) -> Ints:
    return draw_targets(batch, CONDITIONS.seed, CONDITIONS.classes)


def _first(hit_SN: npt.NDArray[np.bool_]) -> Ints:
    return np.where(hit_SN.any(axis=0), hit_SN.argmax(axis=0), NEVER)


@pytest.fixture(scope="module")
def batch(tiny_engine: Engines, tiny_batch: Batches) -> Batch:
    """More than two tiles; most labels are what the model says."""
    batch = tiny_batch(40)
    labels_B = tiny_engine(2, TILE).judged(to_unit(batch.images_BCHW)).argmax(1).numpy()
    labels_B[::8] = 0
    return replace(batch, labels_B=labels_B)


@pytest.mark.parametrize("goal", [Goal.untargeted, Goal.random_target])
@pytest.mark.parametrize("readings", [(7,), (16, 20, 37), (33,)])
@pytest.mark.parametrize("loss", list(Loss))
def test_first_steps_equal_those_of_asking_the_model_at_every_step(
    readings: tuple[int, ...],
    goal: Goal,
    loss: Loss,
    tiny_engine: Engines,
    batch: Batch,
    trajectory: Trajectories,
) -> None:
    engine = tiny_engine(2, TILE, fold=False, channels_last=False)
    run = trajectory(*readings, goal=goal, loss=loss, epsilon_255=EPSILON_255[goal])
    rows = attack_images(engine, batch, run, CONDITIONS)
    predictions_SN = _slow(engine, batch, run)
    expected = {"first_error_step": _first(predictions_SN != batch.labels_B)}
    if goal is Goal.random_target:
        expected["first_target_step"] = _first(predictions_SN == _targets(batch))
    else:
        assert (rows["first_target_step"] == NEVER).all()
    for at, reading in enumerate(readings):
        here = {name: column[at :: len(readings)] for name, column in rows.items()}
        assert here["prediction"].tolist() == predictions_SN[reading].tolist()
        for name, first_N in expected.items():
            so_far_N = np.where(first_N <= reading, first_N, NEVER)
            assert here[name].tolist() == so_far_N.tolist(), name
    for first_N in expected.values():
        assert (first_N == NEVER).any()
        assert (first_N == 0).any()
        assert len({*first_N[first_N > 0].tolist()}) >= 3


@pytest.mark.parametrize("until_success", [False, True])
@pytest.mark.parametrize("dtype", list(Dtype))
def test_a_faster_copy_claims_only_steps_at_which_the_model_agrees(
    dtype: Dtype, until_success: bool, tiny_engine: Engines, batch: Batch, trajectory: Trajectories
) -> None:
    """It may come late where the two disagree within rounding."""
    engine = tiny_engine(2, TILE, dtype=dtype)
    run = replace(trajectory(45), until_success=until_success)
    rows = attack_images(engine, batch, run, CONDITIONS)
    hit_SN = _slow(engine, batch, run) == _targets(batch)
    first_N, claimed_N = _first(hit_SN), rows["first_target_step"]
    assert hit_SN[claimed_N, np.arange(40)][claimed_N != NEVER].all()
    assert (claimed_N[first_N != NEVER] >= first_N[first_N != NEVER]).all()
    assert (claimed_N == first_N).mean() >= 0.95
    assert (first_N > 0).sum() >= 5


class _Hasty(_OnePixel):
    """Sees the error three steps too early, and so the target one step too late."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + torch.tensor([0.0, 4.0, 0.0]) / 16


@pytest.mark.usefixtures("no_noise")
def test_an_image_at_its_target_is_wrong_though_an_earlier_error_was_refuted() -> None:
    trajectory = Trajectory(
        goal=Goal.random_target,
        loss=Loss.cross_entropy,
        epsilon=0.25,
        step_size=1 / 64,
        steps=10,
        readings=(10,),
    )
    batch = Batch(
        images_BCHW=np.full((1, 1, 1, 1), 0.5, np.float32),
        labels_B=np.array([0]),
        image_ids_B=np.array([7]),
    )
    engine = Engine(_OnePixel(), _Hasty(), PLAIN, folded=False)
    run = AttackRun(engine, batch, trajectory, Conditions(classes=3, seed=0, tile=2))
    run.targets.targets_N[:] = 2
    rows = run.run()
    assert rows["first_target_step"].tolist() == [7]
    assert rows["first_error_step"].tolist() == [7]
