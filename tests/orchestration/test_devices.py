"""Which device work is done on, and how many GPUs a worker asks Ray for."""

import platform
import subprocess
import sys
from typing import Any

import pytest
import torch

from s3ta.errors import UserError
from s3ta_platform.devices import device_of
from s3ta_platform.schema_cluster import ClusterSettings, Executor

INLINE: dict[str, Any] = {"executor": Executor.inline}
JOINED: dict[str, Any] = {"address": "auto"}
"""A cluster that is running already; Ray on this machine is the default."""


def chosen(monkeypatch: pytest.MonkeyPatch, here: bool, **settings: Any) -> str:
    """The device, on a machine with a GPU or without."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here)
    return device_of(ClusterSettings(**settings))


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize(
    ("settings", "with_gpu", "without"),
    [
        ({"device": "cpu"}, "cpu", "cpu"),
        (INLINE | {"device": "auto"}, "cuda", "cpu"),
        # On Ray a worker has a GPU if it asks for one, wherever the driver is.
        ({"device": "auto"}, "cpu", "cpu"),
        (JOINED | {"device": "auto"}, "cpu", "cpu"),
        (JOINED | {"device": "auto", "gpus_per_worker": 0.5}, "cuda", "cuda"),
        (JOINED | {"device": "cuda"}, "cuda", "cuda"),
    ],
)
def test_the_device_is_that_of_the_workers(
    settings: dict[str, Any],
    with_gpu: str,
    without: str,
    here: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert chosen(monkeypatch, here, **settings) == (with_gpu if here else without)


@pytest.mark.parametrize(
    "settings",
    [
        INLINE | {"device": "cuda"},
        {"device": "cuda"},
        {"device": "auto", "gpus_per_worker": 1.0},
    ],
)
def test_a_gpu_that_this_machine_lacks_is_refused_where_work_is_done_here(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chosen(monkeypatch, True, **settings) == "cuda"
    with pytest.raises(UserError, match="torch sees no CUDA device"):
        chosen(monkeypatch, False, **settings)


@pytest.mark.parametrize(
    ("settings", "gpus"),
    [
        ({}, 0.0),
        ({"device": "cuda"}, 1.0),
        ({"device": "cuda", "gpus_per_worker": 0.5}, 0.5),
        ({"device": "auto", "gpus_per_worker": 2.0}, 2.0),
        (INLINE | {"device": "cuda", "gpus_per_worker": 0.0}, 0.0),
    ],
)
def test_a_worker_on_cuda_asks_for_one_gpu_unless_told(
    settings: dict[str, Any], gpus: float
) -> None:
    assert ClusterSettings(**settings).gpus == gpus


def test_workers_on_cuda_that_would_see_no_gpu_are_refused() -> None:
    with pytest.raises(UserError, match=r"gpus_per_worker is 0\.0: it must be above 0 with"):
        ClusterSettings(device="cuda", gpus_per_worker=0.0)


STEPS_THAT_FREE = """
import ctypes, resource, sys
import torch
from s3ta_platform.devices import M_MMAP_THRESHOLD, keep_freed_memory

# As glibc begins. It would raise this as blocks are freed, and then what lies where decides.
ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**17)
if sys.argv[1] == "keep":
    keep_freed_memory()
for step in range(12):
    if step == 2:
        start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    activations = [torch.ones(2**20) for _ in range(20)]
    while activations:
        activations.pop()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc gives memory back")
def test_memory_that_a_step_frees_is_there_for_the_next_without_page_faults() -> None:
    """80 MB a step are 20,000 pages of 4 KB, or 40 huge ones."""
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", STEPS_THAT_FREE, how], check=True, capture_output=True
            ).stdout
        )
        for how in ("keep", "give back")
    }
    assert 3 * faults["keep"] < faults["give back"]
