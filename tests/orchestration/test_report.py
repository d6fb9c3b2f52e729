"""The report of a sweep: its numbers are counted by hand, its page stands alone."""

import csv
import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

import s3ta_platform
from s3ta.errors import UserError
from s3ta.statistics import wilson
from s3ta_platform.attack_names import attack_title, has_own_step_size
from s3ta_platform.costs import short_count
from s3ta_platform.curves import learning_curves
from s3ta_platform.drawing import look
from s3ta_platform.figures import (
    accuracy_against_steps,
    spread,
    success_against_steps,
)
from s3ta_platform.pictures import attention_maps, image_grids, overlay, telling_image
from s3ta_platform.report import write_report
from s3ta_platform.results import Gallery, SweepResult, TrialResult
from s3ta_platform.summaries import Share, summarise
from s3ta_platform.tables import csv_text, terminal_table

ATTACK = "pgd_targeted_eps25.5"
EPSILON = 0.1
NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
IMAGES = 512
SAMPLES = Path(s3ta_platform.__file__).parent / "samples/fashion_mnist/test.parquet"


def rows_of(
    attack: str, step: int, outcomes: list[tuple[int, int, int, int]], first_id: int = 0
) -> pa.Table:
    """Rows from (label, target, clean prediction, prediction), with ids counted up."""
    label, target, clean, prediction = (np.array(c, np.int32) for c in zip(*outcomes, strict=True))
    count = len(outcomes)
    return pa.table(
        {
            "image_id": np.arange(first_id, first_id + count),
            "label": label,
            "target": target,
            "clean_prediction": clean,
            "prediction": prediction,
            "attack_prediction": prediction,
            "quarantined": [""] * count,
            "correct": prediction == label,
            "fooled": prediction == target,
            "first_error_step": np.where(prediction == label, -1, step),
            "first_target_step": np.where(prediction == target, step, -1),
            "restart": np.zeros(count, np.int32),
            "step": np.full(count, step, np.int32),
            "attack": [attack] * count,
        }
    )


def drawn_rows(seed: int, clean: float, top1: dict[int, float], success: dict[int, float]) -> Any:
    """Plausible rows of `IMAGES` images, with about these shares at each step."""
    rng = np.random.default_rng(seed)
    labels = np.arange(IMAGES) % 10
    shift = rng.integers(1, 10, IMAGES)
    targets, other = (labels + shift) % 10, (labels + np.where(shift == 1, 2, 1)) % 10
    luck = rng.random(IMAGES)
    before = np.where(luck < clean, labels, other)
    tables = []
    for step, share in top1.items():
        after = np.where(luck < share, labels, other)
        after = np.where(luck > 1 - success[step], targets, after)
        columns = np.stack([labels, targets, before, after])
        tables.append(rows_of(ATTACK, step, [tuple(outcome) for outcome in columns.T.tolist()]))
    return pa.concat_tables(tables)


def photos(count: int) -> tuple[Any, Any]:
    """Real images in [0, 1], (count, 1, 28, 28), one per class, and their labels."""
    table = pq.read_table(SAMPLES)
    labels = np.asarray(table["label"])
    places = [int(np.flatnonzero(labels == label)[0]) for label in range(count)]
    files = [io.BytesIO(table["image"][place].as_py()) for place in places]
    images = [np.asarray(Image.open(file), np.float32)[None] / 255 for file in files]
    return np.stack(images), labels[places]


def peaked_maps(rng: np.random.Generator, shape: tuple[int, ...], away: float) -> Any:
    """Attention like a blob that wanders over the grid, each map adding up to 1."""
    count, steps, heads, height, width = shape
    y, x = np.mgrid[:height, :width]
    maps = np.empty(shape, np.float32)
    for image, step, head in np.ndindex(count, steps, heads):
        cy, cx = (height - 1) / 2 + rng.normal(0, 0.8, 2) + away * (head % 2) + step * 0.3
        blob = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (1.2 + head)) + 0.03
        maps[image, step, head] = blob / blob.sum()
    return maps


