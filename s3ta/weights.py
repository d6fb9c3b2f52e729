"""Weights of published ResNets."""

from collections.abc import Mapping

from torch import Tensor

from s3ta.errors import UserError
from s3ta.model import PlainResNet

COUNTER = "num_batches_tracked"
"""BatchNorm's count of batches decides nothing, and older files lack it."""


def load_resnet_weights(model: PlainResNet, tensors: Mapping[str, Tensor]) -> None:
    """Copy the state of a ResNet with torchvision's or timm's names into a model, in place.

    The model normalises images itself: give it the mean and std that the weights were trained with.
    UserError, and no change, unless names and shapes agree.
    """
    own = model.vision.state_dict()
    problems = [f"{name} is missing" for name in own if name not in tensors and COUNTER not in name]
    problems += [f"{name} is unexpected" for name in tensors if name not in own]
    problems += [
        f"{name} has the shape {tuple(tensors[name].shape)} but must have {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"These weights are of another network: {'; '.join(problems[:3])}{more}. Choose the "
            "model settings (block, depths, widths, classes) that they were made for."
        )
    model.vision.load_state_dict({**own, **tensors})
