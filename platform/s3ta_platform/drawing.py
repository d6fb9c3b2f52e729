"""What all figures share: a sheet addressed in inches, one style, the looks of the lines.

Everything is drawn on `Figure` objects, without pyplot's global state.
"""

import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from s3ta_platform.results import Array

DPI = 150
INK, FAINT, RULE = "#1a1a1a", "#6b6b6b", "#d9d9d9"
# Okabe and Ito's palette without its yellow, which is lost on white: safe for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS, DASHES = "os^DvPX", ("-", "--", ":")
STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.color": INK,
    "pdf.fonttype": 42,  # letters that an editor can change
    "text.parse_math": False,  # A class name may hold a dollar sign.
    "axes.edgecolor": "#8c8c8c",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": "#4d4d4d",
    "ytick.color": "#4d4d4d",
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "lines.solid_capstyle": "round",
    "image.interpolation": "nearest",
}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A finished figure. `name` is its file name without the suffix."""

    name: str
    title: str
    caption: str
    png: bytes
    pdf: bytes = b""
    """The same for a paper, where lines and letters stay sharp; empty for none."""


class Sheet:
    """A white figure of a given size, addressed in inches from its top left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = self.height - top - height
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def text(self, left: float, top: float, words: str, **style: Any) -> None:
        place = (left / self.width, 1 - top / self.height)
        self.figure.text(*place, words, **({"va": "top"} | style))

    def heading(self, title: str, subtitle: str) -> None:
        self.text(0.12, 0.12, title, fontsize=11, fontweight="bold")
        self.text(0.12, 0.36, subtitle, fontsize=8, color=FAINT)

    def picture(self, left: float, top: float, size: float, image_HWC: Array) -> None:
        """An image with its longer side `size` inches long and a hairline around it."""
        height, width = (size * side / max(image_HWC.shape[:2]) for side in image_HWC.shape[:2])
        extent = (left, left + width, top + height, top)
        canvas = self.canvas
        canvas.imshow(image_HWC, vmin=0, vmax=1, cmap="gray", extent=extent, aspect="auto")
        canvas.add_patch(Rectangle((left, top), width, height, fill=False, ec=RULE, lw=0.7))
        canvas.set(xlim=(0, self.width), ylim=(self.height, 0))

    @cached_property
    def canvas(self) -> Axes:
        """One pair of axes for all images: a pair for each would take most of the time."""
        axes = self.axes(0, 0, self.width, self.height)
        axes.set_axis_off()
        return axes

    def png(self) -> bytes:
        out = io.BytesIO()
        self.figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
        return out.getvalue()

    def pdf(self) -> bytes:
        out = io.BytesIO()
        self.figure.savefig(out, format="pdf", dpi=DPI, metadata={"CreationDate": None})
        return out.getvalue()

    def drawing(self, name: str, title: str, caption: str) -> Drawing:
        """The finished figure in both forms."""
        return Drawing(name=name, title=title, caption=caption, png=self.png(), pdf=self.pdf())


def look(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of the trial at that place: no two alike among 21."""
    turn, place = divmod(index, len(COLOURS))
    return {
        "color": COLOURS[place],
        "marker": MARKERS[(place + turn) % len(MARKERS)],
        "linestyle": DASHES[turn % len(DASHES)],
    }


def cut(words: str, length: int) -> str:
    """The words, or as many letters as fit and an ellipsis."""
    return words if len(words) <= length else f"{words[: length - 1].rstrip()}…"
