"""The masking verdict on models of which it is known, by the command and without Ray.

Small budgets on 64 images: a single image is 1.6 points, so they are stricter than real ones.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import masking_controls as controls
import pyarrow.parquet as pq
import pytest
from PIL import Image

from s3ta_platform.compose import groups_folder
from s3ta_platform.data import write_parquet

Command = Callable[..., Any]
MASKING = groups_folder() / "masking.yaml"
SMALL = [
    "masking.epsilon_255=12.75",  # 0.05, below the cliff where few steps no longer suffice
    "evaluate.images=64",
    "evaluate.probe.pairs=32",
    "evaluate.attacks.pgd_ce.restarts=1",
    "evaluate.attacks.pgd_margin.restarts=2",
    "evaluate.attacks.pgd_ce.readings=[20,40]",
    "evaluate.attacks.pgd_margin.readings=[20,40]",
    "evaluate.attacks.apgd_ce.readings=[20]",
    "evaluate.attacks.apgd_t.readings=[20]",
    "evaluate.attacks.apgd_t.targets=3",
    "evaluate.attacks.wide.readings=[40]",
    "evaluate.attacks.square.readings=[300]",
    "evaluate.attacks.spsa.readings=[4]",
    "evaluate.attacks.spsa.spsa_pairs=16",
    "evaluate.attacks.transfer.readings=[40]",
    "evaluate.attacks.random.readings=[40]",
    "cluster.executor=inline",
    "tracking.store=none",
]
ITSELF = "s3ta_platform.nearest_mean:nearest_mean"
OWN = [
    f"model.factory={ITSELF}",
    "model.mean=[0]",
    "model.std=[1]",
    "data.test=sample:fashion_mnist/test.parquet",
]
OTHERS = {
    "plain": ("resnet0", "s3ta0"),
    "resnet": ("plain0", "s3ta0"),
    "s3ta": ("resnet0", "plain0"),
}


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test images, as a file with named classes."""
    file = tmp_path_factory.mktemp("blobs") / "test.parquet"
    pixels, labels = controls.images(64, seed=7)
    encoded = []
    for image in pixels:
        png = io.BytesIO()
        Image.fromarray(image[0]).save(png, "PNG")
        encoded.append(png.getvalue())
    names = ["top left", "top right", "bottom left", "bottom right"]
    write_parquet(file, encoded, labels.tolist(), range(64), names, source="made by a test")
    return file


@pytest.fixture
def verdict(s3ta: Command, blobs: Path, tmp_path: Path) -> Callable[..., tuple[Any, Any]]:
    """(name of a control, its sources) -> how the command ended, and the stored verdict."""

    def call(name: str, sources: tuple[str, str]) -> tuple[Any, Any]:
        done = s3ta(
            "run",
            MASKING,
            f"model.factory=masking_controls:{name}",
            "model.mean=[0]",
            "model.std=[1]",
            f"data.test={blobs}",
            f"masking.sources=[{','.join(f'masking_controls:{s}' for s in sources)}]",
            f"results={tmp_path / name}",
            *SMALL,
        )
        files = list((tmp_path / name).glob("sweeps/masking/verdict_*.json"))
        return done, json.loads(files[0].read_text()) if files else None

    return call


def statuses(said: dict[str, Any]) -> dict[str, str]:
    return {check["key"]: check["status"] for check in said["checks"]}


def test_an_honest_model_with_attention_does_not_fail(verdict: Any) -> None:
    _require_honest("s3ta", 0, verdict)


@pytest.mark.sweeps
@pytest.mark.parametrize("kind", controls.KINDS)
@pytest.mark.parametrize("seed", controls.SEEDS)
def test_no_honest_model_fails_of_three_kinds_and_seeds(kind: str, seed: int, verdict: Any) -> None:
    _require_honest(kind, seed, verdict)


def _require_honest(kind: str, seed: int, verdict: Any) -> None:
    done, said = verdict(f"{kind}{seed}", OTHERS[kind])
    assert done.code == 0, done.output
    assert said["failed"] == []
    assert "fail" not in statuses(said).values()
    assert said["verdict"].startswith("No masking found by these checks.")
    assert "No masking found by these checks." in done.output
    assert statuses(said)["zero_margin"] == statuses(said)["rho"] == "pass"
    assert "images: 64 instead of 1,000" in said["verdict"]


@pytest.mark.parametrize(
    ("name", "sources", "failing"),
    [
        ("quantised", ("plain0", "s3ta0"), {"zero_margin", "rho"}),
        ("saturated", ("resnet0", "s3ta0"), {"goals"}),
        ("sharp", ("s3ta0", "resnet0"), {"black_box"}),
    ],
)
def test_a_model_whose_gradient_is_masked_is_caught(
    name: str, sources: tuple[str, str], failing: set[str], verdict: Any
) -> None:
    done, said = verdict(name, sources)
    assert done.code == 1, done.output
    assert failing <= set(said["failed"]), said["verdict"]
    assert "Signs of gradient masking" in done.output
    if name == "saturated":
        assert statuses(said)["zero_ce"] == "warn"
        assert statuses(said)["zero_margin"] == "pass"


