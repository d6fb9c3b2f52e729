"""A model in training as its attack sees it: a fast copy that follows the weights.

In the attack BatchNorm is in test mode, so it is folded into the convolution before it; folded
weights lie channels-last. They are made anew after every update, in place; all other weights are
the model's own memory. As in evaluation (engine.py) last bits differ from the unfolded model's, and
here nobody judges: the attacked images are what the model is trained on. Every worker folds the
same weights, so all take the same steps.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from s3ta.draws import Key, Purpose
from s3ta.engine import FOLDED_AGREES, conv_bn_pairs
from s3ta.settings import TrainSettings

PROBES = 4
"""Images of noise with which the copy is checked."""


@dataclass(frozen=True)
class _Pair:
    """A convolution with the BatchNorm that takes its output, and their folded copy."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    folded: nn.Conv2d

    @torch.no_grad()
    def refresh(self) -> None:
        """gamma (W x - mean) / sqrt(var + eps) + beta, as one convolution."""
        norm, folded = self.norm, self.folded
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert folded.bias is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        torch.mul(self.conv.weight, scale[:, None, None, None], out=folded.weight)
        mean = norm.running_mean if self.conv.bias is None else norm.running_mean - self.conv.bias
        torch.sub(norm.bias, mean * scale, out=folded.bias)


class FastCopy:
    """Logits of a model in training for its attack; `refresh` follows each update."""

    def __init__(
        self, model: nn.Module, settings: TrainSettings, shape_CHW: tuple[int, ...]
    ) -> None:
        first, was_training = next(model.parameters()), model.training
        noise = Key(0, Purpose.PROBE).uniform(range(PROBES), tuple(shape_CHW))
        probe = torch.from_numpy(noise).to(first)
        model.eval()
        before = _quietly(model, probe)
        self.pairs, fast = _pairs(model, probe)
        self.refresh()
        after = _quietly(fast, probe)
        if (after - before).abs().max() > FOLDED_AGREES * before.abs().max().clamp(min=1):
            # Some convolution's output is read by more than its BatchNorm.
            self.pairs, fast = [], _shared(model)
        model.train(was_training)
        self.memory = torch.channels_last if self.pairs else torch.contiguous_format
        self.model: Any = torch.compile(fast) if settings.compile else fast

    def refresh(self) -> None:
        """After an update of the model, before the next attack."""
        for pair in self.pairs:
            pair.refresh()

    def __call__(self, images: Tensor, **options: Any) -> Tensor:
        """Logits (B, C), differentiable by the images; options are the model's own."""
        return self.model(images, **options)  # type: ignore[no-any-return]


@torch.no_grad()
def _quietly(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)  # type: ignore[no-any-return]


def _shared(model: nn.Module) -> nn.Module:
    """A copy in test mode whose weights and statistics are the model's own memory."""
    memo: dict[int, object] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()
    }
    memo |= {id(b): b for b in model.buffers()}
    return copy.deepcopy(model, memo).eval()


def _pairs(model: nn.Module, probe: Tensor) -> tuple[list[_Pair], nn.Module]:
    """All that can be folded, and the copy in which it will be."""
    fast, pairs = _shared(model), []
    for conv_name, norm_name in conv_bn_pairs(model, probe):
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        folded = fast.get_submodule(conv_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert isinstance(folded, nn.Conv2d)
        weight = torch.empty_like(conv.weight, memory_format=torch.channels_last)
        folded.weight = nn.Parameter(weight, requires_grad=False)
        folded.bias = nn.Parameter(torch.empty_like(norm.bias), requires_grad=False)
        parent, _, child = norm_name.rpartition(".")
        setattr(fast.get_submodule(parent), child, nn.Identity())
        pairs.append(_Pair(conv, norm, folded))
    return pairs, fast
