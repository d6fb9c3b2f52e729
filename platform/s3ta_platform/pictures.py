"""Figures of images: the gallery before and after the attack, attention maps over one image.

Shapes: B images, C channels, H W image or attention grid, T unroll steps, Q heads, P clean or
attacked. Lengths are in inches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from PIL import Image

from s3ta_platform.attack_names import attack_title
from s3ta_platform.drawing import FAINT, STYLE, Drawing, Sheet, cut
from s3ta_platform.results import Array, Gallery, TrialResult

RIGHT, FOOLED, WRONG = "#007A5A", "#C44500", "#6b6b6b"
HEAT = "inferno"
TRIALS_PER_GRID, IMAGES_PER_GRID = 4, 8
CELL, GAP, ROW = 1.0, 0.04, 1.42
TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Example:
    """One image of a gallery, in words."""

    gallery: Gallery
    row: int
    class_names: Sequence[str]

    def name(self, index: int) -> str:
        known = 0 <= index < len(self.class_names)
        return self.class_names[index] if known else f"class {index}"

    @property
    def label(self) -> str:
        return self.name(self.gallery.labels_B[self.row])

    @property
    def target(self) -> str | None:
        """None for an untargeted attack."""
        target = self.gallery.targets_B[self.row]
        return self.name(target) if target >= 0 else None

    def verdict(self, predictions_B: Array) -> tuple[str, str]:
        """A prediction with its sign, and its colour."""
        prediction, name = predictions_B[self.row], self.name(predictions_B[self.row])
        if prediction == self.gallery.labels_B[self.row]:
            return f"✓ {name}", RIGHT
        if self.gallery.targets_B[self.row] in (-1, prediction):
            return f"✗ {name}", FOOLED
        return f"≠ {name}", WRONG


def image_grids(trials: Sequence[TrialResult], class_names: Sequence[str]) -> list[Drawing]:
    """Clean images, attacked ones and what was changed; four trials to a figure."""
    shown = [trial for trial in trials if trial.gallery is not None and image_ids(trial.gallery)]
    pages = [shown[at : at + TRIALS_PER_GRID] for at in range(0, len(shown), TRIALS_PER_GRID)]
    places = [f"{page} of {len(pages)}" for page in range(1, len(pages) + 1)]
    return [_image_grid(*page, class_names) for page in zip(pages, places, strict=True)]


@mpl.rc_context(STYLE)
def _image_grid(trials: Sequence[TrialResult], page: str, class_names: Sequence[str]) -> Drawing:
    galleries = [trial.gallery for trial in trials if trial.gallery is not None]
    first, gain = galleries[0], gain_of(galleries)
    ids, lefts = image_ids(first)[:IMAGES_PER_GRID], [1.42 + 2.22 * place for place in range(4)]
    sheet = Sheet(lefts[0] + 2.22 * len(trials), 1.10 + ROW * len(ids))
    title = "Clean and attacked images" + (f" ({page})" if page != "1 of 1" else "")
    attack = f"{first.steps:,} steps of {attack_title(first.attack)}"
    sheet.heading(title, attack)
    sheet.text(0.12, 0.86, "clean", fontsize=7, color=FAINT)
    for left, trial in zip(lefts, trials, strict=False):
        sheet.text(left, 0.68, cut(trial.name, 26), fontweight="bold")
        sheet.text(left, 0.86, "attacked", fontsize=7, color=FAINT)
        change = f"difference {TIMES}{gain}"
        sheet.text(left + CELL + GAP, 0.86, change, fontsize=7, color=FAINT)
    for row, image_id in enumerate(ids):
        top = 1.04 + ROW * row
        _clean_cell(sheet, (0.12, top), Example(first, row, class_names))
        for left, gallery in zip(lefts, galleries, strict=False):
            if image_id in image_ids(gallery):
                example = Example(gallery, image_ids(gallery).index(image_id), class_names)
                _attacked_cells(sheet, (left, top), example, gain)
    name = "image_grid" + (f"-{page.partition(' ')[0]}" if page != "1 of 1" else "")
    caption = (
        f"{len(ids)} test images before and after {attack}, attacked anew for each model, and the "
        f"change itself, {gain} times as strong, around mid-grey. ✓ still right; ✗ the attack has "
        "reached its goal; ≠ wrong, but not as the attacker wanted. “Before” is the prediction "
        "without an attack. Examples, not a measurement."
    )
    return Drawing(name=name, title=title, caption=caption, png=sheet.png())


def image_ids(gallery: Gallery) -> list[int]:
    return [int(image_id) for image_id in gallery.image_ids_B]


def gain_of(galleries: Sequence[Gallery]) -> int:
    """The whole factor that stretches the largest change to the full range of greys, or nearly."""
    largest = max(np.abs(g.attacked_BCHW - g.clean_BCHW).max(initial=0) for g in galleries)
    # The 0.01 is for a change of 0.1 that float32 makes a little larger: 5 is meant, not 4.
    return max(1, int(0.5 / largest + 0.01)) if largest > 0 else 1


def _clean_cell(sheet: Sheet, corner: tuple[float, float], example: Example) -> None:
    left, below = corner[0], corner[1] + CELL + 0.05
    sheet.picture(*corner, CELL, hwc(example.gallery.clean_BCHW[example.row]))
    sheet.text(left, below, cut(f"true: {example.label}", 22), fontsize=7)
    if example.target is not None:
        target = cut(f"target: {example.target}", 22)
        sheet.text(left, below + 0.14, target, fontsize=7, color=FAINT)


def _attacked_cells(sheet: Sheet, corner: tuple[float, float], example: Example, gain: int) -> None:
    gallery, left, below = example.gallery, corner[0], corner[1] + CELL + 0.05
    clean, attacked = gallery.clean_BCHW[example.row], gallery.attacked_BCHW[example.row]
    change = np.clip(0.5 + gain * (attacked - clean), 0, 1)
    sheet.picture(*corner, CELL, hwc(attacked))
    sheet.picture(left + CELL + GAP, corner[1], CELL, hwc(change))
    words, colour = example.verdict(gallery.predictions_B)
    before = f"before: {example.verdict(gallery.clean_predictions_B)[0]}"
    sheet.text(left, below, cut(words, 32), fontsize=7, color=colour, fontweight="bold")
    sheet.text(left, below + 0.14, cut(before, 36), fontsize=7, color=FAINT)


def hwc(image_CHW: Array) -> Array:
    """An image as matplotlib wants it: (H, W) for grey, (H, W, 3) for colour."""
    clipped = np.clip(image_CHW, 0, 1)
    return clipped[0] if len(clipped) == 1 else clipped.transpose(1, 2, 0)


def fooled_images(gallery: Gallery) -> Array:
    """Whether the attack reached its goal on each image, (B,)."""
    hit_B = gallery.predictions_B == gallery.targets_B
    wrong_B = gallery.predictions_B != gallery.labels_B
    return np.asarray(np.where(gallery.targets_B < 0, wrong_B, hit_B))


def telling_image(gallery: Gallery) -> int:
    """The place of an image that the attack fooled, best one that was right before; else 0."""
    fooled_B = fooled_images(gallery)
    was_right_B = gallery.clean_predictions_B == gallery.labels_B
    for wanted_B in (fooled_B & was_right_B, fooled_B):
        if wanted_B.any():
            return int(np.argmax(wanted_B))
    return 0


@mpl.rc_context(STYLE)
def attention_maps(
    trial: TrialResult, class_names: Sequence[str], image: int | None = None
) -> Drawing | None:
    """Where each head looks at each step, clean above attacked (Figure 9); None without maps.

    `image` is a place in the gallery; by default one that the attack fooled.
    """
    gallery = trial.gallery
    if gallery is None or not image_ids(gallery):
        return None
    if gallery.clean_maps_BTQHW is None or gallery.attacked_maps_BTQHW is None:
        return None
    example = Example(gallery, telling_image(gallery) if image is None else image, class_names)
    pair = (gallery.clean_maps_BTQHW[example.row], gallery.attacked_maps_BTQHW[example.row])
    maps_QPTHW = np.stack(pair, axis=1).transpose(2, 1, 0, 3, 4)
    title = f"Attention of {trial.name}"
    return Drawing(
        name=f"attention_maps-{trial.key}",
        title=title,
        caption=_attention_caption(example),
        png=_attention_sheet(example, maps_QPTHW, cut(title, 44)).png(),
    )


def _attention_sheet(example: Example, maps_QPTHW: Array, title: str) -> Sheet:
    heads, _, steps = maps_QPTHW.shape[:3]
    cell = float(np.clip(3.4 / (2 * heads), 0.62 if steps > 8 else 0.85, 1.3))
    left, top, block = 2.8, 0.98, 2 * cell + 0.16
    height = max(block * heads, 3.9)
    sheet = Sheet(max(left + (cell + GAP) * steps + 0.95, 5.4), top + height + 0.1)
    attack = f"{example.gallery.steps:,} steps of {attack_title(example.gallery.attack)}"
    sheet.heading(title, f"{attack}; image {image_ids(example.gallery)[example.row]}")
    _two_images(sheet, example, top)
    for step in range(steps):
        words = f"step {step + 1}" if steps <= 8 or not step else str(step + 1)
        centre = left + (cell + GAP) * step + cell / 2
        sheet.text(centre, top - 0.2, words, ha="center", fontsize=7.5)
    peak = float(maps_QPTHW.max())
    for head, maps_PTHW in enumerate(maps_QPTHW):
        at, middle = top + block * head, {"ha": "right", "va": "center", "fontweight": "bold"}
        sheet.text(left - 0.68, at + cell, f"head {head + 1}", **middle)
        _head(sheet, (left, at, cell), _levels(example, maps_PTHW, peak))
    _colour_bar(sheet, (sheet.width - 0.78, top), peak, maps_QPTHW[0, 0, 0].size)
    return sheet


def _two_images(sheet: Sheet, example: Example, top: float) -> None:
    gallery, left = example.gallery, 0.12
    clean = (gallery.clean_BCHW, gallery.clean_predictions_B, f"true: {example.label}")
    target = f"target: {example.target}" if example.target is not None else "no target"
    attacked = (gallery.attacked_BCHW, gallery.predictions_B, target)
    for title, (images_BCHW, predictions_B, known) in {
        "clean": clean,
        "attacked": attacked,
    }.items():
        sheet.text(left, top - 0.2, title, fontweight="bold")
        sheet.picture(left, top, 1.3, hwc(images_BCHW[example.row]))
        words, colour = example.verdict(predictions_B)
        sheet.text(left, top + 1.35, cut(words, 22), fontsize=7, color=colour, fontweight="bold")
        sheet.text(left, top + 1.49, cut(known, 24), fontsize=7, color=FAINT)
        top += 2.0


def _levels(example: Example, maps_PTHW: Array, peak: float) -> list[list[Array]]:
    images = (example.gallery.clean_BCHW[example.row], example.gallery.attacked_BCHW[example.row])
    both = zip(images, maps_PTHW, strict=True)
    return [[overlay(image_CHW, map_HW, peak) for map_HW in maps] for image_CHW, maps in both]


def _head(sheet: Sheet, corner: tuple[float, float, float], pictures: list[list[Array]]) -> None:
    left, top, cell = corner
    for words, row in zip(("clean", "attacked"), pictures, strict=True):
        middle = {"ha": "right", "va": "center", "fontsize": 7, "color": FAINT}
        sheet.text(left - 0.08, top + cell / 2, words, **middle)
        for step, picture in enumerate(row):
            sheet.picture(left + (cell + GAP) * step, top, cell, picture)
        top += cell + GAP


def overlay(image_CHW: Array, map_HW: Array, peak: float, size: int = 168) -> Array:
    """The map in colour over the image in grey, (size, size, 3): the more attention, the denser."""
    grey_HW = np.clip(image_CHW, 0, 1).mean(axis=0)
    grey = _resized(grey_HW, size, Image.Resampling.NEAREST)
    return _blend(grey, _resized(map_HW / peak, size, Image.Resampling.BICUBIC))


def _blend(grey_HW: Array, level_HW: Array) -> Array:
    """Colour of density sqrt(level) over a dimmed image, so that faint attention shows too."""
    level_HW = np.clip(level_HW, 0, 1)
    density = 0.95 * np.sqrt(level_HW)[..., None]
    heat = mpl.colormaps[HEAT](0.15 + 0.85 * level_HW)[..., :3]
    return np.asarray((1 - density) * 0.7 * grey_HW[..., None] + density * heat)


def _resized(image_HW: Array, size: int, how: Image.Resampling) -> Array:
    return np.asarray(Image.fromarray(image_HW.astype(np.float32)).resize((size, size), how))


def _colour_bar(sheet: Sheet, corner: tuple[float, float], peak: float, places: int) -> None:
    axes = sheet.axes(*corner, 0.12, 2.4)
    ramp = np.linspace(1, 0, 256)[:, None]
    axes.imshow(_blend(np.zeros_like(ramp), ramp), aspect="auto", extent=(0, 1, 0, peak))
    axes.yaxis.tick_right()
    axes.set_xticks([])
    ticks = {0.0: "0", 1 / places: f"1/{places}", peak: f"{peak:.2g}"}
    if 1 / places < 0.06 * peak:  # the two would be written over one another
        del ticks[0.0]
    axes.set_yticks(list(ticks), list(ticks.values()), fontsize=7)
    axes.spines[:].set_visible(False)
    sheet.text(corner[0] - 0.1, corner[1] - 0.2, "attention", fontsize=7)


def _attention_caption(example: Example) -> str:
    fooled = fooled_images(example.gallery)[example.row]
    choice = "chosen because the attack fooled the model" if fooled else "the model is not fooled"
    places = example.gallery.clean_maps_BTQHW
    uniform = "" if places is None else f" (evenly spread: 1/{places.shape[-1] * places.shape[-2]})"
    return (
        "Where each attention head (rows) looks at each unroll step (columns), on the clean image "
        f"and on the attacked one. Each map adds up to 1{uniform}; all share one colour scale, "
        f"interpolated between the places of the grid. A single image ({choice}): an example, "
        "not a measurement."
    )
