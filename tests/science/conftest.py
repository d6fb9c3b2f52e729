"""Small models and images for the science tests. All their numbers come from Philox draws and plain
float32 products, so they are the same bits on every processor."""

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from s3ta.batch import Batch
from s3ta.draws import Key, Purpose
from s3ta.engine import Engine, make_engine
from s3ta.model import Model, build
from s3ta.settings import (
    AttackSettings,
    AttentionSettings,
    Block,
    EngineSettings,
    ModelSettings,
    VisionSettings,
)
from s3ta.tally import Rows
from s3ta.trajectory import Trajectory, trajectories

DEVICE = os.environ.get("S3TA_TEST_DEVICE", "cpu")
"""Of the engines. Where it is not the CPU, see test_on_cuda.py."""
NOTHING: Mapping[str, Any] = MappingProxyType({})
CENTRE_AND_HALF = {"running_mean": (0.0, 0.3), "running_var": (1.0, 0.5)}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_settings() -> Callable[..., ModelSettings]:
    return _settings


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Model]:
    """(unroll, classes=5, seed=0, settings of the model): S3TA, or with unroll None a ResNet.

    Neither its predictions nor the statistics of its BatchNorms are trivial.
    """
    return _model


@pytest.fixture(scope="session")
def tiny_batch() -> Callable[..., Batch]:
    """(n, height=6, width=6, classes=5, first_id=0): grey noise images."""
    return _batch


@pytest.fixture(scope="session")
def tiny_engine() -> Callable[..., Engine]:
    """(unroll, tile=32, settings of the engine): the model of `tiny_model` for `tiny_batch`."""
    return _engine


@pytest.fixture(scope="session")
def trajectory() -> Callable[..., Trajectory]:
    """(*readings, settings of the attack): the one run that it consists of."""
    return _trajectory


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Rows, Rows], None]:
    """Rows or saved states: the same columns with the same bits."""
    return _assert_same


# Sizes are multiples of 4: see test_evaluation on what places in a tile have to do with it.


def _settings(
    unroll: int | None = None,
    channels: int = 1,
    block: Block = Block.basic,
    vision: Mapping[str, Any] = NOTHING,
    **attention: Any,
) -> ModelSettings:
    """`vision` and `attention` are further settings of those two; the latter for an unroll only."""
    net = VisionSettings(
        block=block,
        depths=[1, 1],
        widths=[8, 12],
        strides=[1, 2],
        stem_channels=8,
        stem_kernel=3,
        stem_stride=1,
        stem_pool=False,
        **vision,
    )
    controller = AttentionSettings(
        heads=2,
        key_channels=4,
        basis_frequencies=2,
        state=12,
        query_hidden=12,
        readout_hidden=12,
        **attention,
    )
    return ModelSettings(
        vision=net,
        attention=None if unroll is None else controller,
        unroll=unroll or 1,
        mean=[0.4, 0.5, 0.6][:channels],
        std=[0.2, 0.3, 0.4][:channels],
    )


def _model(unroll: int | None = None, classes: int = 5, seed: int = 0, **settings: Any) -> Model:
    model = build(_settings(unroll, **settings), classes, seed=0)
    with torch.no_grad():
        for index, (name, values) in enumerate(model.state_dict().items()):
            if values.is_floating_point():
                values.copy_(_numbers(name, values.shape, index, seed))
    return model.eval()


def _numbers(name: str, shape: torch.Size, index: int, seed: int) -> torch.Tensor:
    draws = torch.from_numpy(Key(seed, Purpose.WEIGHTS).uniform([index], tuple(shape))[0])
    last = name.rpartition(".")[2]
    if last in CENTRE_AND_HALF:
        centre, half = CENTRE_AND_HALF[last]
    elif last == "weight" and len(shape) == 1:
        centre, half = 1.0, 0.5
    elif len(shape) > 1:
        centre, half = 0.0, 2.5 * float(np.prod(shape[1:])) ** -0.5
    else:
        centre, half = 0.0, 0.5
    return centre + half * (2 * draws - 1)


def _batch(
    n: int,
    height: int = 6,
    width: int = 6,
    classes: int = 5,
    first_id: int = 0,
    channels: int = 1,
) -> Batch:
    ids = np.arange(first_id, first_id + n, dtype=np.int64)
    key = Key(99, Purpose.ORDER)
    pixels = key.uniform(ids, (channels, height, width)) * 256
    labels = key.uniform(ids + 1_000_000, (1,))[:, 0] * classes
    return Batch(
        images_BCHW=pixels.astype(np.uint8), labels_B=labels.astype(np.int64), image_ids_B=ids
    )


def _engine(unroll: int | None = None, tile: int = 32, **settings: Any) -> Engine:
    return make_engine(_model(unroll), EngineSettings(**settings), (1, 6, 6), tile, DEVICE)


def _trajectory(*readings: int, **attack: Any) -> Trajectory:
    (run,) = trajectories(AttackSettings(readings=list(readings), **attack))
    return run


def _assert_same(a: Rows, b: Rows) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name
