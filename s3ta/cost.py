"""What a model costs, from its settings alone and without torch: multiply-adds and parameters.

Counted are the multiply-adds of convolutions, linear layers (LSTM and MLPs among them) and matrix
products; BatchNorm, activations, pooling, softmax and sums are not. A gradient towards the images
costs about as much again, one towards images or activations and weights twice as much.
"""

from dataclasses import dataclass
from itertools import pairwise

from s3ta.settings import Block, Denoise, ModelSettings, Queries, VisionSettings

Size = int | tuple[int, int]
"""Of an image: its side, or height and width."""


def multiply_adds(settings: ModelSettings, size: Size, classes: int) -> int:
    """Of one forward pass of one image. Linear in the unroll, except in one shot."""
    return _count(settings, size, classes).multiply_adds


def parameter_count(settings: ModelSettings, classes: int) -> int:
    """Numbers that are trained."""
    return _count(settings, 1, classes).parameters


@dataclass(frozen=True, kw_only=True)
class Held:
    """Numbers that one image's forward pass gives rise to, by what keeps them for the gradient."""

    convolutions: int
    """Put out by convolutions: a BatchNorm keeps each once, and the ReLU after it once more."""
    blocks: int
    """Put out by residual blocks and the stem."""
    largest_block: int
    """Put out by the convolutions of one block, the largest."""
    attention: int
    """Keys and values, and at each glance the logits and the maps."""


def held_numbers(settings: ModelSettings, size: Size, classes: int) -> Held:
    """What a forward pass keeps in memory for its gradient; of the read-out nothing is counted."""
    count = _count(settings, size, classes)
    return Held(
        convolutions=count.outputs,
        blocks=count.block_outputs,
        largest_block=count.largest_block,
        attention=count.attention,
    )


@dataclass
class _Count:
    multiply_adds: int = 0
    parameters: int = 0
    outputs: int = 0
    block_outputs: int = 0
    largest_block: int = 0
    attention: int = 0

    def product(self, rows: int, inner: int, columns: int, times: int = 1) -> None:
        self.multiply_adds += rows * inner * columns * times

    def conv(self, inputs: int, outputs: int, kernel: int, places: int, bias: bool = False) -> None:
        self.product(places, inputs * kernel**2, outputs)
        self.parameters += inputs * kernel**2 * outputs + outputs * bias
        self.outputs += places * outputs

    def block(self, before: int, outputs: int) -> None:
        """A residual block has ended; `before` is what `outputs` was at its start."""
        self.largest_block = max(self.largest_block, self.outputs - before)
        self.block_outputs += outputs

    def norm(self, channels: int) -> None:
        self.parameters += 2 * channels

    def linear(self, inputs: int, outputs: int, times: int = 1) -> None:
        self.product(1, inputs, outputs, times)
        self.parameters += (inputs + 1) * outputs

    def mlp(self, sizes: list[int], times: int = 1) -> None:
        for inputs, outputs in pairwise(sizes):
            self.linear(inputs, outputs, times)


def _count(settings: ModelSettings, size: Size, classes: int) -> _Count:
    if settings.factory is not None:
        raise ValueError("model.factory names a model of your own: its settings tell no cost")
    count, vision = _Count(), settings.vision
    height, width = (size, size) if isinstance(size, int) else size
    places = _vision(count, vision, settings.channels, (height, width))
    if settings.attention is None:
        count.mlp([vision.channels, *settings.mlp_head, classes])
    elif settings.attention.queries is Queries.one_shot:
        _one_shot(count, settings, places, classes)
    else:
        _controller(count, settings, places, classes)
    return count


def _controller(count: _Count, settings: ModelSettings, places: int, classes: int) -> None:
    a, k, answer = settings.attention, settings.unroll, settings.answer_length
    assert a is not None
    if a.queries is Queries.state:
        count.mlp([a.state, a.query_hidden, a.heads * a.query_length], times=k)
    elif a.queries is Queries.fixed:
        count.parameters += a.heads * a.query_length
    count.product(a.heads, a.query_length, places, k)
    count.product(a.heads, places, answer, k)
    count.attention += places * (a.query_length + answer + 2 * a.heads * k)
    count.linear(a.heads * answer, 4 * a.state, k)
    count.linear(a.state, 4 * a.state, k)
    count.parameters += 2 * a.state
    count.mlp([a.state, a.readout_hidden, classes])


def _one_shot(count: _Count, settings: ModelSettings, places: int, classes: int) -> None:
    a, answer = settings.attention, settings.answer_length
    assert a is not None
    queries = settings.unroll * a.heads
    count.parameters += queries * a.query_length
    count.product(queries, a.query_length, places)
    count.product(queries, places, answer)
    count.attention += places * (a.query_length + answer + 2 * queries)
    count.mlp([queries * answer, a.readout_hidden, classes])


def _vision(count: _Count, v: VisionSettings, channels: int, size: tuple[int, int]) -> int:
    """Count the net up to its last feature map; returns the map's places."""
    size = _strided(size, v.stem_stride)
    count.conv(channels, v.stem_width, v.stem_kernel, _places(size))
    count.norm(v.stem_width)
    size = _strided(size, 2) if v.stem_pool else size
    count.block_outputs += count.outputs
    inputs = v.stem_width
    stages = zip(v.depths, v.stage_widths, v.strides, v.stage_channels, strict=True)
    for depth, width, first_stride, outputs in stages:
        for block in range(depth):
            stride, before = (first_stride if block == 0 else 1), _places(size)
            outputs_before = count.outputs
            size = _strided(size, stride)
            if v.block is Block.bottleneck:
                layers = [(inputs, width, 1, before), (width, width, 3, _places(size))]
                layers.append((width, outputs, 1, _places(size)))
            else:
                layers = [(inputs, width, 3, _places(size)), (width, width, 3, _places(size))]
            if stride != 1 or inputs != outputs:
                layers.append((inputs, outputs, 1, _places(size)))
            for layer in layers:
                count.conv(*layer)
                count.norm(layer[1])
            if v.squeeze_reduction is not None:
                inside = outputs // v.squeeze_reduction
                count.mlp([outputs, inside, outputs])
            inputs = outputs
            count.block(outputs_before, outputs * _places(size))
        if v.denoise is not None:
            _denoising(count, outputs, _places(size), v.denoise)
    return _places(size)


def _denoising(count: _Count, channels: int, places: int, form: Denoise) -> None:
    if form is Denoise.gaussian:
        embedding = channels // 2
        count.conv(channels, embedding, 1, places)
        count.conv(channels, embedding, 1, places)
        count.product(places, embedding, places)
        count.product(places, places, channels)
    else:
        count.product(channels, places, min(channels, places), times=2)
    count.conv(channels, channels, 1, places)
    count.norm(channels)


def _strided(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """After a convolution or pooling with an odd kernel and half of it as padding."""
    return (size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1


def _places(size: tuple[int, int]) -> int:
    return size[0] * size[1]
