"""Settings of models, attacks and training: what a YAML file says, checked. Imports no torch.

Values are validated when a dataclass is built, so that no work starts on a bad one. Enum members
are lower case because YAML names them.
"""

from s3ta.settings.attacks import (
    AttackSettings,
    Dtype,
    EngineSettings,
    Goal,
    Gradient,
    Loss,
    Mode,
    Rule,
    Start,
    Through,
)
from s3ta.settings.checks import require, require_epsilon
from s3ta.settings.models import AttentionSettings, Basis, ModelSettings, Queries
from s3ta.settings.training import (
    Augmentation,
    LinearitySettings,
    Objective,
    OnNonfinite,
    Schedule,
    StageSettings,
    Sums,
    TrainAttackSettings,
    TrainSettings,
)
from s3ta.settings.vision import Block, Denoise, VisionSettings

__all__ = [
    "AttackSettings",
    "AttentionSettings",
    "Augmentation",
    "Basis",
    "Block",
    "Denoise",
    "Dtype",
    "EngineSettings",
    "Goal",
    "Gradient",
    "LinearitySettings",
    "Loss",
    "Mode",
    "ModelSettings",
    "Objective",
    "OnNonfinite",
    "Queries",
    "Rule",
    "Schedule",
    "StageSettings",
    "Start",
    "Sums",
    "Through",
    "TrainAttackSettings",
    "TrainSettings",
    "VisionSettings",
    "require",
    "require_epsilon",
]
