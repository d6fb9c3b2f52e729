"""Settings of analyses: what else is made of a file's trained models, beside the attacks' numbers.

An experiment file whose `analyze.do` names some is an analysis. Its models are the file's trials;
one that is stored already, trained for whatever file, is not trained again.
"""

from dataclasses import dataclass, field
from enum import Enum

from s3ta.settings import require


class Analysis(Enum):
    """What there is; each has settings of its name."""

    landscape = "landscape"
    attention = "attention"
    images = "images"
    natural = "natural"
    race = "race"


@dataclass(kw_only=True)
class LandscapeSettings:
    """The loss on a plane around images (Figure 6): along the attack's perturbation, and along
    random signs."""

    attack: str = ""
    """An entry of evaluate.attacks; the first by default. The worst of its starts is taken."""
    images: int = 32
    """The first so many of those evaluated."""
    points: int = 31
    """Per axis, an odd number, so that the image itself is one. At 31 and a reach of 1.5 the
    attacked image is one, too."""
    reach: float = 1.5
    """The plane goes so many epsilons to each side."""
    shown: int = 3
    """Images drawn."""

    def __post_init__(self) -> None:
        _require_counts("landscape", self, "images", "shown")
        good = self.points >= 5 and self.points % 2 == 1
        require(good, "analyze.landscape.points", self.points, "an odd number from 5 on")
        good = 1 <= self.reach <= 100
        require(good, "analyze.landscape.reach", self.reach, "from 1 to 100")


@dataclass(kw_only=True)
class MapsSettings:
    """What an attack does to the attention (Figure 9): maps, how far they move, and whether that is
    why the model falls. For models with a controller; others are left out."""

    attack: str = ""
    images: int = 256
    object_above: float | None = None
    """The object is what is brighter than this, in [0, 1]; null where images don't tell."""
    shown: int = 2
    """Images whose maps are drawn, of the first tile."""

    def __post_init__(self) -> None:
        _require_counts("attention", self, "images", "shown")
        above = self.object_above
        good = above is None or 0 <= above < 1
        require(good, "analyze.attention.object_above", above, "from 0 to below 1, or null")


@dataclass(kw_only=True)
class ImagesSettings:
    """Attacked images after each reading of an attack, beside what was changed (Figure 8)."""

    attack: str = ""
    images: int = 32
    """Attacked; those drawn are chosen from them."""
    shown: int = 4

    def __post_init__(self) -> None:
        _require_counts("images", self, "images", "shown")


@dataclass(kw_only=True)
class NaturalSettings:
    """Accuracy and confidence on images as they are, such as the natural adversarial examples
    (Figure 7)."""

    location: str = ""
    """Of the images, as in data.test, which is the default."""
    name: str = "test images"
    """What a reader calls them."""
    classes: list[int] = field(default_factory=list)
    """The model's classes that take part: label j of these images is the j-th of them, and logits
    are sliced to them before the softmax. Empty: all."""
    bootstrap: int = 1000
    """Draws for the intervals."""

    def __post_init__(self) -> None:
        _require_counts("natural", self, "bootstrap")
        unique = len(set(self.classes)) == len(self.classes)
        require(unique, "analyze.natural.classes", self.classes, "without repeats")


@dataclass(kw_only=True)
class RaceSettings:
    """Robust accuracy against what defender and attacker compute: unroll x attack steps."""

    attack: str = ""


@dataclass(kw_only=True)
class AnalyzeSettings:
    """Which analyses are made, and how each is."""

    do: list[Analysis] = field(default_factory=list)
    landscape: LandscapeSettings = field(default_factory=LandscapeSettings)
    attention: MapsSettings = field(default_factory=MapsSettings)
    images: ImagesSettings = field(default_factory=ImagesSettings)
    natural: NaturalSettings = field(default_factory=NaturalSettings)
    race: RaceSettings = field(default_factory=RaceSettings)

    def __post_init__(self) -> None:
        names = [analysis.name for analysis in self.do]
        require(len(set(names)) == len(names), "analyze.do", names, "without repeats")

    @property
    def attacks(self) -> dict[str, str]:
        """The attack that each section names, by the setting's name."""
        chosen = {name: getattr(getattr(self, name), "attack", "") for name in Analysis.__members__}
        return {f"analyze.{name}.attack": attack for name, attack in chosen.items() if attack}


def _require_counts(section: str, settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        require(value >= 1, f"analyze.{section}.{name}", value, "at least 1")