def test_a_noisy_model_is_refused_with_a_word_on_expectations(verdict: Any, tmp_path: Path) -> None:
    done, said = verdict("noisy", ("plain0", "s3ta0"))
    assert done.code == 2
    assert "expectation over transformation" in done.output
    assert said is None


BRIEF = [
    *SMALL[1:],
    "evaluate.images=8",
    "evaluate.tile=8",
    "evaluate.attacks.apgd_t.targets=2",
    "evaluate.attacks.square.readings=[20]",
    "evaluate.attacks.spsa.readings=[2]",
]


def test_a_key_is_enough_to_judge_a_trained_model_and_nothing_is_computed_twice(
    tiny: Path, tmp_path: Path, s3ta: Command
) -> None:
    root = tmp_path / "r"
    results = f"results={root}"
    assert s3ta("run", tiny, results, "tracking.store=none").code == 0
    first, second = sorted(folder.name for folder in root.glob("trials/*"))

    done = s3ta("run", MASKING, f"checkpoint={second[:9]}", results, *BRIEF)
    assert done.code in (0, 1), done.output
    (file,) = root.glob("sweeps/masking/verdict_*.json")
    said = json.loads(file.read_text())
    assert file.name == f"verdict_{second}.json"
    trained = json.loads((root / "trials" / second / "trained.json").read_text())
    assert (said["trial"], said["model_digest"]) == (second, trained["model_digest"])
    assert said["masking"]["epsilon_255"] == 25.5, "that of its training"
    assert [source["trial"] for source in said["sources"]] == [first]
    assert done.code == bool(said["failed"])
    assert statuses(said)["transfer"] in ("inconclusive", "fail")
    assert said["verdict"] in " ".join(done.output.split())

    # The transfer attack is the other model's: its own answers, at the points that it leads to.
    rows = [pq.read_table(f) for f in root.glob("evaluations/*.parquet")]
    abouts = [json.loads(table.schema.metadata[b"s3ta"]) for table in rows]
    other = json.loads((root / "trials" / first / "trained.json").read_text())["model_digest"]
    sources = {a["attack"]: a["key_parts"]["trajectory"]["source"] for a in abouts}
    led = {attack for attack, source in sources.items() if source == other}
    assert led == {"transfer_untargeted_margin_step0.125_until_success_eps25.5"}
    assert set(sources.values()) == {"", other}

    before = {f: f.stat().st_mtime_ns for f in root.glob("*/*.parquet")}
    assert len({f.parent.name for f in before}) == 2, "evaluations and probes"
    path = f"checkpoint={root}/trials/{second}/checkpoints"
    again = s3ta("run", MASKING, path, "results=elsewhere", *BRIEF)
    assert "Nothing to compute" in again.output, again.output
    assert json.loads(file.read_text()) == said
    assert {f: f.stat().st_mtime_ns for f in root.glob("*/*.parquet")} == before
    assert s3ta("verify", root).code == 0
    probe = next(root.glob("probes/*.parquet"))
    content = bytearray(probe.read_bytes())
    content[content.index(b'"key_parts"') + 3] ^= 1  # in what it says of itself, not in its rows
    probe.write_bytes(content)
    damaged = s3ta("verify", root)
    assert damaged.code == 1
    assert probe.name in damaged.output


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], ["checkpoint has no value", "checkpoint=KEY", "model.factory"]),
        (["checkpoint=nosuch"], ["'nosuch' names no evaluated model", "Trained are: none"]),
        (["checkpoint=a", "model.unroll=2"], ["'model.unroll=2'", "Leave it out"]),
        ([*OWN, "evaluate.stop_when.halfwidth=0.1"], ["halfwidth", "same images"]),
        ([*OWN, "evaluate.attacks.pgd_ce.loss=margin"], ["pgd_ce.loss", "cross_entropy there"]),
        ([*OWN, "evaluate.attacks.wide.epsilon_255=16"], ["wide.epsilon_255", "127.5"]),
        ([*OWN, "masking.sources=[a]"], ["'a' names no evaluated model"]),
        ([*OWN, f"masking.sources=[{ITSELF}]"], ["names the attacked model itself"]),
    ],
)
def test_a_mistake_is_named_with_its_remedy(
    overrides: list[str], words: list[str], tmp_path: Path, s3ta: Command
) -> None:
    done = s3ta("run", MASKING, *overrides, f"results={tmp_path}/r", "cluster.executor=inline")
    assert done.code == 2
    assert [word for word in words if word not in done.output] == [], done.output
    assert not list(tmp_path.glob("r/evaluations/*"))
