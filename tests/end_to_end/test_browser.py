"""What a reader sees in a real browser: Figure 3 in MLflow's compare view, and the report's table.

Needs Debian's Chromium (`apt-get install -y chromium`); without it these tests fail.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browser import Page, browser
from test_report import ATTACK, drawn_rows, sweep_of, trial_of
from waiting import until

from s3ta_platform import publish
from s3ta_platform.compose import compose
from s3ta_platform.plan import make_plan
from s3ta_platform.publish import Publisher
from s3ta_platform.report import write_report
from s3ta_platform.results import TrialResult
from s3ta_platform.summaries import summarise
from s3ta_platform.tracking import compare_url, open_tracker

pytestmark = pytest.mark.sweeps

STEPS = (10, 100, 250, 1000)
MODELS = (("ResNet-8", None), ("S3TA-2", 2), ("S3TA-4", 4))


@pytest.fixture(scope="module")
def trials() -> list[TrialResult]:
    """Three models with rows made up: the more glances, the slower accuracy falls."""
    found = []
    for number, (name, unroll) in enumerate(MODELS):
        top1 = {n: 0.75 - (0.1 - 0.02 * number) * i for i, n in enumerate(STEPS)}
        rows = drawn_rows(number, 0.82, top1, dict.fromkeys(STEPS, 0.05))
        found.append(trial_of(name, unroll, number, rows=rows, gallery=None, history=[]))
    return found


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with browser(tmp_path / "profile") as page:
        page.resize(1400, 1000)
        yield page


@contextmanager
def served(root: Path) -> Iterator[str]:
    """The address of MLflow's pages, as `s3ta ui` starts them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "s3ta_platform", "ui", "--results", str(root)]
    with (root / "ui.log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port)], stdout=log, stderr=log, start_new_session=True
        )
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}/health"))
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


LINK = "[...document.querySelectorAll('a')].find(a => a.textContent.trim() === {name})"
CURVES = """JSON.stringify([...document.querySelectorAll('.js-plotly-plot')].map(plot => ({
    axis: plot.layout.xaxis.title.text,
    curves: plot.data.map(curve => [curve.name, [...curve.x], [...curve.y]]),
})))"""


def test_three_runs_in_mlflows_compare_view_are_figure_3(
    trials: list[TrialResult], page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link that a run prints, then one click: accuracy against attack steps, a line a model."""
    plan = make_plan(compose(Path("experiments/quickstart.yaml"), [f"results={tmp_path}/r"]))
    tracker = open_tracker(f"sqlite:///{tmp_path}/r/mlflow.db", None, "s3ta")
    publisher = Publisher(tracker, plan)
    for planned, result in zip(plan.trials, trials, strict=True):
        monkeypatch.setattr(publish, "collect_trial", lambda *_, found=result: found)
        publisher.start_trial(planned)
        publisher.finish_trial(planned, failed=False)
    assert not tracker.missing
    runs = [run for run in publisher.run_ids.values() if run]
    top1 = LINK.format(name=json.dumps(f"eval/{ATTACK}/top1"))
    with served(tmp_path / "r") as address:
        page.open(compare_url(address, tracker.experiment_id, runs))
        assert page.until(f"{top1} !== undefined")
        page.run(f"{top1}.click()")
        page.until("document.querySelector('.js-plotly-plot').data.length > 0")
        page.until(f"document.body.innerText.includes('S3TA-4 (eval/{ATTACK}/top1)')")
        (plot,) = json.loads(page.run(CURVES))
    assert plot["axis"] == "Step"
    drawn = {name: list(zip(x, y, strict=True)) for name, x, y in plot["curves"]}
    assert list(drawn) == [name for name, _ in MODELS]
    for summary in map(summarise, trials):
        values = [value for _, value in drawn[summary.name]]
        assert values == pytest.approx([reading.top1.value for reading in summary.readings])
        assert [steps for steps, _ in drawn[summary.name]] == list(STEPS)
    last = [drawn[name][-1][1] for name, _ in MODELS]
    assert last == sorted(last), "as in the paper, the more glances the higher"


def test_a_click_on_a_head_sorts_the_reports_table(
    trials: list[TrialResult], page: Page, tmp_path: Path
) -> None:
    """The largest first, then the smallest, then as it was; by numbers, not by letters."""
    page.open(write_report(sweep_of(trials), tmp_path / "report").as_uri())
    page.until("document.querySelector('table.sortable button') !== null")
    heads = page.run("[...document.querySelectorAll('.sortable button')].map(b => b.textContent)")
    column = heads.index("Clean top-1")
    rows = "[...document.querySelectorAll('.sortable tbody tr')]"
    values = f"{rows}.map(row => Number(row.cells[{column}].dataset.value))"
    before = page.run(values)
    names = page.run(f"{rows}.map(row => row.cells[0].textContent.trim())")
    assert names == [name for name, _ in MODELS]
    click = f"document.querySelectorAll('.sortable button')[{column}].click()"
    page.run(click)
    assert page.run(values) == sorted(before, reverse=True)
    page.run(click)
    assert page.run(values) == sorted(before)
    state = f"document.querySelectorAll('.sortable button')[{column}].parentElement.ariaSort"
    assert page.run(state) == "ascending"
    page.run(click)
    assert page.run(values) == before
    # 151 k would come after 1.2 M by its letters.
    page.run("document.querySelector('.sortable tbody tr').cells[1].dataset.value = '1200000'")
    page.run(f"document.querySelectorAll('.sortable button')[{heads.index('Parameters')}].click()")
    assert page.run(f"{rows}[0].cells[1].dataset.value") == "1200000"
    wide = page.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert wide, "the page itself is not scrolled sideways"
