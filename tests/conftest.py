"""How tests are shared out to processes: one runs all that start Ray, others the files in between.

So no two tests start Ray side by side, and what a file's tests share is made once.
"""

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        starts_ray = item.get_closest_marker("slow")
        item.add_marker(pytest.mark.xdist_group("slow" if starts_ray else str(item.path)))
