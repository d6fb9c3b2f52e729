"""The dataclasses that an experiment file becomes.

Checks of single values live in `__post_init__`; after composition nothing is a DictConfig any more.
"""

from dataclasses import dataclass, field

from s3ta.settings import (
    Augmentation,
    ModelSettings,
    TrainSettings,
    require,
)
from s3ta_platform.published import SYSTEMS
from s3ta_platform.schema_analyze import AnalyzeSettings
from s3ta_platform.schema_cluster import BudgetSettings, ClusterSettings
from s3ta_platform.schema_evaluate import EvaluateSettings, MaskingSettings, asha_metrics
from s3ta_platform.schema_sweep import SweepSettings


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
