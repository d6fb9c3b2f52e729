"""What a model answers to a few fixed images, and whether such answers can be attacked.

B images, C classes. Images are (B, channels, H, W) in [0, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from s3ta.draws import Key, Purpose
from s3ta.errors import UserError

PROBE_IMAGES = 4


@dataclass(frozen=True)
class Answers:
    """What a model says about the probe images."""

    logits_BC: Tensor
    gradient_BCHW: Tensor
    """Of a fixed mixture of the logits, with respect to the images."""

    def equal(self, other: "Answers") -> bool:
        """To the last bit."""
        return torch.equal(self.logits_BC, other.logits_BC) and torch.equal(
            self.gradient_BCHW, other.gradient_BCHW
        )


def ask(model: nn.Module, shape_CHW: Sequence[int], classes: int | None = None) -> Answers:
    """The answers to a few images of noise, the same everywhere; UserError unless fit for attacks.

    With `classes` there must be as many logits.
    """
    where = next((t.device for t in [*model.parameters(), *model.buffers()]), torch.device("cpu"))
    noise = Key(0, Purpose.PROBE).uniform(range(PROBE_IMAGES), tuple(shape_CHW))
    images = torch.from_numpy(noise).to(where)
    answers = _answers(model, images, classes)
    if not answers.equal(_answers(model, images, classes)):
        raise UserError(
            "The model answers the same images differently when asked twice: its answers are "
            "random. Attacks on such a model need an expectation over transformation, which is "
            "not offered. Make its answers deterministic in eval mode."
        )
    return answers


def _answers(model: nn.Module, images: Tensor, classes: int | None) -> Answers:
    x = images.clone().requires_grad_()
    shape = tuple(images.shape)
    try:
        with torch.enable_grad():
            logits_BC = model(x)
    except Exception as error:
        raise UserError(
            f"The model raised {words(error)} for float32 images of shape {shape} in [0, 1]: it "
            "must take these. Compare their channels and size with what it was trained on (in an "
            "experiment file: as many channels as model.mean has numbers, and data.image_size)."
        ) from error
    _check_logits(logits_BC, len(images), classes)
    try:
        gradient = torch.autograd.grad((logits_BC * coefficients(logits_BC, 1)).sum(), x)[0]
    except RuntimeError as error:
        raise UserError(
            f"The model's logits have no gradient with respect to its images ({words(error)}): "
            "these attacks follow one. Remove torch.no_grad(), detach() and the like from forward."
        ) from error
    if not bool(torch.isfinite(gradient).all()):
        raise UserError(
            "The gradient of the model's logits is not finite for images of noise in [0, 1]: it "
            "must be. Look for a root or a division at zero in forward."
        )
    return Answers(logits_BC.detach(), gradient)


def _check_logits(logits_BC: Any, images: int, classes: int | None) -> None:
    if not isinstance(logits_BC, Tensor):
        raise UserError(
            f"The model returned {a_kind(logits_BC)}: it must return its logits, a tensor of shape "
            "(images, classes). Wrap it in a module whose forward returns only these."
        )
    shape = tuple(logits_BC.shape)
    if len(shape) != 2 or shape[0] != images or not logits_BC.is_floating_point():
        raise UserError(
            f"The model returned {str(logits_BC.dtype).removeprefix('torch.')} of shape {shape} "
            f"for {images} images: it must return logits of shape ({images}, classes)."
            " Wrap it in a module whose forward returns these."
        )
    if classes is not None and shape[1] != classes:
        raise UserError(
            f"The model gives {shape[1]} logits per image, but there are {classes} classes: it "
            "must give one for each, in their order. Use the data set that it was trained for."
        )
    if not bool(torch.isfinite(logits_BC).all()):
        raise UserError(
            "The model's logits are not all finite for images of noise in [0, 1]: they must be. "
            "Look for a division by zero, or for weights that are not finite."
        )


def coefficients(like: Tensor, seed: int) -> Tensor:
    """A number in [0, 1) for each of an image's values."""
    drawn = Key(seed, Purpose.PROBE).uniform(range(len(like)), tuple(like.shape[1:]))
    return torch.from_numpy(drawn).to(like)


def words(error: BaseException) -> str:
    """An error of somebody else's code, on one line."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def a_kind(value: object) -> str:
    """What a value is, for a sentence that says what it must be."""
    return "None" if value is None else f"an object of type {type(value).__name__}"
