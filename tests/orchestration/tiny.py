"""A trial that trains in seconds: used by several tests and by the processes that they start."""

from typing import Any

from s3ta.settings import (
    AttackSettings,
    AttentionSettings,
    Augmentation,
    Block,
    ModelSettings,
    Schedule,
    TrainAttackSettings,
    TrainSettings,
    VisionSettings,
)
from s3ta_platform.jobs import EvaluateJob, TrainJob
from s3ta_platform.schema import DataSettings
from s3ta_platform.schema_cluster import ClusterSettings
from s3ta_platform.schema_evaluate import EvaluateSettings
from s3ta_platform.storage import open_storage
from s3ta_platform.trials import read_trained

KEY = "0123456789abcdef"
DATA = DataSettings(
    train="sample:fashion_mnist/train.parquet",
    test="sample:fashion_mnist/test.parquet",
    train_images=624,
)


def model() -> ModelSettings:
    return ModelSettings(
        vision=VisionSettings(
            block=Block.basic,
            depths=[1, 1],
            widths=[8, 16],
            strides=[1, 2],
            stem_channels=8,
            stem_kernel=3,
            stem_stride=2,
            stem_pool=False,
        ),
        attention=AttentionSettings(
            heads=2,
            key_channels=4,
            basis_frequencies=2,
            state=16,
            query_hidden=16,
            readout_hidden=16,
        ),
        unroll=2,
        mean=[0.286],
        std=[0.353],
    )


STEPS, EPOCH_STEPS = 52, 13
"""Of the training below."""


def train_job(
    root: str, epochs: int = 4, cluster: ClusterSettings | None = None, **train: Any
) -> TrainJob:
    """52 adversarial steps in 4 epochs: 624 images in batches of 48, 6 microbatches of 8."""
    return TrainJob(
        key=KEY,
        model=model(),
        train=TrainSettings(
            attack=TrainAttackSettings(epsilon_255=8, steps=3),
            epochs=epochs,
            batch=48,
            microbatch=8,
            learning_rate=0.8,
            warmup_epochs=0.5,
            warmup_start=0.1,
            schedule=Schedule.cosine,
            augmentation=Augmentation.flip,
            **train,
        ),
        data=DATA,
        classes=10,
        root=root,
        threads=1,
        device="cpu",
        cluster=cluster or ClusterSettings(),
    )


READINGS = [5, 16, 20]
"""Two trajectories: 5 steps, and 20."""


def evaluate_job(
    root: str,
    shard_images: int = 16,
    images: int = 44,
    cluster: ClusterSettings | None = None,
    **evaluate: Any,
) -> EvaluateJob:
    """44 test images in tiles of 8, so that shards have ragged tails.

    `shard_images`, a multiple of 8, is what a shard of 20 steps has.
    """
    trained = read_trained(open_storage(root), KEY)
    assert trained is not None
    return EvaluateJob(
        trial=KEY,
        model=model(),
        model_digest=trained.model_digest,
        checkpoint_step=trained.step,
        data=DATA,
        test_digest="test",
        classes=10,
        evaluate=EvaluateSettings(
            attacks=evaluate.pop("attacks", None)
            or {"pgd": AttackSettings(epsilon_255=25.5, readings=READINGS)},
            images=images,
            tile=8,
            shard_steps=shard_images * 20,
            gallery_images=2,
            **evaluate,
        ),
        root=root,
        threads=1,
        device="cpu",
        device_class="cpu-1",
        cluster=cluster or ClusterSettings(),
    )
