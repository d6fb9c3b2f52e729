"""The numbers of an evaluated trial under the names that they have in MLflow."""

import time
from collections.abc import Mapping

from s3ta_platform.remarks import agreement
from s3ta_platform.results import TrialResult
from s3ta_platform.summaries import summarise
from s3ta_platform.tracking_memory import Point


def accuracies(result: TrialResult) -> tuple[list[Point], Mapping[str, float]]:
    """Series whose step is the number of attack steps, and a scalar each for the table view."""
    summary, now = summarise(result), int(time.time() * 1000)
    points, scalars = [], {"parameters": float(result.parameters)}
    scalars["eval/nominal"] = summary.nominal.value
    scalars["eval/images"] = float(summary.nominal.total)
    scalars["eval/images_planned"] = float(result.planned)
    if (agreed := agreement(result)) is not None:
        scalars["eval/agreement"] = agreed
    for reading in summary.readings:
        for measure, share in (("top1", reading.top1), ("attack_success", reading.success)):
            if not share.total:
                continue
            series = f"eval/{reading.attack}/{measure}"
            points.append(Point(series, share.value, reading.steps, now))
            scalars[f"{series}_at_{reading.steps}"] = share.value
    for worst in summary.worst_cases:
        for measure, share in (("top1", worst.top1), ("attack_success", worst.success)):
            if share.total:
                scalars[f"eval/{worst.attack}/{measure}"] = share.value
    return points, scalars
