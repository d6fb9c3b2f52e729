"""Accelerators as a forecast sees them: what they could do at most, and what share is attained.

The peaks are the makers'. The H100's attained shares are this code's own, the upper end widened.
The others' are what was measured elsewhere on convolutional networks, widened, for neither the
networks nor this code are the same. `--calibrate` narrows all of them. A training image of
ResNet-50 costs 3 passes of 4.09 G multiply-adds, so 24.5 GFLOP.
"""

import re
from dataclasses import dataclass

from s3ta.errors import UserError
from s3ta.settings import Dtype


@dataclass(frozen=True)
class Range:
    """From the least to the most that is to be expected."""

    low: float
    high: float

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> "Range":
        return Range(self.low * factor, self.high * factor)


NOTHING = Range(0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One device."""

    words: str
    float32: float
    """Peak FLOP/s in float32; on GPUs without TF32, which this code turns off."""
    bfloat16: float | None
    """None: computed no faster than in float32."""
    memory_gb: float
    share32: Range
    """Of the peak, attained in float32."""
    share16: Range
    source: str

    def attained(self, dtype: Dtype) -> Range:
        """FLOP/s to be expected."""
        if dtype is Dtype.bfloat16 and self.bfloat16 is not None:
            return self.share16.times(self.bfloat16)
        return self.share32.times(self.float32)

    def peak(self, dtype: Dtype) -> float:
        """FLOP/s at most."""
        half = dtype is Dtype.bfloat16 and self.bfloat16 is not None
        return self.bfloat16 if half and self.bfloat16 else self.float32


PROFILES = {
    "h100": Profile(
        words="NVIDIA H100 SXM",
        float32=66.9e12,
        bfloat16=989.4e12,
        memory_gb=80,
        share32=Range(0.25, 0.45),
        share16=Range(0.033, 0.25),
        source=(
            "NVIDIA H100 datasheet (dense). This code at 224 x 224, 32 images at a time: 0.25 in "
            "float32 and 0.035 in bfloat16 on ResNet-152, 0.37 and 0.10 on S3TA-16; 128 at a time: "
            "0.33 and 0.14 on ResNet-152. ASSUMPTION: more with larger tiles, compiled"
        ),
    ),
    "a100": Profile(
        words="NVIDIA A100 SXM, 80 GB",
        float32=19.5e12,
        bfloat16=312e12,
        memory_gb=80,
        share32=Range(0.35, 0.8),
        share16=Range(0.1, 0.45),
        source=(
            "NVIDIA A100 datasheet (dense); ResNet-50 at 2,600 images/s in mixed precision (timm, "
            "issue 1491) is a share of 0.20"
        ),
    ),
    "v100": Profile(
        words="NVIDIA V100 SXM2, 32 GB",
        float32=15.7e12,
        bfloat16=None,  # its tensor cores take float16 only
        memory_gb=32,
        share32=Range(0.35, 0.8),
        share16=Range(0.35, 0.8),
        source=(
            "NVIDIA V100 datasheet; ResNet-50 at 2,858 images/s in float32 on 8 (NVIDIA "
            "DeepLearningExamples, 2019) is a share of 0.56"
        ),
    ),
    "tpu-v3": Profile(
        words="TPU v3 core",
        # A chip of two cores has 123 TFLOP/s and 32 GB; float32 products are taken in bfloat16.
        float32=61.5e12,
        bfloat16=61.5e12,
        memory_gb=16,
        share32=Range(0.15, 0.5),
        share16=Range(0.15, 0.5),
        source="Google Cloud's TPU v3 page. ASSUMPTION: shares about those of the V100 and A100",
    ),
    "cpu": Profile(
        words="CPU core with AVX2, at 3 GHz",
        float32=96e9,  # two fused multiply-adds of 8 numbers a cycle
        bfloat16=None,
        memory_gb=2,
        share32=Range(0.15, 0.9),
        share16=Range(0.15, 0.9),
        source=(
            "two 256-bit FMA units (AMD Zen 3, Intel Skylake: optimisation manuals). ASSUMPTION: "
            "shares; --calibrate measures them"
        ),
    ),
}


@dataclass(frozen=True)
class Hardware:
    """So many devices of one kind."""

    profile: Profile
    devices: int
    name: str = ""
    """What they are called, where not by their profile."""

    def __str__(self) -> str:
        return (
            f"{self.devices} {self.name}" if self.name else f"{self.devices} x {self.profile.words}"
        )


def parse_hardware(text: str) -> Hardware:
    """`h100x8`, or `cpu` for one of a kind; UserError for what is not known."""
    name, number = text.lower(), "1"
    if found := re.fullmatch(r"(.+?)x(\d+)", name):
        name, number = found[1], found[2]
    if name not in PROFILES or int(number) < 1:
        raise UserError(
            f"The hardware {text!r} is not known: it must be one of {', '.join(PROFILES)}, followed"
            " by x and how many, such as h100x8."
        )
    return Hardware(PROFILES[name], int(number))
