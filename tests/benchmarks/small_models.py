"""The models that benchmarks of attacks and of the fan-out share."""

from typing import Any

from s3ta.settings import AttentionSettings, Block, ModelSettings, VisionSettings


def small(attention: bool, stem_stride: int = 1, **settings: Any) -> ModelSettings:
    """An S3TA-4 on a small ResNet, or that ResNet; `settings` are further ones of the model."""
    vision = VisionSettings(
        block=Block.basic,
        depths=[1, 1, 1],
        widths=[32, 64, 64],
        strides=[1, 2, 1],
        stem_channels=32,
        stem_kernel=3,
        stem_stride=stem_stride,
        stem_pool=False,
    )
    if not attention:
        return ModelSettings(vision=vision, **settings)
    controller = AttentionSettings(
        heads=4,
        key_channels=16,
        basis_frequencies=4,
        state=128,
        query_hidden=128,
        readout_hidden=128,
    )
    return ModelSettings(vision=vision, attention=controller, unroll=4, **settings)
