"""S3TA, and the plain ResNet read by average pooling, behind one interface.

B batch, C classes, T unroll steps, Q heads, P = H W places, K key and V value channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from s3ta.attention import attend
from s3ta.basis import spatial_basis
from s3ta.settings import ModelSettings
from s3ta.vision import ResNet, final_layer

State = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Trace:
    """What a model did at every glance."""

    logits_BTC: Tensor
    """The answer it would have given after each step."""
    maps_BTQHW: Tensor
    """Attention maps, each summing to 1 over the grid."""


class Classifier(nn.Module):
    """Images (B, channels, H, W) in [0, 1] -> logits (B, C). Normalisation happens inside."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        # Not persistent: they are settings, and checkpoints keep torchvision's names.
        for name, values in (("mean", settings.mean), ("std", settings.std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def normalised(self, images: Tensor) -> Tensor:
        return (images - self.get_buffer("mean")) / self.get_buffer("std")


class PlainResNet(Classifier):
    """A ResNet with average pooling and one linear layer."""

    def __init__(self, settings: ModelSettings, classes: int) -> None:
        super().__init__(settings)
        self.vision = ResNet(settings.vision, settings.channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.vision(self.normalised(images))  # type: ignore[no-any-return]


class S3TA(Classifier):
    """A ResNet read by a recurrent top-down attention controller (S3TA sec. 3, Figure 2)."""

    def __init__(self, settings: ModelSettings, classes: int) -> None:
        super().__init__(settings)
        assert settings.attention is not None
        a = settings.attention
        self.unroll, self.heads, self.key_channels = settings.unroll, a.heads, a.key_channels
        self.basis_frequencies = a.basis_frequencies
        basis = a.basis_frequencies**2
        self.query_length = a.key_channels + basis
        self.scale = self.query_length**-0.5 if a.scaled else 1.0
        answer = settings.vision.channels - a.key_channels + basis
        self.vision = ResNet(settings.vision, settings.channels)
        self.query = nn.Sequential(
            nn.Linear(a.state, a.query_hidden),
            nn.ReLU(),
            nn.Linear(a.query_hidden, a.heads * self.query_length),
        )
        self.core = nn.LSTMCell(a.heads * answer, a.state)
        # ASSUMPTION: torch's initial weights, without a forget bias of 1; the paper states none.
        # The initial state is learned. ASSUMPTION: it starts at small noise, so that heads differ.
        self.initial_hidden = nn.Parameter(torch.randn(a.state) * 0.1)
        self.initial_cell = nn.Parameter(torch.randn(a.state) * 0.1)
        self.readout = nn.Sequential(
            nn.Linear(a.state, a.readout_hidden), nn.ReLU(), final_layer(a.readout_hidden, classes)
        )

    def forward(self, images: Tensor, unroll: int | None = None) -> Tensor:
        keys_BPK, values_BPV, _ = self._look(images)
        state = self._initial(len(images))
        for _ in range(self._steps(unroll)):
            state, _ = self._glance(state, keys_BPK, values_BPV)
        return self.readout(state[0])  # type: ignore[no-any-return]

    def trace(self, images: Tensor, unroll: int | None = None) -> Trace:
        """Logits and attention maps after every step, for looking at."""
        keys_BPK, values_BPV, (height, width) = self._look(images)
        state = self._initial(len(images))
        logits, maps = [], []
        for _ in range(self._steps(unroll)):
            state, maps_BQP = self._glance(state, keys_BPK, values_BPV)
            logits.append(self.readout(state[0]))
            maps.append(maps_BQP.view(-1, self.heads, height, width))
        return Trace(torch.stack(logits, 1), torch.stack(maps, 1))

    def _steps(self, unroll: int | None) -> int:
        steps = self.unroll if unroll is None else unroll
        if steps < 1:
            raise ValueError(f"unroll is {steps}: the controller takes at least one glance")
        return steps

    def _look(self, images: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Keys and values with the basis attached; computed once, for all steps."""
        features = self.vision.features(self.normalised(images))
        height, width = features.shape[2:]
        places_BPD = features.flatten(2).transpose(1, 2)
        basis_HWS = spatial_basis(height, width, self.basis_frequencies)
        basis_BPS = basis_HWS.flatten(0, 1).to(places_BPD).expand(len(images), -1, -1)
        keys = places_BPD[..., : self.key_channels]
        values = places_BPD[..., self.key_channels :]
        return (
            torch.cat([keys, basis_BPS], -1),
            torch.cat([values, basis_BPS], -1),
            (height, width),
        )

    def _initial(self, batch: int) -> State:
        return self.initial_hidden.expand(batch, -1), self.initial_cell.expand(batch, -1)

    def _glance(self, state: State, keys_BPK: Tensor, values_BPV: Tensor) -> tuple[State, Tensor]:
        """One step: queries come from the previous hidden state, answers go into the LSTM."""
        queries_BQK = self.query(state[0]).view(-1, self.heads, self.query_length)
        answers_BQV, maps_BQP = attend(queries_BQK, keys_BPK, values_BPV, self.scale)
        return self.core(answers_BQV.flatten(1), state), maps_BQP


def build(settings: ModelSettings, classes: int, seed: int) -> PlainResNet | S3TA:
    """A new model on the CPU with weights drawn from `seed`; the global generator is left alone.

    torch draws them, so on another kind of processor the last bits may differ.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return (PlainResNet if settings.attention is None else S3TA)(settings, classes)


def parameters(model: nn.Module) -> int:
    """The number of trained numbers."""
    return sum(p.numel() for p in model.parameters())
