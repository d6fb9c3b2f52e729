"""The dataclasses that an experiment file becomes.

Checks of single values live in `__post_init__`; after composition nothing is a DictConfig any more.
"""

import math
from dataclasses import dataclass, field
from enum import Enum

from s3ta.settings import (
    AttackSettings,
    Augmentation,
    EngineSettings,
    ModelSettings,
    TrainSettings,
    require,
    require_epsilon,
)
from s3ta_platform.analyze_settings import AnalyzeSettings
from s3ta_platform.attack_names import any_step
from s3ta_platform.published import SYSTEMS
from s3ta_platform.schema_sweep import SweepSettings


class Executor(Enum):
    """Where jobs run: in this process, one after the other, or on a Ray cluster."""

    inline = "inline"
    ray = "ray"


@dataclass(kw_only=True)
class About:
    """What the experiment is for: its record, and the report's words."""

    title: str = ""
    claim: str = ""
    source: str = ""
    """Table or figure of the paper."""
    hardware: str = ""
    hours: str = ""
    expected: str = ""
    obtained: str = "not run"
    published: str = ""
    """The paper's system whose published numbers stand beside ours, such as S3TA-16-30; usually a
    value per point of a sweep."""

    def __post_init__(self) -> None:
        require(
            not self.published or self.published in SYSTEMS,
            "about.published",
            self.published,
            f"empty or one of {', '.join(SYSTEMS)}",
        )


@dataclass(kw_only=True)
class DataSettings:
    """Parquet files of encoded images: a file, a folder, a glob, or `sample:` for ours."""

    train: str = ""
    """Not needed where model.factory names a model that is trained already."""
    test: str = "???"
    train_images: int | None = None
    """Train on that many images, drawn once from `subset_seed`; all by default."""
    subset_seed: int = 0
    classes: int | None = None
    """Only for files that do not name their classes."""
    image_size: int | None = None
    """Side in pixels after resizing and cropping; None where all images have one size."""
    declared_train_images: int | None = None
    """How many images the files have, for a plan made before they are here; else unused."""
    declared_test_images: int | None = None

    def __post_init__(self) -> None:
        counts = ("train_images", "declared_train_images", "declared_test_images")
        for name in (*counts, "classes", "image_size"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"data.{name}", value, "at least 1, or null")
        require(self.subset_seed >= 0, "data.subset_seed", self.subset_seed, "at least 0")


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


@dataclass(kw_only=True)
class ClusterSettings:
    """Where and with how much work is done. Nothing here changes a result except `threads`."""

    executor: Executor = Executor.ray
    address: str = "local"
    """`local` starts Ray on this machine; `auto` or host:port joins a cluster."""
    cpus: int | None = None
    """Logical CPUs of a local Ray; the machine's by default."""
    train_workers: int = 1
    """Workers per trial; at most the microbatches of a step."""
    stage_workers: list[int] = field(default_factory=list)
    """The same for each stage of `train.curriculum`, in order: [1, 2, 4] for longer unrolls."""
    evaluate_workers: int = 2
    """Workers per evaluation."""
    gpus_per_worker: float = 0.0
    threads: int = 1
    """Per worker. Pinned, for kernels may round differently with another number."""
    device: str = "cpu"
    """`cpu`, `cuda`, or `auto`: cuda where there is one."""
    attempts: int = 3
    """How often work that lost its worker is tried."""
    hang_s: float = 600.0
    """A worker that makes no progress for so long is taken for hung, and replaced. Longer than a
    single attack step of the slowest model, and than loading it."""
    snapshot_s: float = 180.0
    """Seconds between saved states of a running attack: what a lost worker costs at most."""
    snapshot_steps: int | None = None
    """Save after so many attack steps instead."""
    snapshot_budget_mb: int = 10_000
    """Saved states of all running attacks together take at most this much."""
    store_patience_s: float = 3600.0
    """How long work waits for a store that is full or does not answer."""
    lease_s: float = 120.0
    """Work that another run has begun is left to it until it was silent for so long."""
    train_workers_min: int | None = None
    """Elastic training: with fewer workers than `train_workers`, but at least so many, training
    goes on as well; as nodes leave and come back it is resized. Null: always `train_workers`."""
    checkpoint_steps: int | None = None
    """Training is saved at the end of every epoch, and after every so many steps."""
    keep_checkpoints: int = 2
    """The last so many; beside them those of the last epoch's end and of the best epoch."""
    read_cache_mb: int = 2048
    """Encoded images that a training worker keeps: as many as `train.shuffle_window`, or they are
    read again and again."""

    def __post_init__(self) -> None:
        for name in ("hang_s", "snapshot_s", "store_patience_s", "lease_s"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"cluster.{name}", value, "positive and finite")
        for name in ("snapshot_steps", "snapshot_budget_mb", "checkpoint_steps"):
            value = getattr(self, name)
            good = value is None or value >= (name != "snapshot_budget_mb")
            require(good, f"cluster.{name}", value, "at least 1, or null; a budget at least 0")
        whole = ("train_workers", "evaluate_workers", "threads", "attempts", "keep_checkpoints")
        for name in (*whole, "read_cache_mb"):
            value = getattr(self, name)
            require(value >= 1, f"cluster.{name}", value, "at least 1")
        stages = self.stage_workers
        require(
            all(workers >= 1 for workers in stages),
            "cluster.stage_workers",
            stages,
            "a list of whole numbers of at least 1",
        )
        require(
            self.train_workers_min is None or 1 <= self.train_workers_min <= self.train_workers,
            "cluster.train_workers_min",
            self.train_workers_min,
            f"from 1 to cluster.train_workers ({self.train_workers}), or null",
        )
        require(self.cpus is None or self.cpus >= 1, "cluster.cpus", self.cpus, "at least 1")
        require(
            0 <= self.gpus_per_worker < math.inf,
            "cluster.gpus_per_worker",
            self.gpus_per_worker,
            "at least 0 and finite",
        )
        require(
            self.device in ("cpu", "cuda", "auto"),
            "cluster.device",
            self.device,
            "one of cpu, cuda, auto",
        )


