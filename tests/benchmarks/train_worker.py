"""One of several workers whose training steps are timed; started by bench_train.

python train_worker.py RANK WORLD STORE_FILE ROOT STEPS

Rank 0 prints the seconds of each step but the first two, as JSON.
"""

import json
import os
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch.distributed

from s3ta_platform.compose import compose
from s3ta_platform.events import Event
from s3ta_platform.groups import Alone, Joined
from s3ta_platform.plan import make_plan
from s3ta_platform.train import train

FILE = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"
BATCH = 256
"""Eight microbatches of 32."""


def main() -> None:
    rank, world, steps = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[5])
    store, root = sys.argv[3], sys.argv[4]
    settings = [f"results={root}", f"train.batch={BATCH}", "tracking.store=none"]
    job = make_plan(compose(FILE, settings)).trials[-1].train
    if world > 1:
        shared = torch.distributed.FileStore(store, world)  # type: ignore[attr-defined]
        torch.distributed.init_process_group("gloo", store=shared, rank=rank, world_size=world)
    times: list[float] = []

    def note(event: Event) -> None:
        times.append(time.perf_counter())
        if len(times) == steps + 2:
            seconds = [b - a for a, b in pairwise(times[1:])]
            print(json.dumps(seconds), flush=True)
            os._exit(0)  # the others fail in their next sum

    train(job, Alone() if world == 1 else Joined(rank, world), note)


main()
