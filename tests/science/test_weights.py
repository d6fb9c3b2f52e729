"""Published weights go into the plain ResNet, or are refused with what does not fit."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from s3ta.errors import UserError
from s3ta.model import PlainResNet
from s3ta.weights import load_resnet_weights

Models = Callable[..., PlainResNet]
IMAGES = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def published(tiny_model: Models) -> dict[str, Tensor]:
    """Without any prefix, as torchvision and timm have them."""
    return tiny_model(None, seed=1).vision.state_dict()


def test_loaded_weights_answer_as_they_did(
    published: dict[str, Tensor], tiny_model: Models
) -> None:
    model, expected = tiny_model(None, seed=2), tiny_model(None, seed=1)(IMAGES)
    assert not torch.allclose(model(IMAGES), expected)
    load_resnet_weights(model, published)
    assert torch.equal(model(IMAGES), expected)


def test_older_files_without_counters_of_batches_load(
    published: dict[str, Tensor], tiny_model: Models
) -> None:
    model, expected = tiny_model(None, seed=2), tiny_model(None, seed=1)(IMAGES)
    load_resnet_weights(model, {n: v for n, v in published.items() if "num_batches" not in n})
    assert torch.equal(model(IMAGES), expected)


def test_what_does_not_fit_is_named_and_nothing_changes(
    published: dict[str, Tensor], tiny_model: Models
) -> None:
    model = tiny_model(None, seed=2)
    before = model(IMAGES)
    published["fc.weight"] = torch.zeros(7, 12)
    published["head.weight"] = published.pop("bn1.running_var")
    with pytest.raises(UserError) as refused:
        load_resnet_weights(model, published)
    message = str(refused.value)
    assert "bn1.running_var is missing" in message
    assert "head.weight is unexpected" in message
    assert "fc.weight has the shape (7, 12) but must have (5, 12)" in message
    assert "Choose" in message
    assert torch.equal(model(IMAGES), before)


def test_a_long_list_of_misfits_is_cut(published: dict[str, Tensor], tiny_model: Models) -> None:
    missing = [name for name in published if name[:2] != "fc" and "num_batches" not in name]
    fc_only = {name: values for name, values in published.items() if name[:2] == "fc"}
    with pytest.raises(UserError, match=f"and {len(missing) - 3} more"):
        load_resnet_weights(tiny_model(None), fc_only)
