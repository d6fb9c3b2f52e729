"""The command `s3ta` as a user types it, but in this process: a start costs nothing."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from s3ta_platform import cli

TINY = """
defaults:
  - schema
  - data: fashion_mnist_sample
  - model: small_s3ta
  - train: small_adversarial
  - attack@evaluate.attacks.pgd: small_pgd
  - cluster: inline
  - _self_
name: tiny
model:
  vision: {depths: [1], widths: [8], strides: [2], stem_channels: 8}
  attention: {heads: 2, key_channels: 4, basis_frequencies: 2, state: 8, query_hidden: 8}
sweep:
  points:
    - {model.unroll: 1}
    - {model.unroll: 2}
data: {train_images: 32}
train: {epochs: 2, batch: 16, microbatch: 8, attack: {steps: 1}}
evaluate:
  images: 24
  tile: 8
  shard_steps: 288
  gallery_images: 2
  attacks: {pgd: {readings: [2, 16, 18]}}
"""
"""Two trials of 4 steps; each is attacked in 3 shards: 24 images for 2 steps, 16 and 8 for 18."""


class Done(NamedTuple):
    """How a command ended."""

    code: int
    output: str
    """What it printed on both streams."""


Command = Callable[..., Done]


@pytest.fixture
def s3ta(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`s3ta("run", file, "train.epochs=1")`."""

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["s3ta", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        printed = capfd.readouterr()
        code = exit_.value.code
        return Done(code if isinstance(code, int) else 0, printed.out + printed.err)

    return call


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment file outside the repository, with plain defaults."""
    file = tmp_path_factory.mktemp("anywhere") / "tiny.yaml"
    file.write_text(TINY)
    return file
