"""A sweep as a self-contained HTML page, with figures as PNG and numbers as CSV beside it."""

import base64
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from s3ta.errors import UserError
from s3ta_platform.analyses import Found
from s3ta_platform.attack_names import attack_title, has_own_step_size
from s3ta_platform.costs import short_count
from s3ta_platform.curves import learning_curves
from s3ta_platform.drawing import DPI, Drawing
from s3ta_platform.figures import accuracy_against_steps, success_against_steps
from s3ta_platform.grid import axis_title, points, varied_axes
from s3ta_platform.heat import heat_maps
from s3ta_platform.pictures import attention_maps, image_grids
from s3ta_platform.remarks import remarks
from s3ta_platform.results import SweepResult, TrialResult
from s3ta_platform.summaries import (
    Share,
    Summary,
    reading_keys,
    summarise,
    worst_case_names,
)
from s3ta_platform.tables import csv_text, has_published
from s3ta_platform.tables import sections as table_sections

SIDE_BY_SIDE = 6
"""More readings than this get a line each instead of a column."""
SHOWN_AXES = ("model", "model.unroll")
"""What the table says of a model anyway."""
SMALL_SAMPLE = 1000
"""Below this many images the page calls its numbers indicative."""


def write_report(sweep: SweepResult, folder: Path, analyses: Sequence[Found] = ()) -> Path:
    """Write `report.html`, `table.csv`, `figures/` and `analyses/`; returns the page's path.

    The page appears last, so where it is the rest is too. Each file replaces an older one whole.
    """
    summaries = [summarise(trial) for trial in sweep.trials]
    heat = heat_maps(sweep.trials, summaries)
    numbers = _number_figures(sweep, summaries)
    pictures = image_grids(sweep.trials, sweep.class_names)
    maps = [attention_maps(trial, sweep.class_names) for trial in sweep.trials]
    attention = [drawing for drawing in maps if drawing is not None]
    curves = [_own_curve(trial, place) for place, trial in enumerate(sweep.trials)]
    every = [
        *heat,
        *numbers,
        *pictures,
        *attention,
        *(curve for curve in curves if curve is not None),
    ]
    sections: dict[str, Sequence[Any]] = {
        "heat": heat,
        "numbers": numbers,
        "pictures": pictures,
        "attention": attention,
        "curves": curves,
        "analyses": analyses,
    }
    page = _page(sweep, summaries, sections)
    try:
        for drawing in [*every, *(d for found in analyses for d in found.drawings)]:
            _replace(folder / "figures" / f"{drawing.name}.png", drawing.png)
            if drawing.pdf:
                _replace(folder / "figures" / f"{drawing.name}.pdf", drawing.pdf)
        for name, content in ((n, c) for found in analyses for n, c in found.files.items()):
            _replace(folder / "analyses" / name, content)
        _replace(folder / "table.csv", csv_text(sweep).encode())
        _replace(folder / "report.html", page.encode())
    except OSError as error:
        raise UserError(
            f"cannot write the report to {folder} ({error.strerror}): "
            "give a folder that can be written and has free space"
        ) from error
    return folder / "report.html"


def _number_figures(sweep: SweepResult, summaries: Sequence[Summary]) -> list[Drawing]:
    readings = Counter(attack for attack, steps in reading_keys(summaries) if steps > 0)
    # One point is no curve; but where there is nothing else, it is drawn.
    attacks = [attack for attack, count in readings.items() if count > 1] or list(readings)[:1]
    against = [
        draw(summaries, attack)
        for attack in attacks
        for draw, measure in (
            (accuracy_against_steps, attrgetter("top1")),
            (success_against_steps, attrgetter("success")),
        )
        if any(measure(r).total for s in summaries for r in s.readings if r.attack == attack)
    ]
    curves = learning_curves(sweep.trials)
    return [*against, *([curves] if curves else [])]


def _own_curve(trial: TrialResult, place: int) -> Drawing | None:
    return learning_curves([trial], name=f"learning_curve-{trial.key}", first_look=place)


def _page(
    sweep: SweepResult, summaries: Sequence[Summary], sections: Mapping[str, Sequence[Any]]
) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "attack_title": attack_title,
        "short_count": short_count,
        "embedded": _embedded,
        "bar": _bar,
        "settings": _settings,
        "axis_title": axis_title,
    }
    keys, worst = reading_keys(summaries), worst_case_names(summaries)
    return environment.get_template("report.html").render(
        sweep=sweep,
        summaries=summaries,
        keys=keys,
        many=len(keys) > SIDE_BY_SIDE or has_published(summaries) or bool(worst),
        by_reading=table_sections(summaries),
        last_readings=_last_readings(keys),
        axes=[axis for axis in varied_axes(sweep.trials) if axis not in SHOWN_AXES],
        points=points(sweep.trials),
        has_published=has_published(summaries),
        attacks=_grouped(keys),
        own_steps=sorted({steps for attack, steps in keys if has_own_step_size(attack, steps)}),
        untargeted=any(not r.targeted for s in summaries for r in s.readings),
        half_width=_widest(summaries),
        remarks=remarks(sweep.trials),
        small=sweep.images < SMALL_SAMPLE,
        **sections,
    )


def _grouped(keys: Sequence[tuple[str, int]]) -> dict[str, list[int]]:
    """The steps at which each attack was read."""
    return {attack: [n for name, n in keys if name == attack] for attack, _ in keys}


def _last_readings(keys: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Each attack at its largest number of steps."""
    return [(attack, max(steps)) for attack, steps in _grouped(keys).items()]


def _widest(summaries: Sequence[Summary]) -> float:
    """Half the widest interval of the table, in percentage points."""
    shares = [s.nominal for s in summaries]
    shares += [share for s in summaries for r in s.readings for share in (r.top1, r.success)]
    intervals = [share.interval for share in shares if share.total]
    return max((50 * (high - low) for low, high in intervals), default=0.0)


def _embedded(drawing: Drawing) -> dict[str, Any]:
    """What an <img> needs: its source, and its size in CSS pixels so that nothing jumps."""
    width, height = (int.from_bytes(drawing.png[at : at + 4], "big") for at in (16, 20))
    source = "data:image/png;base64," + base64.b64encode(drawing.png).decode()
    return {"src": source, "width": width * 96 // DPI, "height": height * 96 // DPI}


def _bar(share: Share) -> str:
    """The place of value and interval on a track of 100 %, as CSS variables."""
    low, high = share.interval
    return f"--low:{100 * low:.1f}%;--high:{100 * high:.1f}%;--value:{100 * share.value:.1f}%"


def _settings(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Nested settings as `train.epsilon_255=25.5` lines, the way an override is written."""
    lines: list[str] = []
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            lines += _settings(value, f"{prefix}{name}.")
        else:
            words = value if isinstance(value, str) else json.dumps(value, default=str)
            lines.append(f"{prefix}{name}={words}")
    return lines


def _replace(path: Path, content: bytes) -> None:
    """Write the file under another name first, so that nobody ever reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
