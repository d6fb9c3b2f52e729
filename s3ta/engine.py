"""A model as attacks see it: a fast copy that finds the way, and the model itself, which judges.

The fast copy has its BatchNorm folded into the convolutions, lies channels-last in memory, and may
compute in bfloat16. Its last bits differ, and signed steps amplify them; so whatever is reported is
what the model itself answers, in float32 and unfolded. B batch, C classes.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from s3ta.draws import Key, Purpose
from s3ta.errors import UserError
from s3ta.model import Trace
from s3ta.settings import Dtype, EngineSettings

FOLDED_AGREES = 1e-3
"""Folding changes logits by rounding only: relative to the largest, anything above is a mistake."""


@dataclass(frozen=True)
class Engine:
    """Both sides of one model, with parameters that take no gradient."""

    judge: nn.Module
    """The model itself, in test mode."""
    fast: Callable[[Tensor], Tensor]
    settings: EngineSettings
    folded: bool
    """Whether there was BatchNorm behind convolutions, and it was folded."""
    device: str = "cpu"

    @property
    def memory(self) -> torch.memory_format:
        """How attacked images lie in memory."""
        return _memory(self.settings)

    def logits(self, images: Tensor) -> Tensor:
        """The fast copy's float32 logits (B, C), always with a graph.

        Kernels may differ without one, and nothing may depend on which step is the last.
        """
        bf16 = self.settings.dtype is Dtype.bfloat16
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=bf16):
            return self.fast(images).float()

    @property
    def unroll(self) -> int:
        """Glances of the deployed model; UserError if it takes none."""
        unroll = getattr(self.judge, "unroll", None)
        if not isinstance(unroll, int) or not hasattr(self.fast, "trace"):
            raise UserError(
                "This attack goes through a recurrent model's glances (attack.through, "
                "attack.unroll), and the model takes none: it must be an S3TA. Leave out the "
                "attack, or set attack.through=answer and attack.unroll=null."
            )
        return unroll

    def trace(self, images: Tensor, unroll: int) -> Trace:
        """The fast copy's float32 logits and maps after each of so many glances."""
        bf16 = self.settings.dtype is Dtype.bfloat16
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=bf16):
            trace = self.fast.trace(images, unroll)  # type: ignore[attr-defined]
        return Trace(trace.logits_BTC.float(), trace.maps_BTQHW.float())

    def read(self, images: Tensor, maps_BTQHW: Tensor) -> Tensor:
        """The fast copy's float32 logits (B, C) with given attention maps."""
        bf16 = self.settings.dtype is Dtype.bfloat16
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=bf16):
            logits_BC = self.fast.read(images, maps_BTQHW)  # type: ignore[attr-defined]
        return logits_BC.float()  # type: ignore[no-any-return]

    @torch.no_grad()
    def judged(self, images: Tensor) -> Tensor:
        """The model's own logits (B, C)."""
        return self.judge(images.contiguous()).float()  # type: ignore[no-any-return]


def make_engine(
    model: nn.Module,
    settings: EngineSettings,
    shape_CHW: tuple[int, ...],
    tile: int,
    device: str = "cpu",
) -> Engine:
    """Copy the model into an engine, and check that its answers are fit for being compared.

    UserError if they are random, or depend on an image's place or company in a tile: then results
    would depend on how the work is cut.
    """
    probe = _probe(shape_CHW, tile).to(device)
    judge = _copy(model).to(device)
    fast, folded = _copy(judge), False
    if settings.fold:
        fast, folded = _folded(fast, probe)
    fast = fast.to(memory_format=_memory(settings))  # type: ignore[call-overload]
    called = torch.compile(fast) if settings.compile else fast
    engine = Engine(judge, called, settings, folded, device)
    _require_same(engine, probe)
    return engine


def _memory(settings: EngineSettings) -> torch.memory_format:
    return torch.channels_last if settings.channels_last else torch.contiguous_format


def _copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval().requires_grad_(False)


