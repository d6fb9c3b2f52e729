"""A model that was not trained here: found, wrapped, recognised by what it is, refused if unfit."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from s3ta.draws import Key, Purpose
from s3ta.errors import UserError
from s3ta.settings import ModelSettings
from s3ta_platform.compose import compose, groups_folder
from s3ta_platform.data import ParquetImages
from s3ta_platform.foreign import UnitImages, foreign_digest, has_digest, load_factory
from s3ta_platform.models import load_model
from s3ta_platform.nearest_mean import TRAIN, nearest_mean
from s3ta_platform.plan import Plan, TrialState, make_plan, trial_state
from s3ta_platform.probe import ask
from s3ta_platform.show_plan import show_plan

SHAPE, CLASSES = (1, 4, 4), 3
NETS = """
import torch
from torch import nn

def net() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.linspace(-1, 1, p.numel()).view(p.shape).sin())
    return model

def same() -> nn.Module:
    return net()

def other() -> nn.Module:
    return nn.Sequential(net(), nn.LeakyReLU(0.5))

def drawn() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

def wide() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 11))

def state() -> dict:
    return net().state_dict()

def broken() -> nn.Module:
    raise FileNotFoundError("weights.pt is not here")

made = net()
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a package `theirs`, as if installed."""
    package = tmp_path / "project" / "theirs"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(NETS)
    (package / "needy.py").write_text("import not_installed_anywhere\n")
    (package / "typo.py").write_text("def net(:\n")
    (package / "script.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(str(package.parent))
    for name in [name for name in sys.modules if name.partition(".")[0] == "theirs"]:
        monkeypatch.delitem(sys.modules, name)
    return package.parent


def own(factory: str, **settings: list[float]) -> ModelSettings:
    given = {"mean": [0.0], "std": [1.0], **settings}
    return ModelSettings(factory=factory, **given)  # type: ignore[arg-type]


class Net(nn.Module):
    """A small network with a switch in its code: three classes, two layers."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.first, self.last, self.change = nn.Linear(16, 8), nn.Linear(8, 3), change
        for index, p in enumerate(self.parameters()):
            drawn = Key(0, Purpose.WEIGHTS).uniform([index], tuple(p.shape))[0]
            p.data = torch.from_numpy(2 * drawn - 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.change(self.first(x.flatten(1))))  # type: ignore[no-any-return]


def digest(model: nn.Module, **settings: list[float]) -> str:
    return foreign_digest(model, SHAPE, CLASSES, own("a:b", **settings))


def test_images_reach_a_model_in_its_range_normalised() -> None:
    wrapped = UnitImages(
        nn.Identity(), mean=[100.0, 120.0, 90.0], std=[50.0, 60.0, 70.0], input_range=[0, 255]
    )
    bytes_CHW = np.arange(3 * 4 * 5).reshape(3, 4, 5) * 4 % 256
    expected = (bytes_CHW - [[[100.0]], [[120.0]], [[90.0]]]) / [[[50.0]], [[60.0]], [[70.0]]]
    found = wrapped(torch.from_numpy(bytes_CHW).float()[None] / 255)[0]
    assert found.numpy() == pytest.approx(expected, abs=1e-5)
    centred = UnitImages(nn.Identity(), mean=[0.0], std=[1.0], input_range=[-1, 1])
    assert centred(torch.tensor([[[[0.0, 0.5, 1.0]]]])).flatten().tolist() == [-1, 0, 1]


def test_a_factorys_model_is_as_it_gives_it() -> None:
    model = load_factory(own("theirs.nets:net", mean=[0.5], std=[0.25]))
    import theirs.nets  # type: ignore[import-not-found]

    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model(images), theirs.nets.net()((images - 0.5) / 0.25))
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (
            "thiers.nets:net",
            ["'thiers.nets:net'", "no module 'thiers'", "every worker", "`pip install -e .`"],
        ),
        ("theirs.nats:net", ["no module 'theirs.nats'", "`pip install -e .`"]),
        ("theirs.nets:nett", ["nets.py has no function 'nett'", "mean theirs.nets:net?"]),
        (
            "theirs.needy:net",
            ["No module named 'not_installed_anywhere'", "Install", "pip install"],
        ),
        ("theirs.typo:net", ["importing theirs.typo failed with SyntaxError", "Correct"]),
        ("theirs.script:net", ["failed with SystemExit: 3", "Correct theirs.script"]),
        ("theirs.nets:broken", ["raised FileNotFoundError: weights.pt is not here", "Call it"]),
        ("theirs.nets:state", ["returned an object of type OrderedDict", "nn.Module", "Return"]),
        ("theirs.nets:made", ["made in", "type Sequential: it must be a function", "Write one"]),
        ("theirs.nets:wide", ["gives 11 logits", "there are 10 classes", "Use the data set"]),
    ],
)
def test_what_gives_no_model_is_refused_with_the_remedy(
    tmp_path: Path, factory: str, words: list[str]
) -> None:
    with pytest.raises(UserError) as refused:
        planned(tmp_path, f"model.factory={factory}")
    message = str(refused.value)
    assert [w for w in words if w not in message] == [], message
    assert "\n" not in message


