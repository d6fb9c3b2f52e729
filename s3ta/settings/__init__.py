"""Settings of models, attacks and training: what a YAML file says, checked. Imports no torch.

Values are validated when a dataclass is built, so that no work starts on a bad one. Enum members
are lower case because YAML names them.
"""

from s3ta.settings.attacks import AttackSettings, Dtype, EngineSettings, Goal, Loss, Mode
from s3ta.settings.checks import require
from s3ta.settings.models import AttentionSettings, Block, ModelSettings, VisionSettings
from s3ta.settings.training import (
    Augmentation,
    OnNonfinite,
    Schedule,
    Sums,
    TrainAttackSettings,
    TrainSettings,
)

__all__ = [
    "AttackSettings",
    "AttentionSettings",
    "Augmentation",
    "Block",
    "Dtype",
    "EngineSettings",
    "Goal",
    "Loss",
    "Mode",
    "ModelSettings",
    "OnNonfinite",
    "Schedule",
    "Sums",
    "TrainAttackSettings",
    "TrainSettings",
    "VisionSettings",
    "require",
]