def gallery_of(predictions: list[int], unroll: int | None = None, heads: int = 2) -> Gallery:
    """As many images as predictions; labels 0, 1, 2, ... and targets one above them."""
    images, labels = photos(len(predictions))
    rng = np.random.default_rng(len(predictions))
    noise = EPSILON * np.sign(rng.normal(size=images.shape)).astype(np.float32)
    shape = (len(predictions), unroll or 1, heads, 7, 7)
    return Gallery(
        attack=ATTACK,
        steps=100,
        image_ids_B=100 + np.arange(len(predictions)),
        labels_B=labels,
        targets_B=(labels + 1) % 10,
        clean_predictions_B=labels,
        predictions_B=np.array(predictions),
        clean_BCHW=images,
        attacked_BCHW=np.clip(images + noise, 0, 1),
        clean_maps_BTQHW=peaked_maps(rng, shape, 0) if unroll else None,
        attacked_maps_BTQHW=peaked_maps(rng, shape, 2) if unroll else None,
    )


def history_of(speed: float, points: int = 16) -> list[dict[str, float]]:
    epochs = np.linspace(0, 4, points + 1)[1:]
    return [
        {
            "step": float(39 * epoch),
            "epoch": float(epoch),
            "loss": float(0.75 + 1.5 * np.exp(-speed * epoch)),
            "adversarial_top1": float(0.72 - 0.5 * np.exp(-speed * epoch)),
            "learning_rate": 0.1,
            "time": 10.0 * epoch,
        }
        for epoch in epochs
    ]


def trial_of(name: str, unroll: int | None, number: int, **changes: Any) -> TrialResult:
    shares = {10: 0.735 + 0.008 * number, 100: 0.70 + 0.01 * number}
    trial = TrialResult(
        key=f"{number:016x}",
        name=name,
        parameters=148_000 + 40_000 * (unroll or 0),
        unroll=unroll,
        settings={"model": {"kind": name, "unroll": unroll}, "train": {"epsilon_255": 25.5}},
        history=history_of(0.8 + 0.1 * number),
        planned=IMAGES,
        rows=drawn_rows(number, 0.79 - 0.01 * number, shares, {10: 0.08, 100: 0.11}),
        gallery=gallery_of([0, 2, 2, 3, 5, 6], unroll),
        run_id=f"{number}f00",
    )
    return replace(trial, **changes)


def sweep_of(trials: list[TrialResult], **changes: Any) -> SweepResult:
    sweep = SweepResult(
        name="quickstart",
        title="Does sequential attention hold up better under attack than average pooling?",
        claim="Sequential attention (S3TA) keeps more accuracy under a targeted PGD attack than a "
        "ResNet of the same strides with average pooling, and more attention steps keep more.",
        class_names=NAMES,
        images=IMAGES,
        trials=trials,
        places={"Results": "results/sweeps/quickstart", "Compare the runs": ".venv/bin/s3ta ui"},
    )
    return replace(sweep, **changes)


@pytest.fixture(scope="module")
def sweep() -> SweepResult:
    models = (("ResNet", None), ("S3TA-2", 2), ("S3TA-4", 4))
    return sweep_of([trial_of(name, unroll, n) for n, (name, unroll) in enumerate(models)])