def _probe(shape_CHW: tuple[int, ...], tile: int) -> Tensor:
    """A tile of noise that is the same everywhere."""
    return torch.from_numpy(Key(0, Purpose.PROBE).uniform(range(tile), tuple(shape_CHW)))


@torch.no_grad()
def _folded(model: nn.Module, probe: Tensor) -> tuple[nn.Module, bool]:
    """The model with BatchNorm folded, and whether it was; as it is where folding changes it."""
    before = model(probe)
    pairs = conv_bn_pairs(model, probe)
    folded = copy.deepcopy(model)
    for conv_name, bn_name in pairs:
        conv, bn = folded.get_submodule(conv_name), folded.get_submodule(bn_name)
        _replace(folded, conv_name, fuse_conv_bn_eval(conv, bn))  # type: ignore[type-var, arg-type]
        _replace(folded, bn_name, nn.Identity())
    folded.eval().requires_grad_(False)
    close = (folded(probe) - before).abs().max() <= FOLDED_AGREES * before.abs().max().clamp(min=1)
    # Far apart: some convolution's output is read by more than its BatchNorm.
    return (folded, True) if pairs and bool(close) else (model, False)


def conv_bn_pairs(model: nn.Module, probe: Tensor) -> list[tuple[str, str]]:
    """Names of convolutions and the BatchNorm that takes their output, each called once."""
    made: list[tuple[str, Any]] = []  # the tensors too, so that none takes another's place
    pairs: list[tuple[str, str]] = []
    calls: dict[str, int] = {}

    def after_conv(name: str) -> Callable[..., None]:
        return lambda module, args, output: made.append((name, output))

    def before_bn(name: str) -> Callable[..., None]:
        def look(module: nn.Module, args: tuple[Any, ...]) -> None:
            calls[name] = calls.get(name, 0) + 1
            pairs.extend((conv, name) for conv, output in made if args and args[0] is output)

        return look

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after_conv(name)))
        elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            hooks.append(module.register_forward_pre_hook(before_bn(name)))
    try:
        model(probe)
    finally:
        for hook in hooks:
            hook.remove()
    convs = [name for name, _ in made]
    return [(conv, bn) for conv, bn in pairs if convs.count(conv) == 1 and calls[bn] == 1]


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _require_same(engine: Engine, probe: Tensor) -> None:
    answers, again = _answers(engine, probe), _answers(engine, probe)
    if any(bool(a.isnan().any()) for a in answers):
        raise UserError(
            "The model's answers to images of noise, or their gradients, are no numbers (NaN): "
            "there is nothing to attack. Check its weights and what it divides by."
        )
    if any(bool((a != b).any()) for a, b in zip(answers, again, strict=True)):
        raise UserError(
            "The model answers the same images differently when asked twice: its answers are "
            "random. A gradient of one draw says little about the next, so attacks on it need an "
            "expectation over transformation, which is not offered. Make its answers "
            "deterministic in eval mode."
        )
    alike = _answers(engine, probe[:1].expand_as(probe).contiguous())
    pairs = zip(alike, answers, strict=True)
    if any(bool((a != a[:1]).any() | (a[0] != b[0]).any()) for a, b in pairs):
        raise UserError(
            f"On this processor an image's place or company in a tile of {len(probe)} changes the "
            "model's answers, so results would depend on how the work is cut. Make the lengths of "
            "its linear layers multiples of 4, or set evaluate.tile=1, which is slower."
        )


def _answers(engine: Engine, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The fast logits and their gradient, and the judge's logits."""
    x = images.detach().to(memory_format=engine.memory, copy=True).requires_grad_()
    logits_BC = engine.logits(x)
    gradient = torch.autograd.grad(logits_BC.logsumexp(dim=1).sum(), x)[0]
    return logits_BC.detach(), gradient, engine.judged(images)


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """A model in training as its attack sees it: test mode, parameters without gradients."""
    modes = [(module, module.training) for module in model.modules()]
    trained = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for p in trained:
        p.requires_grad_(False)
    try:
        yield model
    finally:
        for p in trained:
            p.requires_grad_(True)
        for module, training in modes:
            module.training = training
