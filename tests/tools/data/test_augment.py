"""Augmentation: each image of a batch has its own draw, and the result is a cut of the original."""

import pytest
import torch

from tests.chance import likely
from tools.data.augment import Augment, cutout, mixing, random_crop, random_flip


def test_a_crop_is_a_shifted_copy_with_zeros_outside():
    torch.manual_seed(0)
    image = torch.arange(1, 26, dtype=torch.uint8).reshape(1, 1, 5, 5)
    padded = torch.nn.functional.pad(image, (2,) * 4)
    allowed = {
        tuple(padded[0, 0, top : top + 5, left : left + 5].flatten().tolist()) for top in range(5) for left in range(5)
    }
    crops = random_crop(image.repeat(2000, 1, 1, 1), 2)
    seen = {tuple(crop.flatten().tolist()) for crop in crops}
    assert seen == allowed  # 25 places, 2,000 draws: all appear, and nothing else does


def test_crops_keep_channels_together():
    torch.manual_seed(0)
    image = torch.arange(25, dtype=torch.uint8).reshape(1, 1, 5, 5)
    crops = random_crop(torch.cat([image, image], 1).repeat(50, 1, 1, 1), 1)
    assert torch.equal(crops[:, 0], crops[:, 1])


def test_half_of_the_images_are_mirrored():
    torch.manual_seed(0)
    image = torch.arange(4.0).reshape(1, 1, 1, 4)
    flipped = random_flip(image.repeat(4000, 1, 1, 1))[:, 0, 0, 0] == 3
    assert likely(flipped.sum(), 4000, 0.5)


def test_cutout_clears_one_square_per_image_with_its_centre_anywhere():
    torch.manual_seed(0)
    holes = cutout(torch.ones(3000, 2, 9, 9), 4) == 0
    assert torch.equal(holes[:, 0], holes[:, 1])
    heights, widths = holes[:, 0].any(2).sum(1), holes[:, 0].any(1).sum(1)
    assert torch.equal(holes[:, 0].sum((1, 2)), heights * widths)  # a full rectangle
    assert heights.max() == 4 and heights.min() == 2  # cut off at the edge, centre inside
    assert holes[:, 0].any(0).all()  # every pixel is cleared in some image
    assert len({tuple(hole.flatten().tolist()) for hole in holes[:, 0]}) == 81


def test_autoaugment_draws_for_each_image():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8).repeat(30, 1, 1, 1)
    result = Augment(autoaugment=True)(images)
    assert result.dtype == torch.float32
    assert result.min() >= 0 and result.max() <= 1
    assert len({tuple(image.flatten().tolist()) for image in result}) > 10


def test_without_options_images_are_only_scaled():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(Augment()(images), images.float() / 255)


def test_all_together_repeat_with_the_seed():
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    augment = Augment(crop_padding=4, flip=True, cutout_side=8, autoaugment=True)
    torch.manual_seed(5)
    first = augment(images)
    torch.manual_seed(5)
    assert torch.equal(first, augment(images))
    assert not torch.equal(first, augment(images))


@pytest.mark.parametrize("alphas", [(0.2, 0.0), (0.0, 1.0), (0.2, 1.0)])
def test_labels_are_mixed_like_pixels_and_repeat_with_the_seed(alphas):
    """Image k of 8 is 1 in plane k alone, so that the mean of its planes says what it is made of."""
    images, labels = torch.eye(8)[:, :, None, None].repeat(1, 1, 6, 6), torch.arange(8)
    torch.manual_seed(0)
    mix = mixing(*alphas, num_classes=8)
    made = [mix(images, labels) for _ in range(20)]
    for mixed, soft in made:
        torch.testing.assert_close(mixed.mean((2, 3)), soft)
        torch.testing.assert_close(soft.sum(1), torch.ones(8))
    assert any(0.01 < soft.amax() < 0.99 for _, soft in made)  # Beta(0.2, 0.2) is outside in 0.42: of 20 in 3e-8
    torch.manual_seed(0)
    assert all(torch.equal(mix(images, labels)[0], mixed) for mixed, _ in made)
    assert torch.equal(images, torch.eye(8)[:, :, None, None].repeat(1, 1, 6, 6))


def test_without_alphas_nothing_is_mixed():
    assert mixing(0.0, 0.0, 10) is None
