"""S3TA, its controls, and the plain ResNet read by average pooling, behind one interface.

B batch, C classes, T unroll steps, Q queries (heads), P = H W places, K key and V value channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from s3ta.attention import attend, hold, keys_and_values
from s3ta.errors import UserError
from s3ta.settings import AttentionSettings, ModelSettings, Queries
from s3ta.vision import ResNet, mlp

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
    """A ResNet with average pooling and one linear layer, or an MLP as a control of S3TA's size."""

    def __init__(self, settings: ModelSettings, classes: int) -> None:
        super().__init__(settings)
        self.vision = ResNet(settings.vision, settings.channels, classes, settings.mlp_head)

    def forward(self, images: Tensor) -> Tensor:
        return self.vision(self.normalised(images))  # type: ignore[no-any-return]


class S3TA(Classifier):
    """A ResNet read by a recurrent top-down attention controller (S3TA sec. 3, Figure 2).

    Where `queries` is `uniform` or `fixed` they come from no state; all else is the same.
    """

    def __init__(self, settings: ModelSettings, classes: int) -> None:
        super().__init__(settings)
        a = _attention(settings)
        self.unroll, self.attention, self.scale = settings.unroll, a, _scale(a)
        self.vision = ResNet(settings.vision, settings.channels)
        self.query: nn.Module | None = None
        if a.queries is Queries.state:
            self.query = nn.Sequential(
                nn.Linear(a.state, a.query_hidden),
                nn.ReLU(),
                nn.Linear(a.query_hidden, a.heads * a.query_length),
            )
        elif a.queries is Queries.fixed:
            self.queries_QK = _learned_queries(a.heads, a)
        else:  # the softmax of zeros is 1 / P
            zeros_QK = torch.zeros(a.heads, a.query_length)
            self.register_buffer("queries_QK", zeros_QK, persistent=False)
        self.core = nn.LSTMCell(a.heads * settings.answer_length, a.state)
        # ASSUMPTION: torch's initial weights, without a forget bias of 1; the paper states none.
        # The initial state is learned. ASSUMPTION: it starts at small noise, so that heads differ.
        self.initial_hidden = nn.Parameter(torch.randn(a.state) * 0.1)
        self.initial_cell = nn.Parameter(torch.randn(a.state) * 0.1)
        self.readout = mlp(a.state, [a.readout_hidden], classes)

    def forward(self, images: Tensor, unroll: int | None = None) -> Tensor:
        keys_BPK, values_BPV, _ = self._look(images)
        state = self._initial(len(images))
        for _ in range(self._steps(unroll)):
            state, _ = self._glance(state, keys_BPK, values_BPV)
        return self.readout(state[0])  # type: ignore[no-any-return]

    def trace(self, images: Tensor, unroll: int | None = None) -> Trace:
        """Logits and attention maps after every step, with gradients where they are asked for."""
        keys_BPK, values_BPV, grid = self._look(images)
        state = self._initial(len(images))
        logits, maps = [], []
        for _ in range(self._steps(unroll)):
            state, maps_BQP = self._glance(state, keys_BPK, values_BPV)
            logits.append(self.readout(state[0]))
            maps.append(maps_BQP.view(*maps_BQP.shape[:2], *grid))
        return Trace(torch.stack(logits, 1), torch.stack(maps, 1))

    def read(self, images: Tensor, maps_BTQHW: Tensor) -> Tensor:
        """Logits (B, C) after T glances whose maps are given: what there is to see, if one looks
        there. With the images' own maps it is `forward`."""
        _, values_BPV, _ = self._look(images)
        state = self._initial(len(images))
        for maps_BQHW in maps_BTQHW.unbind(dim=1):
            answers_BQV = hold(maps_BQHW.flatten(2), values_BPV)
            state = self.core(answers_BQV.flatten(1), state)
        return self.readout(state[0])  # type: ignore[no-any-return]

    def _steps(self, unroll: int | None) -> int:
        steps = self.unroll if unroll is None else unroll
        if steps < 1:
            raise UserError(f"unroll is {steps}: the controller takes at least one glance. Give 1.")
        return steps

    def _look(self, images: Tensor) -> tuple[Tensor, Tensor, torch.Size]:
        """Keys and values, computed once for all steps, and the grid they lie on."""
        features_BDHW = self.vision.features(self.normalised(images))
        return *keys_and_values(features_BDHW, self.attention), features_BDHW.shape[2:]

    def _initial(self, batch: int) -> State:
        return self.initial_hidden.expand(batch, -1), self.initial_cell.expand(batch, -1)

    def _queries(self, hidden_BS: Tensor) -> Tensor:
        """(B, Q, K), from the previous hidden state unless they are a control's."""
        if self.query is None:
            return self.queries_QK.expand(len(hidden_BS), -1, -1)
        queries: Tensor = self.query(hidden_BS)
        return queries.view(len(hidden_BS), self.attention.heads, -1)

    def _glance(self, state: State, keys_BPK: Tensor, values_BPV: Tensor) -> tuple[State, Tensor]:
        """One step: the queries' answers go into the LSTM."""
        queries_BQK = self._queries(state[0])
        answers_BQV, maps_BQP = attend(queries_BQK, keys_BPK, values_BPV, self.scale)
        return self.core(answers_BQV.flatten(1), state), maps_BQP


