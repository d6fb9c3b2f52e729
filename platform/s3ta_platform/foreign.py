"""A classifier that was not trained here: found by its function's name, wrapped, and recognised.

B images, C classes. Images are (B, channels, H, W) in [0, 1].
"""

import hashlib
import importlib
import itertools
import json
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from s3ta.errors import UserError
from s3ta.model import parameters
from s3ta.settings import ModelSettings
from s3ta_platform.checkpoints import model_digest
from s3ta_platform.probe import Answers, a_kind, ask, coefficients, words

DIGITS = 3
"""Significant digits of the answers in a digest: another machine's last bits do not matter."""
ROUNDING = 1e-4
"""So far apart, relative to their size, may two machines' answers lie."""


class UnitImages(nn.Module):
    """A model behind the preprocessing that it expects: takes images in [0, 1], gives its logits.

    They are scaled to `input_range` first, then `mean` and `std` of each channel are applied, in
    the units of that range.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        input_range: Sequence[float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        self.model = model
        self.low, self.width = input_range[0], input_range[1] - input_range[0]
        for name, values in (("mean", mean), ("std", std)):
            numbers = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, numbers, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        scaled = images * self.width + self.low
        normalised = (scaled - self.get_buffer("mean")) / self.get_buffer("std")
        return self.model(normalised)  # type: ignore[no-any-return]


def load_factory(settings: ModelSettings) -> nn.Module:
    """The model that `settings.factory` names, in eval mode on the CPU; UserError if there is none.

    It takes images in [0, 1]; its parameters are as the function gives them.
    """
    assert settings.factory is not None
    model = _call(settings.factory)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model.factory {settings.factory} returned {a_kind(model)}: it must return a "
            "torch.nn.Module. Return the model itself, with its weights loaded."
        )
    wrapped = UnitImages(
        model, mean=settings.mean, std=settings.std, input_range=settings.input_range
    )
    return wrapped.cpu().eval()


def _call(factory: str) -> Any:
    function = _find(factory)
    try:
        return function()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(
            f"model.factory {factory} raised {words(error)}: called without arguments it must "
            "return a model. Call it in Python, where the whole traceback shows, and correct it."
        ) from error


def _find(factory: str) -> Any:
    name, _, function = factory.partition(":")
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise UserError(_not_importable(factory, name, error)) from error
    found = getattr(module, function, None)
    if callable(found) and not isinstance(found, nn.Module):
        return found
    if found is not None:
        raise UserError(
            f"model.factory is {factory!r}, but {function} in {module.__file__} is "
            f"{a_kind(found)}: it must be a function without arguments. Write one that returns "
            "the model."
        )
    near = get_close_matches(function, [n for n in dir(module) if callable(getattr(module, n))])
    meant = f" Did you mean {name}:{near[0]}?" if near else ""
    raise UserError(
        f"model.factory is {factory!r}, but {module.__file__} has no function {function!r}.{meant} "
        "It must be written as package.module:function. Correct the name, or add the function."
    )


def _not_importable(factory: str, name: str, error: BaseException) -> str:
    start = f"model.factory is {factory!r}, but"
    absent = error.name if isinstance(error, ModuleNotFoundError) else None
    if absent and f"{name}.".startswith(f"{absent}."):
        return (
            f"{start} Python finds no module {absent!r}: the driver and every worker must be able "
            "to import it. Correct the name, or run `pip install -e .` in the folder of its "
            "project, in the environment of s3ta."
        )
    remedy = f"Install {absent}" if absent else f"Correct {name}"
    return (
        f"{start} importing {name} failed with {words(error)}: the driver and every worker must "
        f"be able to import it. {remedy} (`pip install -e .` in the folder of its project installs "
        f'what that project asks for); `python -c "import {name}"` shows the whole traceback.'
    )


def describe(settings: ModelSettings, shape_CHW: Sequence[int], classes: int) -> tuple[str, int]:
    """The digest of the model that a factory gives, and how many parameters it has."""
    model = load_factory(settings)
    return foreign_digest(model, shape_CHW, classes, settings), parameters(model)


def foreign_digest(
    model: nn.Module, shape_CHW: Sequence[int], classes: int, settings: ModelSettings
) -> str:
    """SHA-256 that names a factory's model: its parameters and buffers, answers and preprocessing.

    The answers, logits and gradients for a few fixed images, are there because code decides results
    too; they enter as a few numbers of 3 significant digits. UserError if they are unfit (see ask).
    """
    return next(_digests(model, shape_CHW, classes, settings))


def has_digest(
    digest: str, model: nn.Module, shape_CHW: Sequence[int], classes: int, settings: ModelSettings
) -> bool:
    """Whether it is the model of that digest, which may have been made on another machine."""
    return digest in _digests(model, shape_CHW, classes, settings)


def _digests(
    model: nn.Module, shape_CHW: Sequence[int], classes: int, settings: ModelSettings
) -> Iterator[str]:
    """The digest; then those of answers within rounding that are written with other digits."""
    tensors = model_digest({**dict(model.named_parameters()), **dict(model.named_buffers())})
    answers = ask(model, shape_CHW, classes)
    given = [tensors, settings.mean, settings.std, settings.input_range]
    for written in itertools.product(*map(_ways_to_write, _numbers(answers))):
        yield hashlib.sha256(json.dumps([*given, *written]).encode()).hexdigest()


def _numbers(answers: Answers) -> list[tuple[float, float]]:
    """Mixtures of each image's logits, and of its gradient: (value, how exact it is)."""
    found = []
    for seed, values in ((1, answers.logits_BC), (2, answers.gradient_BCHW)):
        mixed = (values.double() * coefficients(values, seed)).flatten(1)
        inexact_B = ROUNDING * mixed.norm(dim=1)
        found += list(zip(mixed.sum(1).tolist(), inexact_B.tolist(), strict=True))
    return found


def _ways_to_write(number: tuple[float, float]) -> list[str]:
    value, inexact = number
    near = (value, value - inexact, value + inexact)
    return list(dict.fromkeys(f"{n + 0.0:.{DIGITS - 1}e}" for n in near))
