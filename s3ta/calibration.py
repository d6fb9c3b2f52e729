"""How far confidences can be trusted: RMS calibration error and AURRA (S3TA sec. 5.4, after [22]).

Of classifiers that answer N images, each with the probability of its answer as its confidence.
Imports no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from s3ta.draws import Key, Purpose

BIN = 100
"""Images per bin of the calibration error; the rest goes into the last one."""
LEAST = 2 * BIN
"""With fewer images there is one bin, and the published error, which drops the last, is empty."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a classifier said of N images."""

    confidence_N: Floats
    correct_N: Flags
    ids_N: Ints
    """They decide the order of equal confidences."""

    def __len__(self) -> int:
        return len(self.ids_N)

    def part(self, places: Ints) -> "Answers":
        """Of these places, some maybe several times."""
        return Answers(
            confidence_N=self.confidence_N[places],
            correct_N=self.correct_N[places],
            ids_N=self.ids_N[places],
        )


def top1(answers: Answers) -> float:
    """The share that is right."""
    return float(answers.correct_N.mean())


def rms_calibration(answers: Answers) -> float:
    """sqrt(sum over bins of n_b / N (confidence_b - accuracy_b)^2), over all bins.

    Sorted by (confidence, id), bins of 100, the rest into the last. ValueError for N < 200.
    """
    return float(np.sqrt(_squares(answers).sum()))


def rms_calibration_published(answers: Answers) -> float:
    """The same as the authors of [22] compute it: without the last, most confident bin.

    They keep N all the same.
    """
    return float(np.sqrt(_squares(answers)[:-1].sum()))


def aurra(answers: Answers) -> float:
    """Area under the response rate accuracy curve: (1/N) sum_k accuracy of the k most confident.

    Of equally confident answers the one with the lower id comes first.
    """
    return float(response_rate_accuracy(answers).mean())


def response_rate_accuracy(answers: Answers) -> Floats:
    """Accuracy among the k most confident, for k = 1 .. N."""
    order = np.lexsort((answers.ids_N, -answers.confidence_N))
    right: Floats = np.cumsum(answers.correct_N[order]) / np.arange(1, len(answers) + 1)
    return right


def _squares(answers: Answers) -> Floats:
    """n_b / N (confidence_b - accuracy_b)^2 of every bin, the least confident one first."""
    n = len(answers)
    if n < LEAST:
        raise ValueError(f"{n} images: a calibration error needs {LEAST}, two bins of {BIN}")
    order = np.lexsort((answers.ids_N, answers.confidence_N))
    starts = np.arange(n // BIN) * BIN
    gaps = answers.confidence_N[order] - answers.correct_N[order]
    sizes = np.diff(np.append(starts, n))
    squares: Floats = sizes / n * (np.add.reduceat(gaps, starts) / sizes) ** 2
    return squares


def bootstrap(
    answers: Answers, measure: Callable[[Answers], float], times: int, seed: int
) -> tuple[float, float]:
    """A 95 % interval of a measure: its 2.5 and 97.5 % quantiles over images drawn anew.

    The draws depend on the seed and on N alone, so two models meet the same ones.
    """
    n = len(answers)
    found = []
    for time in range(times):
        words = Key(seed, Purpose.BOOTSTRAP, epoch=time).bits(0, n)
        # The upper half of a word, multiplied and shifted: uniform but for 2^-32 N.
        places = ((words >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32)
        found.append(measure(answers.part(places.astype(np.int64))))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)
