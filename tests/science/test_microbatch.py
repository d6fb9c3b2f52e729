"""What is done to a microbatch before its gradient: flip, coin, noise, target, attack."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from s3ta.batch import Batch
from s3ta.draws import Key, Purpose
from s3ta.model import S3TA
from s3ta.settings import Augmentation, Goal, TrainAttackSettings, TrainSettings
from s3ta.training import Moment, attack_microbatch

Models = Callable[..., S3TA]
Batches = Callable[..., Batch]
CLASSES = 5
SETTINGS = TrainSettings(
    attack=TrainAttackSettings(epsilon_255=16, steps=3), batch=12, microbatch=4, seed=11
)


class _Blind(nn.Module):
    """Answers the same to every image, so that an attack stays where it starts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(36, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight


BLIND = replace(SETTINGS, augmentation=Augmentation.none)


def _is_clean_start(batch: Batch, settings: TrainSettings, moment: Moment, index: int) -> bool:
    start, _ = attack_microbatch(_Blind(), batch, settings, moment, index, CLASSES, "cpu")
    same_B = (start == torch.from_numpy(batch.images_BCHW).float() / 255).flatten(1).all(dim=1)
    assert same_B.all() or not same_B.any()  # one coin for the whole microbatch
    return bool(same_B.all())


def test_a_fifth_of_the_microbatches_start_from_clean_images(tiny_batch: Batches) -> None:
    batch = tiny_batch(3)
    clean = [
        _is_clean_start(batch, BLIND, Moment(0, step), index)
        for step in range(100)
        for index in range(8)
    ]
    assert 0.16 < np.mean(clean) < 0.24  # standard deviation 0.014
    # Coins of a step differ, and so do those of a place in other steps.
    table = np.array(clean).reshape(100, 8)
    assert len({tuple(row) for row in table.tolist()}) > 20
    assert all(0 < share < 0.5 for share in table.mean(axis=0))


@pytest.mark.parametrize(("share", "expected"), [(0.0, False), (1.0, True)])
def test_a_share_of_none_or_all_is_kept_exactly(
    share: float, expected: bool, tiny_batch: Batches
) -> None:
    attack = replace(BLIND.attack, clean_start_share=share)
    settings = replace(BLIND, attack=attack)
    for step in range(20):
        assert _is_clean_start(tiny_batch(2), settings, Moment(0, step), 0) is expected


def test_noise_belongs_to_image_and_epoch_and_not_to_the_microbatch(tiny_batch: Batches) -> None:
    settings = replace(BLIND, attack=replace(BLIND.attack, clean_start_share=0.0))

    def start(batch: Batch, epoch: int, step: int, index: int) -> Tensor:
        moment = Moment(epoch, step)
        return attack_microbatch(_Blind(), batch, settings, moment, index, CLASSES, "cpu")[0]

    together = start(tiny_batch(4), epoch=0, step=0, index=0)
    assert torch.equal(start(tiny_batch(4).part(2, 4), epoch=0, step=7, index=3), together[2:])
    assert not torch.equal(start(tiny_batch(4), epoch=1, step=0, index=0), together)
    clean = torch.from_numpy(tiny_batch(4).images_BCHW).float() / 255
    assert (together - clean).abs().max() <= 16 / 255 + 1e-6
    assert ((together - clean).abs().amax(dim=(1, 2, 3)) > 8 / 255).all()


def test_a_flip_mirrors_left_and_right_and_belongs_to_image_and_epoch(tiny_batch: Batches) -> None:
    settings = replace(SETTINGS, attack=replace(SETTINGS.attack, steps=0))
    batch = tiny_batch(200, height=4, width=5)
    images = torch.from_numpy(batch.images_BCHW).float() / 255

    def flipped(batch: Batch, images: Tensor, epoch: int, step: int) -> list[bool]:
        moment = Moment(epoch, step)
        seen, _ = attack_microbatch(_Blind(), batch, settings, moment, 0, CLASSES, "cpu")
        mirror_B = (seen == images.flip(3)).flatten(1).all(1)
        assert (mirror_B ^ (seen == images).flatten(1).all(1)).all()
        return mirror_B.tolist()

    first = flipped(batch, images, epoch=0, step=0)
    assert 70 < sum(first) < 130
    assert flipped(batch.part(50, 60), images[50:60], epoch=0, step=9) == first[50:60]
    assert flipped(batch, images, epoch=1, step=0) != first


def test_without_augmentation_and_attack_a_microbatch_is_its_images(tiny_batch: Batches) -> None:
    settings = replace(BLIND, attack=replace(BLIND.attack, steps=0))
    batch = tiny_batch(3)
    images, labels_B = attack_microbatch(
        _Blind().double(), batch, settings, Moment(0, 0), 0, CLASSES, "cpu"
    )
    assert images.dtype == torch.float64
    assert torch.equal(images.float(), torch.from_numpy(batch.images_BCHW).float() / 255)
    assert labels_B.tolist() == batch.labels_B.tolist()


def test_the_training_attack_drives_the_target_in_or_the_label_away(
    tiny_model: Models, tiny_batch: Batches
) -> None:
    model, batch = tiny_model(2), tiny_batch(8)
    targets = Key(11, Purpose.TRAIN_TARGET).wrong_classes(
        batch.image_ids_B, batch.labels_B, CLASSES
    )
    labels = batch.labels_B
    images = torch.from_numpy(batch.images_BCHW).float() / 255
    for goal, classes, sign in ((Goal.random_target, targets, 1), (Goal.untargeted, labels, -1)):
        attack = replace(SETTINGS.attack, goal=goal, steps=10, clean_start_share=1.0)
        settings = replace(BLIND, attack=attack)
        attacked, _ = attack_microbatch(model, batch, settings, Moment(0, 0), 0, CLASSES, "cpu")
        rows = torch.arange(8), torch.from_numpy(classes)
        gain_B = (model(attacked).log_softmax(1) - model(images).log_softmax(1))[rows]
        assert (sign * gain_B > 0).all()


def test_the_attack_sees_batchnorm_in_test_mode(tiny_model: Models, tiny_batch: Batches) -> None:
    """So an image's attack does not depend on its microbatch."""
    model = tiny_model(2).double().train()
    batch = tiny_batch(4)
    whole, _ = attack_microbatch(model, batch, SETTINGS, Moment(0, 0), 0, CLASSES, "cpu")
    half, _ = attack_microbatch(model, batch.part(0, 2), SETTINGS, Moment(0, 0), 0, CLASSES, "cpu")
    torch.testing.assert_close(half, whole[:2], rtol=0, atol=1e-6)
    assert model.training
