"""One of several real workers that train together; started by test_workers.

python gloo_worker.py RANK WORLD STORE_FILE ROOT
"""

import os
import sys
from datetime import timedelta

import torch.distributed
from tiny import train_job

from s3ta_platform.train import Gloo, train


def main() -> None:
    rank, world, store, root = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.distributed.init_process_group(
        "gloo",
        store=torch.distributed.FileStore(store, world),  # type: ignore[attr-defined]
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=120),
    )
    train(train_job(root), Gloo(rank, world))
    torch.distributed.barrier()  # nobody leaves while another still writes


main()
# Seen once: gloo's threads abort the interpreter at its end. All that is compared is stored by now.
os._exit(0)