class OneShot(Classifier):
    """A control without recurrence: `unroll` x heads learned queries at once, read by an MLP.

    It reads as many answers as S3TA with that unroll, none of which depends on another.
    """

    def __init__(self, settings: ModelSettings, classes: int) -> None:
        super().__init__(settings)
        self.attention = a = _attention(settings)
        self.scale, count = _scale(a), settings.unroll * a.heads
        self.vision = ResNet(settings.vision, settings.channels)
        self.queries_QK = _learned_queries(count, a)
        self.readout = mlp(count * settings.answer_length, [a.readout_hidden], classes)

    def forward(self, images: Tensor, unroll: int | None = None) -> Tensor:
        return self.trace(images, unroll).logits_BTC[:, 0]

    def trace(self, images: Tensor, unroll: int | None = None) -> Trace:
        """One step with the maps of all queries."""
        if unroll not in (None, 1):
            raise UserError(
                f"unroll is {unroll}: a model that asks all its queries in one shot has one step. "
                "Give none."
            )
        features_BDHW = self.vision.features(self.normalised(images))
        queries_BQK = self.queries_QK.expand(len(images), -1, -1)
        keys_BPK, values_BPV = keys_and_values(features_BDHW, self.attention)
        answers_BQV, maps_BQP = attend(queries_BQK, keys_BPK, values_BPV, self.scale)
        logits_BC = self.readout(answers_BQV.flatten(1))
        maps_BTQHW = maps_BQP.view(len(images), 1, -1, *features_BDHW.shape[2:])
        return Trace(logits_BC[:, None], maps_BTQHW)


def _attention(settings: ModelSettings) -> AttentionSettings:
    assert settings.attention is not None
    return settings.attention


def _scale(attention: AttentionSettings) -> float:
    return attention.query_length**-0.5 if attention.scaled else 1.0


def _learned_queries(count: int, attention: AttentionSettings) -> nn.Parameter:
    """Parameters (Q, K). ASSUMPTION: they start uniform within 1 / sqrt(K) of 0.

    That is about as wide as a new query network's.
    """
    queries_QK = torch.empty(count, attention.query_length)
    bound = attention.query_length**-0.5
    return nn.Parameter(queries_QK.uniform_(-bound, bound))


Model = PlainResNet | S3TA | OneShot


def build(settings: ModelSettings, classes: int, seed: int) -> Model:
    """A new model on the CPU with weights drawn from `seed`; the global generator is left alone.

    torch draws them, so on another kind of processor the last bits may differ.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if settings.attention is None:
            return PlainResNet(settings, classes)
        one_shot = settings.attention.queries is Queries.one_shot
        return (OneShot if one_shot else S3TA)(settings, classes)


def parameters(model: nn.Module) -> int:
    """The number of trained numbers."""
    return sum(p.numel() for p in model.parameters())