@dataclass(kw_only=True)
class BudgetSettings:
    """What a sweep may spend: it is refused if it needs more, and ended when it has spent that."""

    gpu_hours: float | None = None
    """Hours of GPUs, added up over workers; of workers where they have none. Null: no limit."""
    hardware: str = ""
    """As for `s3ta plan --hardware`, to know beforehand what is needed at least. By default the
    fastest of its kind that is known."""

    def __post_init__(self) -> None:
        hours = self.gpu_hours
        good = hours is None or 0 < hours < math.inf
        require(good, "budget.gpu_hours", hours, "positive and finite, or null")


@dataclass(kw_only=True)
class TrackingSettings:
    """MLflow. By default a sqlite file and local artifacts below the results root, no server."""

    store: str = "${oc.env:S3TA_TRACKING,''}"
    """Empty for the default, an `sqlite:///` or `http://` address, or `none`."""
    experiment: str = "s3ta"


@dataclass(kw_only=True)
class Experiment:
    """One experiment file, composed."""

    name: str = "???"
    checkpoint: str = ""
    """A model that is trained already, named as for `s3ta compare`: its settings come with it."""
    about: About = field(default_factory=About)
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    masking: MaskingSettings | None = None
    analyze: AnalyzeSettings = field(default_factory=AnalyzeSettings)
    sweep: SweepSettings = field(default_factory=SweepSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    results: str = "${oc.env:S3TA_RESULTS,results}"
    """Results root: a folder, or s3://bucket/prefix."""

    def __post_init__(self) -> None:
        require(
            self.name[:1].isalnum() and all(c.isalnum() or c in "-_." for c in self.name),
            "name",
            self.name,
            "made of letters, digits, '-', '_' and '.', the first a letter or digit "
            "(it names a folder)",
        )
        self._check_workers()
        require(
            self.masking is None or self.evaluate.stop_when.halfwidth is None,
            "evaluate.stop_when.halfwidth",
            self.evaluate.stop_when.halfwidth,
            "null where masking is asked for: its checks need the same images of every attack",
        )
        if self.sweep.halving is not None:
            known = asha_metrics(self.evaluate)
            require(
                self.sweep.asha.metric in known,
                "sweep.asha.metric",
                self.sweep.asha.metric,
                f"one of {', '.join(known)}",
            )
        for name, attack in self.analyze.attacks.items():
            known = list(self.evaluate.attacks)
            words = f"one of evaluate.attacks ({', '.join(known)}), or empty for the first"
            require(attack in known, name, attack, words)
        unrolls = [stage.unroll for stage in self.train.curriculum if stage.unroll is not None]
        require(
            not unrolls or self.model.attention is not None,
            "train.curriculum",
            unrolls,
            "without an unroll for a model without attention",
        )
        require(
            self.train.augmentation is not Augmentation.imagenet
            or (self.model.channels == 3 and self.data.image_size is not None),
            "train.augmentation",
            self.train.augmentation.name,
            "none or flip unless images are in colour (three numbers in model.mean and model.std) "
            "and data.image_size is set, to which each crop is resized",
        )

    def _check_workers(self) -> None:
        most, stages = self.train.microbatches, self.cluster.stage_workers
        for name, workers in (
            ("train_workers", self.cluster.train_workers),
            ("stage_workers", max(stages, default=1)),
        ):
            require(
                workers <= most,
                f"cluster.{name}",
                workers,
                f"at most {most}, the microbatches of a step (train.batch / train.microbatch)",
            )
        # A grid over curricula may have trials with none, or with fewer stages.
        curriculum = len(self.train.curriculum)
        require(
            len(stages) <= curriculum or curriculum == 0,
            "cluster.stage_workers",
            stages,
            f"at most one number for each of the {curriculum} stages of train.curriculum",
        )


def asha_metrics(evaluate: EvaluateSettings) -> list[str]:
    """What successive halving can go by: the names under which MLflow has them."""
    names = ["train/loss", "train/adversarial_top1", "eval/nominal"]
    for attack in evaluate.attacks.values():
        # An attack that stops at its goal, a target, says nothing of other wrong answers.
        one_sided = attack.goal.targeted and any_step(attack.name)
        for measure in ("attack_success",) if one_sided else ("top1", "attack_success"):
            names += [f"eval/{attack.name}/{measure}_at_{n}" for n in attack.readings]
    return names
