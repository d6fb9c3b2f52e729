"""The other models that transfer attacks come from: words in a file become models with digests."""

from collections.abc import Sequence
from dataclasses import replace

from s3ta.errors import UserError
from s3ta.settings import ModelSettings
from s3ta_platform.compose import typed
from s3ta_platform.jobs import SourceModel
from s3ta_platform.restored import trained_model
from s3ta_platform.schema import Experiment
from s3ta_platform.storage import open_storage


def with_sources(
    e: Experiment, shape_CHW: Sequence[int], classes: int
) -> tuple[Experiment, tuple[SourceModel, ...]]:
    """The experiment whose attacks name their sources by digests, and these models."""
    found: dict[str, SourceModel] = {}

    def digest_of(word: str) -> str:
        if word not in found:
            found[word] = _source(word, e, shape_CHW, classes)
        return found[word].digest

    attacks = {
        name: replace(attack, sources=[digest_of(word) for word in attack.sources])
        for name, attack in e.evaluate.attacks.items()
    }
    if not found:
        return e, ()
    evaluate = replace(e.evaluate, attacks=attacks)
    return replace(e, evaluate=evaluate), tuple({s.digest: s for s in found.values()}.values())


def _source(word: str, e: Experiment, shape_CHW: Sequence[int], classes: int) -> SourceModel:
    if ":" in word and "/" not in word:
        return _of_factory(word, e, shape_CHW, classes)
    model = trained_model(word, e.results)
    takes = (classes, e.model.channels, e.data.image_size)
    if model.takes != takes:
        names = "classes, channels and data.image_size"
        raise UserError(
            f"attack.sources names {word!r}, a model for other images ({names} are {model.takes}): "
            f"it must take those of the attacked model ({takes}). Name another one."
        )
    settings = typed(ModelSettings, model.settings["model"])
    return SourceModel(
        name=settings.name,
        model=settings,
        digest=model.trained.model_digest,
        root=model.storage.root,
        trial=model.trial,
        step=model.trained.step,
    )


def _of_factory(word: str, e: Experiment, shape_CHW: Sequence[int], classes: int) -> SourceModel:
    """Preprocessed as the attacked model is."""
    from s3ta_platform.foreign import describe

    m = e.model
    settings = ModelSettings(
        factory=word, mean=m.mean, std=m.std, input_range=m.input_range if m.factory else [0.0, 1.0]
    )
    digest, _ = describe(settings, shape_CHW, classes)
    return SourceModel(
        name=settings.name,
        model=settings,
        digest=digest,
        root=open_storage(e.results).root,
        trial="",
        step=0,
    )
