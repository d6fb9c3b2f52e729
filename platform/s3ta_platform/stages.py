"""The stages of a trial's curriculum, as a reader sees them. Imports no torch."""

from s3ta.schedules import Stage, stage_at
from s3ta.settings import ModelSettings, TrainSettings
from s3ta_platform.results import StageSpan


def stage_spans(train: TrainSettings, model: ModelSettings) -> list[StageSpan]:
    """From which epoch to which each stage lasts, and what is its own; none without a curriculum.

    What is the same in all stages is not said.
    """
    starts = [stage.from_epoch for stage in train.curriculum]
    stages = [stage_at(train, start) for start in starts]
    said = [_said(stage, model) for stage in stages]
    ends = [*starts[1:], train.epochs][: len(starts)]
    return [
        StageSpan(
            first=float(first),
            end=float(end),
            words=", ".join(w for place, w in enumerate(words) if _differs(said, place)),
        )
        for first, end, words in zip(starts, ends, said, strict=True)
    ]


def _said(stage: Stage, model: ModelSettings) -> list[str]:
    unroll = stage.unroll or model.unroll
    return [
        f"unroll {unroll}",
        f"{stage.attack.steps} steps",
        f"ε {stage.attack.epsilon_255:g}/255",
    ]


def _differs(said: list[list[str]], place: int) -> bool:
    return len({words[place] for words in said}) > 1
