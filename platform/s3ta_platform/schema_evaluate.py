"""What makes an evaluation of an experiment file: attacks, how far they go, and the verdict."""

from dataclasses import dataclass, field

from s3ta.settings import AttackSettings, EngineSettings, require, require_epsilon
from s3ta_platform.attack_names import any_step


@dataclass(kw_only=True)
class StopSettings:
    """When an evaluation may end before every image was attacked."""

    halfwidth: float | None = None
    """When the 95 % interval of every reading is at most this far to each side: 0.01 is one point.
    Never before 1000 images."""

    def __post_init__(self) -> None:
        require(
            self.halfwidth is None or 0 < self.halfwidth < 0.5,
            "evaluate.stop_when.halfwidth",
            self.halfwidth,
            "above 0 and below 0.5 (a share, not percent)",
        )


@dataclass(kw_only=True)
class ProbeSettings:
    """A look at the gradients that attacks follow, where they start: see s3ta/gradient_probe.py."""

    epsilon_255: float = 16.0
    pairs: int = 2048
    """Antithetic pairs of probes that a gradient is compared with."""
    delta: float = 0.01
    """How far a probe is from the start, in [0, 1] image units."""

    def __post_init__(self) -> None:
        require_epsilon("evaluate.probe.epsilon_255", self.epsilon_255)
        require(self.pairs >= 1, "evaluate.probe.pairs", self.pairs, "at least 1")
        good = 0 < self.delta <= 1
        require(good, "evaluate.probe.delta", self.delta, "above 0 and at most 1")


@dataclass(kw_only=True)
class EvaluateSettings:
    """The attacks that every trained model has to stand, and on what."""

    attacks: dict[str, AttackSettings] = field(default_factory=dict)
    images: int | None = None
    """Attack that many test images, drawn once from `seed`; all by default."""
    seed: int = 1
    """Of the images drawn, the targets and the starts; models share them."""
    tile: int = 32
    """Images computed together: a part of the result, unlike `shard_steps`."""
    shard_steps: int = 6400
    """Steps of plain PGD per job, or what costs as much, added up over its images, in whole tiles:
    64 images for 100 steps, 640 for 10, at least one tile. So all jobs cost about the same."""
    engine: EngineSettings = field(default_factory=EngineSettings)
    probe: ProbeSettings | None = None
    stop_when: StopSettings = field(default_factory=StopSettings)
    gallery_images: int = 8
    """Images kept whole for the report, before and after the attack."""

    def __post_init__(self) -> None:
        for name in ("tile", "shard_steps"):
            value = getattr(self, name)
            require(value >= 1, f"evaluate.{name}", value, "at least 1")
        require(
            self.images is None or self.images >= 1, "evaluate.images", self.images, "at least 1"
        )
        require(0 <= self.seed < 2**63, "evaluate.seed", self.seed, "from 0 to 2^63 - 1")
        require(
            self.gallery_images >= 0, "evaluate.gallery_images", self.gallery_images, "at least 0"
        )
        names = [attack.name for attack in self.attacks.values()]
        require(
            len(set(names)) == len(names),
            "evaluate.attacks",
            names,
            "without two entries that differ only in their readings (put them into one list)",
        )


@dataclass(kw_only=True)
class MaskingSettings:
    """Ends a run with the gradient-masking verdict, made of `evaluate.attacks` by their names.

    These are pgd_ce, pgd_margin, apgd_ce, apgd_t, wide, square, spsa, transfer and random; what is
    left out leaves its checks inconclusive.
    """

    epsilon_255: float = 16.0
    """Of all attacks but `wide`; by default that of the checkpoint's adversarial training."""
    sources: list[str] = field(default_factory=list)
    """Two other models that the transfer attack comes from, named as for `s3ta compare`; by default
    the first two of the results root that take such images."""

    def __post_init__(self) -> None:
        require_epsilon("masking.epsilon_255", self.epsilon_255)


def asha_metrics(evaluate: EvaluateSettings) -> list[str]:
    """What successive halving can go by: the names under which MLflow has them."""
    names = ["train/loss", "train/adversarial_top1", "eval/nominal"]
    for attack in evaluate.attacks.values():
        # An attack that stops at its goal, a target, says nothing of other wrong answers.
        one_sided = attack.goal.targeted and any_step(attack.name)
        for measure in ("attack_success",) if one_sided else ("top1", "attack_success"):
            names += [f"eval/{attack.name}/{measure}_at_{n}" for n in attack.readings]
    return names