@pytest.fixture(scope="module")
def folder(sweep: SweepResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the report of `sweep` was written."""
    return write_report(sweep, tmp_path_factory.mktemp("report")).parent


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text()


def small(sweep: SweepResult) -> SweepResult:
    """One trial with nothing to draw but its readings: quickly written."""
    return replace(sweep, trials=[replace(sweep.trials[1], gallery=None, history=[])])


def by_hand() -> TrialResult:
    """Four images: one stays right, one hits its target, one is wrong otherwise, one always was."""
    step_10 = [(0, 1, 0, 0), (1, 2, 1, 1), (2, 3, 2, 2), (3, 4, 5, 5)]
    step_100 = [(0, 1, 0, 0), (1, 2, 1, 2), (2, 3, 2, 7), (3, 4, 5, 4)]
    rows = pa.concat_tables([rows_of(ATTACK, 100, step_100), rows_of(ATTACK, 10, step_10)])
    return trial_of("by hand", None, 7, rows=rows, gallery=None, history=[])


def rendered(sweep: SweepResult, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(terminal_table(sweep))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def pixels(png: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_a_summary_equals_the_count_by_hand() -> None:
    summary = summarise(by_hand())
    assert summary.nominal == Share(3, 4)
    assert [(r.steps, r.top1, r.success) for r in summary.readings] == [
        (10, Share(3, 4), Share(0, 4)),
        (100, Share(1, 4), Share(2, 4)),
    ]


def test_what_happened_at_any_step_is_told_beside_what_holds_at_the_step() -> None:
    trial = by_hand()
    early = {  # the first image was wrong, and the third at its target, at step 50 only
        "first_error_step": [50, 100, 100, 10, -1, -1, -1, 10],
        "first_target_step": [-1, 100, 50, 100, -1, -1, -1, -1],
    }
    rows = trial.rows
    for name, steps in early.items():
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(steps))
    by_step = {r.steps: r for r in summarise(replace(trial, rows=rows)).readings}
    assert (by_step[100].any_error, by_step[100].any_target) == (Share(4, 4), Share(3, 4))
    assert (by_step[10].any_error, by_step[10].any_target) == (Share(1, 4), Share(0, 4))
    assert by_step[100].top1 == Share(1, 4)


def test_shards_in_any_order_give_the_same_summary() -> None:
    trial = by_hand()
    turned = trial.rows.take(np.random.default_rng(0).permutation(trial.rows.num_rows))
    assert summarise(replace(trial, rows=turned)) == summarise(trial)


def test_success_without_a_target_counts_only_images_that_were_right() -> None:
    outcomes = [(0, -1, 0, 3), (1, -1, 1, 1), (2, -1, 2, 2), (3, -1, 5, 5)]
    rows = rows_of("pgd_eps4", 200, outcomes)
    (reading,) = summarise(replace(by_hand(), rows=rows)).readings
    assert (reading.top1, reading.success) == (Share(2, 4), Share(1, 3))
    assert not reading.targeted


def test_an_image_counted_twice_is_refused() -> None:
    trial = by_hand()
    with pytest.raises(AssertionError, match=r"counted twice: pgd_targeted_eps25\.5 at step 100"):
        summarise(replace(trial, rows=pa.concat_tables([trial.rows, trial.rows.slice(0, 1)])))


def test_an_interval_is_wilsons() -> None:
    assert Share(366, 512).interval == wilson(366, 512)
    assert (Share(366, 512).percent, Share(366, 512).range) == ("71.5", "67.4–75.2")  # noqa: RUF001


def test_every_number_of_the_csv_can_be_counted_again() -> None:
    lines = list(csv.DictReader(io.StringIO(csv_text(sweep_of([by_hand()])))))
    columns = ("measure", "steps", "successes", "total")
    assert [tuple(line[column] for column in columns) for line in lines] == [
        ("nominal", "", "3", "4"),
        ("top1", "10", "3", "4"),
        ("success", "10", "0", "4"),
        ("any_error", "10", "1", "4"),
        ("any_target", "10", "0", "4"),
        ("top1", "100", "1", "4"),
        ("success", "100", "2", "4"),
        ("any_error", "100", "3", "4"),
        ("any_target", "100", "2", "4"),
    ]
    for line in lines:
        low, high = wilson(int(line["successes"]), int(line["total"]))
        assert float(line["value"]) == int(line["successes"]) / int(line["total"])
        assert (float(line["low"]), float(line["high"])) == pytest.approx((low, high), abs=1e-6)


def test_the_terminal_table_fits_and_shows_each_number_with_its_interval(
    sweep: SweepResult,
) -> None:
    text = rendered(sweep)
    assert max(map(len, text.splitlines())) <= 100
    for trial in sweep.trials:
        summary = summarise(trial)
        shares = [summary.nominal, *(s for r in summary.readings for s in (r.top1, r.success))]
        for share in shares:
            assert share.percent in text
            assert share.range in text


def test_many_readings_still_fit_in_a_hundred_columns() -> None:
    steps = (10, 100, 250, 1000, 10_000)
    rows = drawn_rows(1, 0.79, dict.fromkeys(steps, 0.7), dict.fromkeys(steps, 0.1))
    text = rendered(sweep_of([trial_of("S3TA-16", 16, 1, rows=rows)]))
    assert "10,000 steps" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_long_names_are_wrapped_and_no_number_is_cut(sweep: SweepResult) -> None:
    long = "S3TA-8, learning_rate=1e+30, warmup_epochs=0, augmentation=none"
    named = [replace(trial, name=f"{long}, seed={n}") for n, trial in enumerate(sweep.trials)]
    text = rendered(replace(sweep, trials=named, failed={long: "no number"}))
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    for trial in named:
        assert summarise(trial).nominal.range in text


def test_the_words_of_the_terminal_table_are_explained(sweep: SweepResult) -> None:
    text = " ".join(rendered(sweep).split())
    assert "512 test images; targeted PGD, ε = 25.5/255" in text
    for word in ("top-1: the share", "Unroll: how many glances", "Reading: a point"):
        assert word in text
    assert "Attack success: the share of images predicted as the class that the" in text
    assert "10 steps: a run of its own" in text


def test_a_failed_trial_shows_up_in_table_and_page(sweep: SweepResult, tmp_path: Path) -> None:
    failed = replace(small(sweep), failed={"S3TA-16 [bold]": "out of memory\nat line 3"})
    text = rendered(failed)
    assert re.search(r"S3TA-16 \[bold\] +failed", text)
    page = write_report(failed, tmp_path).read_text()
    assert "What failed" in page
    assert "out of memory\nat line 3" in page


def test_a_sweep_in_which_all_failed_still_gives_a_page(tmp_path: Path) -> None:
    page = write_report(sweep_of([], failed={"ResNet": "boom"}), tmp_path).read_text()
    assert "No model was finished" in page
    assert "boom" in page
    assert "<img" not in page


def test_the_page_stands_alone_and_holds_every_figure(folder: Path, page: str) -> None:
    assert "http://" not in page
    assert "https://" not in page
    assert page.count("<script") == page.count("<script>\n// Tables whose heads") == 1
    assert "<link" not in page
    sources = re.findall(r'src="([^"]*)"', page)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    figures = {path.stem for path in (folder / "figures").iterdir()}
    assert len(sources) == len(figures) == 9
    assert figures >= {f"accuracy_against_steps-{ATTACK}", f"success_against_steps-{ATTACK}"}
    assert figures >= {"image_grid", "learning_curves", "attention_maps-0000000000000002"}
    assert "attention_maps-0000000000000000" not in figures


def test_the_page_shows_the_numbers_that_the_rows_give(sweep: SweepResult, page: str) -> None:
    cells = re.findall(r"<b>([\d.]+)</b><small>([\d.]+–[\d.]+)</small>", page)  # noqa: RUF001
    expected = []
    for trial in sweep.trials:
        summary = summarise(trial)
        shares = [summary.nominal, *(s for r in summary.readings for s in (r.top1, r.success))]
        expected += [(share.percent, share.range) for share in shares]
    assert cells == expected
    assert "512 test images" in page
    assert "small sample" in page


def test_the_words_of_the_table_are_explained_right_below_it(page: str) -> None:
    for word in ("Top-1", "Clean", "Attack", "ε (epsilon)", "Reading", "Attack success", "Unroll"):
        explained = page.index(f"<dt>{word}</dt><dd>")
        assert page.index("<table") < explained < page.index("<figure>")


def test_names_cannot_inject_markup(sweep: SweepResult, tmp_path: Path) -> None:
    names = ("<script>alert('a & b')</script>", "$x_1$", *NAMES[2:])
    trial = replace(sweep.trials[1], name="<b>S3TA & co</b>", settings={"a": "<i>"})
    odd = replace(
        sweep, trials=[trial], class_names=names, claim="5 < 6 & 7", failed={"<u>": "<s>"}
    )
    page = write_report(odd, tmp_path).read_text()
    for raw in ("<script>alert", "<b>S3TA", "<i>a", "=<i>", "<u>", "<s>", "5 < 6"):
        assert raw not in page
    assert "&lt;b&gt;S3TA &amp; co&lt;/b&gt;" in page
    assert "5 &lt; 6 &amp; 7" in page


def test_a_report_written_again_replaces_the_old_one_whole(
    sweep: SweepResult, tmp_path: Path
) -> None:
    sweep = small(sweep)
    first = write_report(sweep, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    assert write_report(sweep, tmp_path) == first == tmp_path / "report.html"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before
    write_report(replace(sweep, title="Another title"), tmp_path)
    assert "<h1>Another title</h1>" in first.read_text()
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_folder_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the report to .*file"):
        write_report(sweep_of([]), tmp_path / "file")


def test_a_trial_without_gallery_maps_or_history_leaves_them_out(tmp_path: Path) -> None:
    bare = by_hand()
    assert image_grids([bare], NAMES) == []
    assert attention_maps(bare, NAMES) is None
    assert attention_maps(replace(bare, gallery=gallery_of([0, 1])), NAMES) is None
    assert learning_curves([bare]) is None
    page = write_report(sweep_of([bare], images=4), tmp_path).read_text()
    assert "Where the models look" not in page
    assert page.count("<img") == 2


def size_in_inches(png: bytes) -> tuple[float, float]:
    width, height = Image.open(io.BytesIO(png)).size
    return width / 150, height / 150


def test_the_figures_have_the_size_they_promise_and_something_on_them(sweep: SweepResult) -> None:
    summaries = [summarise(trial) for trial in sweep.trials]
    (grid,) = image_grids(sweep.trials, NAMES)
    maps = attention_maps(sweep.trials[2], NAMES)
    curves = learning_curves(sweep.trials)
    assert maps is not None
    assert curves is not None
    room = 0.75 + 6 * 0.075  # For the longest name, of six letters.
    sizes = {
        accuracy_against_steps(summaries, ATTACK): (5.35 + room, 4.3),
        success_against_steps(summaries, ATTACK): (5.35 + room, 4.3),
        curves: (7.55 + room, 3.8),
        grid: (1.42 + 3 * 2.22, 1.1 + 6 * 1.42),
        maps: (2.8 + 4 * 0.89 + 0.95, 1.08 + 3.9),
    }
    for drawing, size in sizes.items():
        assert size_in_inches(drawing.png) == pytest.approx(size, abs=0.01)
        assert pixels(drawing.png).std() > 15, drawing.name


def test_every_trial_of_sixteen_has_a_look_and_a_name_of_its_own(sweep: SweepResult) -> None:
    looks = {tuple(look(index).values()) for index in range(16)}
    assert len(looks) == len({(c, m) for c, m, _ in looks}) == 16
    many = [replace(sweep.trials[0], name=f"S3TA-{n}", key=str(n)) for n in range(16)]
    drawing = accuracy_against_steps([summarise(trial) for trial in many], ATTACK)
    assert size_in_inches(drawing.png)[1] == pytest.approx(1.3 + 16 * 0.19, abs=0.01)
    pages = [grid.name for grid in image_grids(many, NAMES)]
    assert pages == ["image_grid-1", "image_grid-2", "image_grid-3", "image_grid-4"]


def test_labels_are_spread_as_little_as_needed() -> None:
    assert spread([0.5, 0.1], 0.1, 0, 1) == [0.5, 0.1]
    assert spread([0.5, 0.5, 0.5], 0.1, 0, 1) == pytest.approx([0.4, 0.5, 0.6])
    assert spread([0.99, 1.0], 0.1, 0, 1) == pytest.approx([0.9, 1.0])
    assert spread([], 0.1, 0, 1) == []


def test_only_short_pgd_runs_are_marked_as_having_larger_steps(sweep: SweepResult) -> None:
    assert has_own_step_size(ATTACK, 10)
    assert not has_own_step_size(ATTACK, 16)
    assert not has_own_step_size("spsa_targeted_eps16", 10)
    summaries = [summarise(trial) for trial in sweep.trials]
    assert "Hollow markers (10 steps)" in accuracy_against_steps(summaries, ATTACK).caption


def test_the_attention_figure_picks_an_image_that_the_attack_fooled(sweep: SweepResult) -> None:
    gallery = gallery_of([0, 5, 3, 4], unroll=2)  # Targets are 1, 2, 3, 4: the last two are fooled.
    assert telling_image(gallery) == 2
    was_wrong = replace(gallery, clean_predictions_B=np.array([0, 1, 9, 3]))
    assert telling_image(was_wrong) == 3
    assert telling_image(gallery_of([0, 1])) == 0
    untargeted = replace(gallery, targets_B=np.full(4, -1))
    assert telling_image(untargeted) == 1
    trial = replace(sweep.trials[1], gallery=gallery)
    chosen = attention_maps(trial, NAMES)
    assert chosen == attention_maps(trial, NAMES, image=2)
    assert chosen != attention_maps(trial, NAMES, image=1)


def test_the_overlay_is_brightest_where_the_attention_is() -> None:
    map_HW = np.zeros((7, 7), np.float32)
    map_HW[1, 5] = 1
    shown = overlay(np.zeros((1, 28, 28), np.float32), map_HW, peak=1.0).sum(axis=2)
    row, column = np.unravel_index(shown.argmax(), shown.shape)
    assert (row // 24, column // 24) == (1, 5)


def test_colour_images_are_drawn_in_colour(sweep: SweepResult) -> None:
    gallery = gallery_of([0, 2])
    red = np.repeat(gallery.clean_BCHW, 3, axis=1) * np.array([1, 0, 0], np.float32)[:, None, None]
    trial = replace(sweep.trials[0], gallery=replace(gallery, clean_BCHW=red, attacked_BCHW=red))
    (grid,) = image_grids([trial], NAMES)
    image = pixels(grid.png).astype(int)
    assert ((image[..., 0] - image[..., 1]) > 200).mean() > 0.02


def test_the_difference_is_stretched_by_a_whole_factor(sweep: SweepResult) -> None:
    (grid,) = image_grids(sweep.trials, NAMES)
    assert "5 times as strong" in grid.caption


def test_attack_names_and_counts_are_readable() -> None:
    assert attack_title(ATTACK) == "targeted PGD, ε = 25.5/255"
    assert attack_title("pgd_eps4") == "PGD, ε = 4/255"
    assert attack_title("my_own") == "my own"
    counts = [short_count(n) for n in (912, 148_213, 999_700, 60_190_000)]
    assert counts == ["912", "148 k", "1.0 M", "60.2 M"]


def test_tables_do_not_wait_for_matplotlib() -> None:
    code = "import sys; sys.path[:0] = sys.argv[1:]; import s3ta_platform.tables as tables; "
    code += "print(tables.__file__, 'matplotlib' in sys.modules)"
    command = [sys.executable, "-c", code, *sys.path]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    assert run.stdout.endswith("tables.py False\n")
