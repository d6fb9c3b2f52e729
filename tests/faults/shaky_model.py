"""A model of one's own for the fault tests. The environment says how it misbehaves:

SHAKY_PACE_S    seconds that every attack step takes longer, so that there is time to disturb it
SHAKY_CALM      as soon as this file is there, they no longer do
SHAKY_LOG       a file that gets a line with the process's id per attack step
SHAKY_DEADLY    a .npy file with an image (1, 28, 28): it ends who attacks it by SIGKILL, at the
                eighth step

None of this changes an answer, so that all rows are those of the calm model.
"""

import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from s3ta_platform.data import ParquetImages

NEAR = 7 / 255
"""A bit more than the attacks' epsilon: every attacked copy of an image is that near to it."""
SOFTNESS = 0.1
"""Logits as they come would hardly differ."""


class Shaky(nn.Module):
    """A small network whose attack steps (calls that are to be differentiated) are disturbed."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.pace_s = float(os.environ.get("SHAKY_PACE_S", "0"))
        self.calm = os.environ.get("SHAKY_CALM", "")
        self.log = os.environ.get("SHAKY_LOG", "")
        deadly = os.environ.get("SHAKY_DEADLY", "")
        self.deadly = np.load(deadly) if deadly else None
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            self._disturb(images.detach())
        return self.net(images)  # type: ignore[no-any-return]

    def _disturb(self, images: Tensor) -> None:
        if self.pace_s and not os.path.exists(self.calm):
            time.sleep(self.pace_s)
        if self.deadly is not None:
            distances_B = (images - torch.from_numpy(self.deadly)).abs().flatten(1).amax(1)
            self.seen += bool((distances_B < NEAR).any())
            if self.seen == 8:
                self._note("died")
                os.kill(os.getpid(), signal.SIGKILL)
        self._note("")

    def _note(self, what: str) -> None:
        if self.log:
            with Path(self.log).open("a") as file:  # one write, appended as a whole
                file.write(f"{os.getpid()} {what}\n")


def net() -> nn.Module:
    """28 x 28 grey images -> ten logits: nearest class mean behind a layer of fixed features."""
    features = nn.Sequential(nn.Conv2d(1, 8, 5, stride=4), nn.BatchNorm2d(8), nn.ReLU())
    head = nn.Linear(8 * 36, 10)
    with torch.no_grad():
        for index, values in enumerate(features.state_dict().values()):
            if values.is_floating_point():
                values.copy_(torch.arange(values.numel()).mul(1.7 + index).sin().view(values.shape))
        features[1].running_var.abs_().add_(0.5)  # type: ignore[operator]
        means_CF = class_means(features)
        head.weight.copy_(means_CF / SOFTNESS)
        head.bias.copy_(-means_CF.square().sum(1) / (2 * SOFTNESS))
    return Shaky(nn.Sequential(features, nn.Flatten(), head))


def class_means(features: nn.Module) -> Tensor:
    """(10, F) of 500 training images, rounded so that they are the same for all processes."""
    train = ParquetImages("sample:fashion_mnist/train.parquet", channels=1)
    pixels, labels = train.read(train.ids_N[:500])
    maps = features.eval()(torch.from_numpy(pixels).float() / 255).flatten(1).double()
    return torch.stack([maps[labels == c].mean(0) for c in range(10)]).round(decimals=3).float()