def test_a_digest_names_the_model_and_its_preprocessing() -> None:
    first = digest(Net())
    assert digest(Net()) == first
    assert len(bytes.fromhex(first)) == 32
    nudged = Net()
    nudged.first.weight.data[3, 5] = torch.nextafter(nudged.first.weight[3, 5], torch.tensor(2.0))
    others = [
        digest(nudged),
        digest(Net(), mean=[0.5]),
        digest(Net(), std=[0.5]),
        digest(Net(), input_range=[0.0, 255.0]),
    ]
    assert len({first, *others}) == 5


class RoundedThrough(torch.autograd.Function):
    """Rounds like `round`, but hands gradients through."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


@pytest.mark.parametrize(
    "change", [torch.relu, torch.Tensor.neg, lambda x: x * 1.01, lambda x: x + 0.01]
)
def test_a_digest_moves_with_code_that_changes_the_logits(
    change: Callable[[Tensor], Tensor],
) -> None:
    assert digest(Net(change)) != digest(Net())


def test_a_digest_moves_with_code_that_changes_only_gradients() -> None:
    shut, through = Net(torch.round), Net(RoundedThrough.apply)
    images = torch.rand(3, *SHAPE)
    assert torch.equal(shut(images), through(images))
    assert digest(shut) != digest(through)


def test_a_digest_is_the_same_in_another_process(project: Path) -> None:
    settings = own("theirs.nets:net")
    script = (
        "from s3ta.settings import ModelSettings\n"
        "from s3ta_platform.foreign import foreign_digest, load_factory\n"
        "s = ModelSettings(factory='theirs.nets:net', mean=[0.0], std=[1.0])\n"
        "print(foreign_digest(load_factory(s), (1, 28, 28), 10, s))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(project), "PYTHONHASHSEED": "5"},
        capture_output=True,
        text=True,
        check=True,
    )
    here = foreign_digest(load_factory(settings), (1, 28, 28), 10, settings)
    assert done.stdout.strip() == here


def test_last_bits_of_another_machine_are_no_other_model() -> None:
    settings = own("a:b")
    names = set()
    for place in range(30):  # some of these lie beside a border of the digits
        factor = 1 + 0.0007 * place
        here = foreign_digest(Net(lambda x, f=factor: x * f), SHAPE, CLASSES, settings)  # type: ignore[misc]
        for sign in (-1, 1):
            there = Net(lambda x, f=factor * (1 + sign * 2e-5): x * f)  # type: ignore[misc]
            names.add(foreign_digest(there, SHAPE, CLASSES, settings) == here)
            assert has_digest(here, there, SHAPE, CLASSES, settings)
    assert names == {True, False}, "without a tolerance some would be taken for another model"
    assert not has_digest(here, Net(lambda x: x * 1.2), SHAPE, CLASSES, settings)


def noisy(x: Tensor) -> Tensor:
    return x + 0.01 * torch.rand_like(x)


class Says(nn.Module):
    """Returns what a function makes of the images."""

    def __init__(self, forward: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.answer = forward

    def forward(self, x: Tensor) -> object:
        return self.answer(x)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Net(noisy), ["answers are random", "expectation over transformation", "deterministic"]),
        (nn.Linear(5, 3), ["raised RuntimeError", "(4, 1, 4, 4)", "data.image_size"]),
        (Net(torch.Tensor.detach), ["have no gradient", "Remove torch.no_grad()"]),
        (Says(lambda x: x.new_ones(4, 3)), ["have no gradient"]),
        (Net(torch.log), ["not all finite", "must be"]),
        (Net(lambda x: (x - x).sqrt()), ["gradient of the model's logits is not finite"]),
        (Says(lambda x: {"logits": x}), ["returned an object of type dict", "Wrap it"]),
        (Says(lambda x: x), ["of shape (4, 1, 4, 4) for 4 images", "(4, classes)"]),
        (Says(lambda x: x.flatten(1)), ["gives 16 logits", "there are 3 classes"]),
        (Says(lambda x: x.flatten(1).argmax(1)), ["int64 of shape (4,)"]),
    ],
)
def test_answers_that_cannot_be_attacked_are_refused(model: nn.Module, words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        ask(model, SHAPE, CLASSES)
    assert [w for w in words if w not in str(refused.value)] == [], str(refused.value)


HEAD = """
defaults:
  - schema
  - attack@evaluate.attacks.pgd: small_pgd
  - tracking: none
  - _self_
