"""In which order an epoch sees its images: shuffled so that files are read in large pieces.

Legend: N images of the training set, in the files' order or that of the chosen subset.
"""

import numpy as np
import numpy.typing as npt

from s3ta.draws import Key, Purpose
from s3ta.settings import TrainSettings

Ids = npt.NDArray[np.int64]


def epoch_order(
    image_ids_N: Ids, settings: TrainSettings, epoch: int, groups_N: Ids | None = None
) -> Ids:
    """The ids in the order of one epoch, each once: a function of its arguments alone.

    Whatever fits into `settings.shuffle_window` is shuffled as a whole. Of a larger set the row
    groups are shuffled (`groups_N` names each image's), and dealt out to windows: a window is
    filled with whole groups until it has at least that many images, and is shuffled as a whole. So
    at any time images come from one window's groups, or at its border from two windows', and each
    group is needed during one window only.
    """
    if len(image_ids_N) <= settings.shuffle_window or groups_N is None:
        whole = Key(settings.seed, Purpose.ORDER, epoch=epoch)
        return image_ids_N[whole.permutation(len(image_ids_N))]
    names, group_N, sizes = np.unique(groups_N, return_inverse=True, return_counts=True)
    # A draw's step is 0 for the whole order above, 1 for the groups, then one for each window.
    drawn = Key(settings.seed, Purpose.ORDER, epoch=epoch, step=1).permutation(len(names))
    rank = np.empty_like(drawn)
    rank[drawn] = np.arange(len(drawn))
    places_N = np.argsort(rank[group_N], kind="stable")
    parts = np.split(places_N, _borders(sizes[drawn], settings.shuffle_window))
    shuffled = []
    for index, part in enumerate(parts):
        key = Key(settings.seed, Purpose.ORDER, epoch=epoch, step=2 + index)
        shuffled.append(part[key.permutation(len(part))])
    return image_ids_N[np.concatenate(shuffled)]


def _borders(sizes: Ids, window: int) -> list[int]:
    """Where one window ends and the next begins, for groups of these sizes, in this order."""
    borders, at, begun = [], 0, 0
    for size in sizes.tolist():
        if at - begun >= window:
            borders.append(at)
            begun = at
        at += size
    return borders
