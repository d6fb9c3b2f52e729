"""One of two workers that add up numbers, watched; started by test_watchdog.

python watched_worker.py RANK PORT HANG_S WHAT

WHAT rank 1 does at its tenth step: `goes on`, `sleeps` for ever, `holds` Python's lock for ever,
`waits` three times HANG_S but shows that it lives.
"""

import ctypes
import logging
import sys
import time
from datetime import timedelta

import torch
import torch.distributed

from s3ta_platform import pulse
from s3ta_platform.groups import Joined
from s3ta_platform.stacks import Process, dump, end, listen
from s3ta_platform.watchdog import Watch

STEPS, PACE_S = 400, 0.05
rank, port, hang_s, what = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]


def misbehave() -> None:
    if what == "sleeps":
        time.sleep(1000)
    elif what == "holds":
        ctypes.PyDLL(None).sleep(1000)
    elif what == "waits":
        for _ in range(30):
            time.sleep(hang_s / 10)
            pulse.beat()


def ask_and_end(process: Process) -> str:
    try:
        return dump(process)
    finally:
        end(process, grace_s=0)


def main() -> None:
    store, own = (
        torch.distributed.TCPStore(  # type: ignore[attr-defined]
            "127.0.0.1", port, 2, serves, wait_for_workers=False
        )
        for serves in (rank == 0, False)
    )
    with Watch(rank, 2, hang_s, own, listen("this node"), ask_and_end) as watch:
        torch.distributed.init_process_group(
            "gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=120)
        )
        group, total = Joined(rank, 2, watch=watch), 0.0
        for step in range(STEPS if what == "goes on" else 20):
            if (rank, step) == (1, 10):
                misbehave()
            flat = torch.tensor([[float(step + rank)]])
            group.add_up(flat)
            pulse.beat(step)
            print(step, flush=True)
            total += flat.item()
            time.sleep(PACE_S)
        print(f"added up to {total:g}", flush=True)
        torch.distributed.destroy_process_group()


logging.basicConfig(level=logging.INFO, format="%(message)s")
main()
