"""A comparison as a table for the terminal, with the words that explain it, and as CSV."""

import csv
import io

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from s3ta_platform.attack_names import attack_title
from s3ta_platform.compare import Comparison, Endpoint

COLUMNS = (
    "a b attack steps measure images share_a share_b only_a only_b "
    "difference low high p_mcnemar p_holm"
)
MINUS = "\N{MINUS SIGN}"
MEASURES = {
    "top1": "top-1",
    "success": "success",
    "any_error": "wrong at any step",
    "any_target": "target hit at any step",
}
CAVEAT = "It compares two networks; a claim about an architecture compares seeds, paired."


def comparison_table(comparison: Comparison) -> Table:
    """One line per endpoint, in a section per attack."""
    table = Table(
        title=Text(f"{comparison.a.name} (A) and {comparison.b.name} (B)", style="bold"),
        title_justify="left",
        caption=_caption(comparison),
        caption_justify="left",
        caption_style="",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("measure")  # in a narrow terminal it is wrapped, never the numbers
    for title in ("A", "B", "only A", "only B", f"A {MINUS} B", "p", "p, Holm"):
        table.add_column(title, justify="right", no_wrap=True)
    attack = None
    for endpoint, p_holm in zip(comparison.endpoints, comparison.adjusted, strict=True):
        if endpoint.attack != attack:
            attack = endpoint.attack
            table.add_section()
            table.add_row(Text(attack_title(attack) if attack else "clean", style="bold"))
        table.add_row(*_cells(endpoint, p_holm))
    return table


def _cells(e: Endpoint, p_holm: float) -> list[Text]:
    words = MEASURES[e.measure] + (f", {e.steps:,} steps" if e.attack else "")
    d, low, high = (100 * number for number in e.difference)
    return [
        Text(words),
        Text(f"{100 * e.of_a / e.images:.1f}", style="bold"),
        Text(f"{100 * e.of_b / e.images:.1f}", style="bold"),
        Text(f"{e.only_a:,}"),
        Text(f"{e.only_b:,}"),
        Text.assemble((_signed(d), "bold"), (f"\n{_signed(low)} to {_signed(high)}", "dim")),
        Text(_p(e.p)),
        Text(_p(p_holm)),
    ]


def _signed(points: float) -> str:
    """`+1.5`, and 0.0 without a sign."""
    text = f"{points:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def _p(p: float) -> str:
    return "<0.0001" if p < 1e-4 else f"{p:.4f}"


def _caption(comparison: Comparison) -> Text:
    any_step = any(e.measure.startswith("any_") for e in comparison.endpoints)
    images, count = comparison.endpoints[0].images, len(comparison.endpoints)
    lines = [
        f"A  {comparison.a}",
        f"B  {comparison.b}",
        f"Both met the same {images:,} images, from the same starts and with the same targets.",
        "In percent. top-1: classified right; success: predicted as the attacker's class.",
        *(
            ["At any step: the attack stops at its goal, so only that is known."]
            if any_step
            else []
        ),
        f"only A: images that count for A and not for B. A {MINUS} B: in percentage points,",
        "with its 95 % interval. p: exact McNemar test of only A against only B;",
        f"Holm: adjusted for all {count} lines.",
        CAVEAT,
    ]
    return Text("\n".join(lines))


def csv_text(comparison: Comparison) -> str:
    """Every number, one endpoint per line; shares, not percent."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS.split())
    for e, p_holm in zip(comparison.endpoints, comparison.adjusted, strict=True):
        where = (e.attack, e.steps) if e.attack else ("", "")
        shares = (e.of_a / e.images, e.of_b / e.images)
        numbers = (*(f"{s:.6f}" for s in shares), e.only_a, e.only_b)
        ends = (f"{number:.6f}" for number in e.difference)
        trials = (comparison.a.trial, comparison.b.trial)
        p_values = (f"{e.p:.6g}", f"{p_holm:.6g}")
        writer.writerow((*trials, *where, e.measure, e.images, *numbers, *ends, *p_values))
    return out.getvalue()