name: mine
model: {factory: "theirs.nets:net", mean: [0.0], std: [1.0]}
data: {test: "sample:fashion_mnist/test.parquet"}
evaluate: {images: 40, gallery_images: 2, attacks: {pgd: {readings: [2, 20]}}}
"""


def planned(folder: Path, *overrides: str) -> Plan:
    file = folder / "mine.yaml"
    file.write_text(HEAD)
    return make_plan(compose(file, [f"results={folder}/r", *overrides]))


def test_a_plan_without_training_is_ready_and_writes_nothing(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    (trial,) = plan.trials
    assert (trial.name, trial.steps) == ("net", 0)
    assert trial.ready is not None
    assert trial.ready.parameters == 784 * 10 + 10
    state = trial_state(plan.storage, trial)
    assert state == replace(state, trained=trial.ready, step=0, shards_done=0, gallery_done=False)
    assert isinstance(state, TrialState)
    assert state.shards > 0
    assert not state.complete
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("train.epochs=3", True),
        ("train.seed=3", True),
        ("data.train=nowhere.parquet", True),
        ("evaluate.images=20", True),
        ("cluster.threads=2", True),
        ("model.mean=[0.1]", False),
        ("model.input_range=[0,255]", False),
        ("model.factory=theirs.nets:same", True),
        ("model.factory=theirs.nets:other", False),
    ],
)
def test_only_the_model_decides_the_key(tmp_path: Path, override: str, same: bool) -> None:
    first, other = planned(tmp_path).trials[0], planned(tmp_path, override).trials[0]
    assert (first.key == other.key) is same


def test_a_plan_says_that_nothing_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    show_plan(Console(width=200), planned(tmp_path))
    printed = capsys.readouterr().out
    assert "no training: theirs.nets:net" in printed
    assert "after training" not in printed


def test_without_a_factory_training_images_are_needed(tmp_path: Path) -> None:
    words = "data.train has no value: .* on the command line as data.train=VALUE"
    with pytest.raises(UserError, match=words):
        planned(tmp_path, "model.factory=null")


def test_a_worker_takes_only_the_planned_model(tmp_path: Path) -> None:
    plan = planned(tmp_path, "model.factory=theirs.nets:drawn")
    (trial,) = plan.trials
    assert trial.ready is not None
    with pytest.raises(UserError, match=r"another model than the one .* torch\.manual_seed"):
        load_model(trial.evaluation(trial.ready), plan.storage)
    plan = planned(tmp_path)
    (trial,) = plan.trials
    assert trial.ready is not None
    model = load_model(trial.evaluation(trial.ready), plan.storage)
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(model(images), load_factory(own("theirs.nets:net"))(images))


def test_the_example_is_the_nearest_mean() -> None:
    train = ParquetImages(TRAIN, channels=1)
    pixels, labels = train.read(train.ids_N)
    flat = pixels.reshape(len(pixels), -1) / 255.0
    means = [flat[labels == c].mean(axis=0) for c in range(10)]
    test = ParquetImages("sample:fashion_mnist/test.parquet", channels=1)
    images, truth = test.read(test.ids_N[:500])
    unit = images.reshape(500, -1) / 255.0
    distances = np.stack([np.square(unit - m).sum(axis=1) for m in means], axis=1)
    with torch.no_grad():
        logits = nearest_mean()(torch.from_numpy(images).float() / 255).double().numpy()
    nearest, second = np.sort(distances, axis=1)[:, :2].T
    clear = second - nearest > 1e-4
    assert clear.mean() > 0.99
    assert (logits.argmax(axis=1) == distances.argmin(axis=1))[clear].all()
    gaps = logits - logits[:, :1] + (distances - distances[:, :1]) / 10
    assert np.abs(gaps).max() < 1e-4
    assert 0.6 < (logits.argmax(axis=1) == truth).mean() < 0.75


def test_the_shipped_experiment_plans_without_training_images(tmp_path: Path) -> None:
    composed = compose(groups_folder() / "evaluate.yaml", [f"results={tmp_path}/r"])
    assert composed.experiment.data.train == ""
    (trial,) = make_plan(composed).trials
    assert trial.ready is not None
    assert trial.shown_settings["model"] == {
        "factory": "s3ta_platform.nearest_mean:nearest_mean",
        "input_range": [0.0, 1.0],
        "mean": [0.0],
        "std": [1.0],
    }
    assert "train" not in trial.shown_settings
