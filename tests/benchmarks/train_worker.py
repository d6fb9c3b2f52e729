"""One of several workers whose training steps are timed; started by bench_train.

Rank 0 prints the seconds of each step but the first two, as JSON.
"""

import argparse
import json
import os
import time
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import torch.distributed
from torch import Tensor

import s3ta.sums
from s3ta_platform.compose import compose
from s3ta_platform.events import Event
from s3ta_platform.groups import Alone, Group, Joined
from s3ta_platform.plan import make_plan
from s3ta_platform.train import train

FILE = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"


class OverALink(Joined):
    """Two workers with so many Gbit/s each way between them, busy while they compute."""

    gbits: ClassVar[float]
    free: ClassVar[float] = 0.0
    """When it has carried all that it was given."""

    def begin_sum(self, part: Tensor) -> None:
        super().begin_sum(part)
        here = type(self)
        here.free = max(here.free, time.perf_counter()) + 8e-9 * part.nbytes / here.gbits

    def add_up(self, part: Tensor) -> None:
        super().add_up(part)
        time.sleep(max(0.0, self.free - time.perf_counter()))


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, kind in (("rank", int), ("world", int), ("store", str), ("root", str)):
        parser.add_argument(name, type=kind)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--at-once", action="store_true", help="add up after the backward pass")
    parser.add_argument("--gbits", type=float, help="of a simulated link between the workers")
    parser.add_argument("--settings", nargs="*", default=[])
    args = parser.parse_args()
    settings = [f"results={args.root}", "tracking.store=none", *args.settings]
    job = make_plan(compose(FILE, settings)).trials[-1].train
    if args.at_once:
        s3ta.sums.PART = 2**62  # one part, which is whole when the lowest layer is reached
    group: Group = Alone()
    if args.world > 1:
        shared = torch.distributed.FileStore(args.store, args.world)  # type: ignore[attr-defined]
        torch.distributed.init_process_group(
            "gloo", store=shared, rank=args.rank, world_size=args.world
        )
        group = Joined(args.rank, args.world)
    if args.gbits:
        OverALink.gbits = args.gbits
        group = OverALink(args.rank, args.world)
    times: list[float] = []

    def note(event: Event) -> None:
        times.append(time.perf_counter())
        if len(times) == args.steps + 2:
            seconds = [b - a for a, b in pairwise(times[1:])]
            print(json.dumps(seconds), flush=True)
            os._exit(0)  # the others fail in their next sum

    train(job, group, note)


main()
