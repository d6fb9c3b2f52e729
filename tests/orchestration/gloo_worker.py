"""One of several real workers that train together; started by test_workers.

python gloo_worker.py RANK WORLD STORE_FILE ROOT [--leave-at STEP] [--see FILE]

At STEP the last rank wishes to leave, and all do. FILE gets a line for every microbatch: what was
seen, with the attacked images' digest.
"""

import argparse
import hashlib
import json
import os
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed
from tiny import train_job

import s3ta.sums
import s3ta.training
from s3ta.batch import Batch
from s3ta_platform import pulse
from s3ta_platform.groups import Alone, Joined
from s3ta_platform.train import ToldToLeaveError, train
from s3ta_platform.wishes import Wish


def see(file: Path) -> None:
    """Write down what is done to each microbatch."""
    attack = s3ta.training.attack_microbatch

    def look(model: Any, batch: Batch, settings: Any, moment: Any, index: int, *rest: Any) -> Any:
        attacked, labels_B = attack(model, batch, settings, moment, index, *rest)
        digest = hashlib.sha256(attacked.numpy().tobytes()).hexdigest()
        seen = [moment.step, index, batch.image_ids_B.tolist(), labels_B.tolist(), digest]
        with file.open("a") as lines:
            lines.write(json.dumps(seen) + "\n")
        return attacked, labels_B

    setattr(s3ta.training, "attack_microbatch", look)  # noqa: B010 (of another type)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, kind in (("rank", int), ("world", int), ("store", str), ("root", str)):
        parser.add_argument(name, type=kind)
    parser.add_argument("--leave-at", type=int)
    parser.add_argument("--see", type=Path)
    args = parser.parse_args()
    torch.distributed.init_process_group(
        "gloo",
        store=torch.distributed.FileStore(args.store, args.world),  # type: ignore[attr-defined]
        rank=args.rank,
        world_size=args.world,
        timeout=timedelta(seconds=120),
    )
    if args.see:
        see(args.see)
    last = args.rank == args.world - 1

    def wish() -> Wish:
        leaves = args.leave_at is not None and last and pulse.read()[1] >= args.leave_at - 1
        return Wish.LEAVE if leaves else Wish.GO_ON

    s3ta.sums.PART = 500  # nine parts leave, each by itself
    group = Alone() if args.world == 1 else Joined(args.rank, args.world)
    with suppress(ToldToLeaveError):
        train(train_job(args.root), group, wish=wish)
    torch.distributed.barrier()  # nobody leaves while another still writes


main()
# Seen once: gloo's threads abort the interpreter at its end. All that is compared is stored by now.
os._exit(0)
