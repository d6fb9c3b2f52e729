"""Where tensors live. Imports torch only when a device other than the CPU is asked for."""

import ctypes
import sys

from s3ta.errors import UserError
from s3ta_platform.schema_cluster import ClusterSettings, Executor

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""As in glibc's malloc.h."""


def resolve_device(name: str) -> str:
    """`cpu`, `cuda`, or what `auto` means here; UserError if it is asked for and absent."""
    if name == "cpu":
        return name
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not torch.cuda.is_available():
        raise UserError(
            f"cluster.device is {name!r}, but torch sees no CUDA device. "
            "Set cluster.device=cpu, or install a CUDA build of torch on a machine with a GPU."
        )
    return name


def device_of(settings: ClusterSettings) -> str:
    """`cpu` or `cuda`: where the work will be done, which need not be this machine."""
    on_ray, name = settings.executor is Executor.ray, settings.device
    if on_ray and name == "auto":
        name = "cuda" if settings.gpus else "cpu"
    # The machine that starts a run on a cluster often has no GPU.
    return name if on_ray and settings.address != "local" else resolve_device(name)


def gpus(device: str) -> int:
    """How many this machine has of them."""
    if device == "cpu":
        return 0
    import torch

    return torch.cuda.device_count()


def device_class(device: str, threads: int) -> str:
    """Names the arithmetic in content keys: across these, results may differ in the last bit."""
    return f"cpu-{threads}" if device == "cpu" else device


def pin_arithmetic(threads: int) -> None:
    """Make this process compute the same bits for the same work.

    A set number of threads; on CUDA float32 that is float32, and convolutions without races.
    """
    import torch

    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def keep_freed_memory() -> None:
    """Let this process hold what it frees, up to 1 GB, for the next step: with glibc, on the CPU.

    By default glibc gives a step's activations back to the system as soon as they are freed, and
    the next step takes a page fault for every 4 KB of them: with small models up to 3 % of a step.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # not with musl
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # no larger number is taken
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)
