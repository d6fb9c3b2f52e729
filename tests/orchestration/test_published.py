"""The paper's numbers stand beside ours: the right ones, in the right rows."""

import io
import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console
from test_report import by_hand, rows_of, sweep_of

from s3ta.settings import AttackSettings, Goal, Gradient, Loss, Rule
from s3ta_platform.published import NOTHING, SYSTEMS, TARGETED
from s3ta_platform.report import write_report
from s3ta_platform.results import SweepResult, TrialResult
from s3ta_platform.summaries import summarise
from s3ta_platform.tables import has_published, sections, terminal_table

TABLE_1 = """
ResNet-152     | 70.66 | 53.48/7.63 | 36.91/43.48 | 32.50/50.93 | 29.5/55.84
S3TA-2         | 72.30 | 55.08/9.06 | 40.13/40.31 | 36.56/46.56 | 33.97/50.40
S3TA-4         | 72.48 | 56.78/9.10 | 42.54/39.37 | 40.00/44.33 | 37.99/47.50
S3TA-8         | 72.14 | 56.02/9.50 | 42.63/39.06 | 40.17/44.01 | 38.48/47.09
S3TA-16        | 72.54 | 57.45/9.33 | 44.19/38.83 | 40.71/44.82 | 38.70/48.16
ResNet-152-30  | 63.62 | 53.30/6.56 | 39.56/34.62 | 37.56/38.68 | 36.18/41.37
DENOISE        | 66.02 | 56.33/5.00 | 45.84/27.36 | 44.19/30.66 | 43.39/32.54
S3TA-16-30     | 64.55 | 55.08/3.79 | 47.18/21.87 | 46.65/23.52 | 46.11/24.91
"""
PGD = AttackSettings(epsilon_255=16, readings=[1000])


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_has_a_file_and_a_small_mirror_of_it(system: str) -> None:
    folder = Path("experiments/paper")
    rows = [f for f in folder.glob("table*.yaml") if f"published: {system}\n" in f.read_text()]
    assert rows
    assert all((folder.parent / "small" / file.name).is_file() for file in rows)


def test_table_1_is_the_papers() -> None:
    for line in TABLE_1.strip().splitlines():
        name, nominal, *pairs = (cell.strip() for cell in line.split("|"))
        system = SYSTEMS[name]
        assert system.nominal == float(nominal)
        for steps, pair in zip((10, 100, 250, 1000), pairs, strict=True):
            assert system.at(PGD.name, steps) == tuple(map(float, pair.split("/")))


@pytest.mark.parametrize(
    ("name", "at_4", "at_16"),
    [
        ("ResNet-152", 39.7, 6.3),
        ("DENOISE", 38.9, 7.5),
        ("LLR", 47.0, 6.1),
        ("S3TA-16-30", 46.75, 9.8),
    ],
)
def test_table_2_stands_beside_both_readings_of_it(name: str, at_4: float, at_16: float) -> None:
    for changes in ({}, {"loss": Loss.margin, "rule": Rule.adam}):
        for epsilon, top1 in ((4, at_4), (16, at_16)):
            attack = AttackSettings(
                goal=Goal.untargeted,
                epsilon_255=epsilon,
                readings=[200],
                **changes,  # type: ignore[arg-type]
            )
            assert SYSTEMS[name].at(attack.name, 200) == (top1, None)
            assert SYSTEMS[name].at(attack.name, 100) == (None, None)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("ResNet-152", (61.90, 2.20)), ("DENOISE", (63.70, 1.90)), ("S3TA-16", (59.60, 1.90))],
)
def test_table_3_is_spsa_after_100_steps(name: str, numbers: tuple[float, float]) -> None:
    spsa = AttackSettings(epsilon_255=16, readings=[100], gradient=Gradient.spsa)
    assert SYSTEMS[name].at(spsa.name, 100) == numbers
    assert SYSTEMS["S3TA-16-30"].at(spsa.name, 100) == (None, None)


def test_no_number_stands_beside_another_attack_epsilon_or_step() -> None:
    system = SYSTEMS["ResNet-152"]
    assert system.at(TARGETED, 1000) != (None, None)
    others = [
        (AttackSettings(epsilon_255=8).name, 1000),
        (AttackSettings(epsilon_255=16, momentum=1.0).name, 1000),
        (AttackSettings(epsilon_255=16, loss=Loss.dlr).name, 1000),
        (TARGETED, 500),
    ]
    assert {system.at(*other) for other in others} == {(None, None)}
    assert NOTHING.at(TARGETED, 1000) == (None, None)
    assert SYSTEMS["LLR"].nominal is None


def trial(name: str, published: str, right: int) -> TrialResult:
    """Of four images so many are right after 100 and 500 steps; none hits its target."""
    rows = [
        rows_of(TARGETED, steps, [(0, 2, 0, 0 if i < right else 1) for i in range(4)])
        for steps in (100, 500)
    ]
    return replace(by_hand(), key=name, name=name, published=published, rows=pa.concat_tables(rows))


@pytest.fixture
def sweep() -> SweepResult:
    return sweep_of([trial("mine", "S3TA-16", 3), trial("other", "", 1)])


def test_the_terminal_has_the_papers_column_beside_ours(sweep: SweepResult) -> None:
    console = Console(width=110, file=io.StringIO(), color_system=None)
    console.print(terminal_table(sweep))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    section = text.split("targeted PGD, ε = 16/255, 100 steps")[1]
    after_100, after_500 = section.split("targeted PGD, ε = 16/255, 500 steps")
    numbers = re.findall(r"[\d.]+", after_100.split("mine")[1].split("other")[0].partition(" k")[2])
    # ours with its interval, the paper's; success with its interval, the paper's
    assert (numbers[0], numbers[3], numbers[4], numbers[7]) == ("75.0", "44.19", "0.0", "38.83")
    assert "44.19" not in after_500
    clean = text.split("targeted PGD, ε = 16/255, 100 steps")[0]
    assert "72.54" in clean
    assert "paper: what the paper publishes for this system" in " ".join(text.split())


def test_the_report_has_the_papers_number_in_the_same_cell(
    sweep: SweepResult, tmp_path: Path
) -> None:
    page = write_report(sweep, tmp_path).read_text()
    cells = re.findall(
        r"<b>([\d.]+)</b><small>[^<]*</small><i[^>]*></i><small>paper ([\d.]+)", page
    )
    # the table of models (clean, 500 steps), then that of readings
    assert cells == [("100.0", "72.54"), ("100.0", "72.54"), ("75.0", "44.19"), ("0.0", "38.83")]


def test_without_a_system_of_the_paper_there_is_no_such_column() -> None:
    ours = [summarise(trial("other", "", 1))]
    assert not has_published(ours)
    (clean, *_) = sections(ours)
    assert clean.lines[0].paper == (None, None)
