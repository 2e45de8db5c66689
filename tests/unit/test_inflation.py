"""A tower for other channels than it was trained with: kernel, mean, deviation, and what is said."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from tests.band_toys import bands, tower_with, vision_with
from tests.conftest import tiny_vlm_config
from vitp.core.config import make_config
from vitp.core.errors import ConfigError, DataError
from vitp.models.adapter import build_pyramid
from vitp.models.flops import vision_flops
from vitp.models.inflation import inflation_note, inheritance, unnamed_channels, with_channels
from vitp.models.timm_backbone import TimmSettings, timm_backbone
from vitp.models.vision import IMAGENET_MEAN, VisionSettings, VisionTower, per_channel
from vitp.objectives.masked_image import MaskedImageObjective, MaskedImageSettings
from vitp.planning.finetune import image_flops
from vitp.planning.model import model_shape
from vitp.records.channels import PICTURE, Channels, matching
from vitp.tasks.build import build_model

RGB_KERNEL = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def kernel_for(old: Channels | None, new: Channels | None, kernel: torch.Tensor = RGB_KERNEL) -> torch.Tensor:
    return inheritance(old, new).kernel(kernel)


@pytest.mark.parametrize("three", ["B4 B3 B2", "1 1 1", "red green blue", "blue green red", "nir red green"])
def test_three_channels_take_red_green_and_blue_in_the_given_order(three):
    assert kernel_for(None, bands(three)) is RGB_KERNEL
    assert kernel_for(bands(three), None) is RGB_KERNEL


def test_colours_go_by_name_and_other_bands_get_the_mean():
    mean = RGB_KERNEL.mean(1)
    found = kernel_for(None, bands("blue green red nir"))
    wanted = torch.stack([RGB_KERNEL[:, 2], RGB_KERNEL[:, 1], RGB_KERNEL[:, 0], mean], 1) * (3 / 4)
    torch.testing.assert_close(found, wanted, atol=0, rtol=0)
    # A single band answers as a grey picture does.
    torch.testing.assert_close(kernel_for(None, bands("VV"))[:, 0], RGB_KERNEL.sum(1))
    # Where all bands show the same, tokens are what they were for a grey picture.
    for count in (2, 6, 13):
        torch.testing.assert_close(
            kernel_for(None, bands(" ".join(f"B{n}" for n in range(count)))).sum(1), RGB_KERNEL.sum(1)
        )


def test_bands_are_carried_over_by_name():
    old, new = bands("B2 B3 B4 B8"), bands("B4 B8 B11")
    kernel = torch.randn(5, 4, 4, 4)
    wanted = torch.stack([kernel[:, 2], kernel[:, 3], kernel.mean(1)], 1) * (4 / 3)
    torch.testing.assert_close(kernel_for(old, new, kernel), wanted, atol=0, rtol=0)
    turned = kernel_for(old, bands("B8 B4 B3 B2"), kernel)
    assert torch.equal(turned, kernel.flip(1))  # another order is no other number
    assert kernel_for(old, old, kernel) is kernel
    assert torch.equal(kernel_for(bands("blue nir green red"), None, kernel), kernel[:, [3, 2, 0]] * (4 / 3))
    # A band that stood in several channels comes together again, and the other way round.
    grey = kernel_for(bands("1 1 1"), bands("1"), RGB_KERNEL)
    torch.testing.assert_close(grey[:, 0], RGB_KERNEL.sum(1))
    torch.testing.assert_close(kernel_for(bands("1"), bands("1 1 1"), grey).sum(1), RGB_KERNEL.sum(1))


def test_names_of_bands_count_in_any_case_and_without_their_zeros():
    kernel = torch.randn(5, 2, 4, 4)
    assert kernel_for(bands("B04 B08"), bands("b4 b8"), kernel) is kernel
    assert torch.equal(kernel_for(bands("B04 B08"), bands("B8 B4"), kernel), kernel.flip(1))
    assert torch.equal(kernel_for(None, bands("Red NIR"))[:, 0], RGB_KERNEL[:, 0] * 1.5)
    picked = matching(None, bands("NIR BLUE Green Red"))
    assert picked is not None and picked.bands == ("Red", "Green", "BLUE")


def test_bands_without_names_keep_their_places():
    kernel = torch.randn(5, 4, 4, 4)
    numbers = unnamed_channels(4)
    assert numbers is not None and numbers.bands == ("1", "2", "3", "4")
    assert kernel_for(numbers, bands("B2 B3 B4 B8"), kernel) is kernel
    assert torch.equal(kernel_for(numbers, bands("4 3 2 1"), kernel), kernel.flip(1))
    assert unnamed_channels(3) is None
    for count in (0, -1, 1025, 10**12):
        with pytest.raises(ConfigError, match="1 to 1024 channels"):
            unnamed_channels(count)


def test_a_kernel_in_half_precision_stays_so():
    half = RGB_KERNEL.to(torch.bfloat16)
    found = kernel_for(None, bands("red nir"), half)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found[:, 0], (half[:, 0].float() * 1.5).to(torch.bfloat16))


def test_what_is_done_is_said_in_one_line():
    said = inflation_note(bands("B2 B3 B4 B8"), bands("B4 B8 B11"))
    assert said == (
        "patch kernel of B2, B3, B4, B8 for B4, B8, B11: B4, B8 continue their own; B11 begins with the mean of all; "
        "times 4/3"
    )
    assert "taken as it is, in the given order" in inflation_note(None, bands("B4 B3 B2"))
    assert "B0, B1" in inflation_note(None, bands(" ".join(f"B{n}" for n in range(40))))
    assert len(inflation_note(None, bands(" ".join(f"B{n}" for n in range(1000))))) < 400
    assert "scaled otherwise" in inflation_note(bands("B4 B8"), bands("B4 B8", high=5))


def test_mean_and_deviation_go_with_the_bands():
    rgb = VisionSettings(mean=(0.1, 0.2, 0.6), std=(1, 2, 3))
    assert rgb.normalisation == ((0.1, 0.2, 0.6), (1, 2, 3))
    mean, std = with_channels(rgb, bands("nir green red")).normalisation
    assert (mean, std) == ((0.1, 0.2, 0.6), (1, 2, 3))  # three: as given
    mean, std = with_channels(rgb, bands("nir green red VV")).normalisation
    assert mean == pytest.approx((0.3, 0.2, 0.1, 0.3)) and std == (2, 2, 1, 2)
    own = VisionSettings(mean=(0.1, 0.2, 0.3, 0.4), std=(1, 2, 3, 4), channels=bands("B2 B3 B4 B8"))
    assert own.normalisation == ((0.1, 0.2, 0.3, 0.4), (1, 2, 3, 4))
    mean, std = with_channels(own, bands("B8 B11 B2")).normalisation
    assert mean == pytest.approx((0.4, 0.25, 0.1)) and std == pytest.approx((4, 2.5, 1))
    assert per_channel((0.5,), bands("VV")) == (0.5,)


def test_numbers_that_fit_no_channel_are_named():
    with pytest.raises(ConfigError, match="mean has 4 numbers, the input has 3 channels"):
        make_config(VisionSettings, {"mean": [0.1] * 4})
    with pytest.raises(ValidationError, match="std has 2 numbers, the input has 4 channels"):
        VisionSettings(std=(1, 1), channels=bands("a b c d"))
    with pytest.raises(ConfigError, match=r"give three \(of red, green, blue\) or 4"):
        per_channel((0.5, 0.5), bands("a b c d"))
    with pytest.raises(ConfigError, match="in_chans is 4, but the input has 6 channels"):
        VisionTower(VisionSettings(arguments={"in_chans": 4}, channels=bands("a b c d e f")))
    with pytest.raises(ConfigError, match="name the bands"):
        VisionTower(VisionSettings(arguments={"in_chans": 4}))
    with pytest.raises(ConfigError, match="too large"):
        VisionTower(VisionSettings(arguments={"patch_size": 2048, "embed_dim": 1024}, image_size=2048))


@pytest.mark.parametrize("count", [1, 2, 6, 13])
def test_a_tower_of_any_number_of_channels_sees_all_of_them(count):
    tower = tower_with(" ".join(f"B{n}" for n in range(count)))
    images = torch.randint(0, 256, (2, count, 32, 32), dtype=torch.uint8)
    assert (tower.num_channels, len(tower.mean), len(tower.std)) == (count, count, count)
    normal = tower.normalize(images).requires_grad_()
    tower.forward_tokens(normal).square().sum().backward()
    assert normal.grad is not None
    assert (normal.grad.abs().amax((0, 2, 3)) > 0).all()
    kernel = tower.model.patch_embed.proj.weight
    assert (kernel.grad.abs().amax((0, 2, 3)) > 0).all()


def test_a_tower_of_pictures_is_what_it_was():
    torch.manual_seed(0)
    before = tower_with(None)
    torch.manual_seed(0)
    three = tower_with("B4 B3 B2")
    assert (before.in_channels, before.num_channels, before.mean) == (None, 3, IMAGENET_MEAN)
    assert three.mean == IMAGENET_MEAN
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    found = [tower.forward_tokens(tower.normalize(images)) for tower in (before, three)]
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "name", ["resnet10t", "convnext_atto", "vit_tiny_patch16_224", "eva02_tiny_patch14_224"]
)
def test_backbones_of_timm_take_bands(name):
    settings = TimmSettings(architecture=name, channels=bands("red nir VV VH"))
    backbone = timm_backbone(settings)
    assert backbone.in_channels == settings.channels and len(backbone.mean) == 4
    side = backbone.image_size[0]
    images = torch.randint(0, 256, (1, 4, side, side), dtype=torch.uint8)
    assert backbone.forward_features(backbone.normalize(images))[0].isfinite().all()


def test_the_spatial_prior_of_an_adapter_sees_the_bands():
    pyramid = build_pyramid(tower_with("a b c d e"), "adapter", prior_width=8)
    images = torch.randn(1, 5, 32, 32, requires_grad=True)
    sum(level.square().sum() for level in pyramid.prior(images)).backward()
    assert images.grad is not None and (images.grad.abs().amax((0, 2, 3)) > 0).all()
    assert [tuple(level.shape[-2:]) for level in pyramid.features(images)] == [(8, 8), (4, 4), (2, 2), (1, 1)]


def test_masked_images_are_predicted_in_all_bands():
    objective = MaskedImageObjective(tower_with("a b c d e"), MaskedImageSettings())
    targets = objective.targets(torch.randn(1, 5, 32, 32))
    tokens = torch.randn(1, 3, objective.tower.width)
    predicted = objective.decoder(tokens, torch.tensor([[0, 1]]))
    assert predicted.shape == targets.shape == (1, 16, 8 * 8 * 5)


def test_plans_count_the_bands():
    six = "B2 B3 B4 B8 B11 B12"
    of_pictures, of_bands = (
        model_shape(tiny_vlm_config(vision=vision_with(names)), 320) for names in (None, six)
    )
    assert (of_pictures.channels, of_bands.channels) == (3, 6)
    assert of_bands.parameters["vision"] - of_pictures.parameters["vision"] == 3 * 8 * 8 * 32
    flops = [vision_flops(tower_with(names), 2) for names in (None, six)]
    assert flops[1] - flops[0] == 2 * 3 * 8 * 8 * 32 * 16 * 2
    models = [build_model("classification", tower_with(names), ["a", "b"]) for names in (None, six)]
    counted = [image_flops(model, 32) for model in models]
    assert counted[1] - counted[0] == 2 * 3 * 8 * 8 * 32 * 16


def test_a_model_meets_data():
    model, more = bands("B4 B8", high=7), bands("B2 B4 B8 B11")
    assert matching(None, None) is None
    assert matching(model, more) is model  # its own scaling, and the bands that it knows
    grey = bands("1 1 1")
    assert matching(None, grey) is grey
    picked = matching(None, bands("nir blue red green VV", high=9))
    assert picked is not None and picked.bands == PICTURE.bands and picked.channels[0].high == 9
    with pytest.raises(DataError, match=r"set: lacks the bands B8; it has B2, B4"):
        matching(model, bands("B2 B4"), where="set")
    with pytest.raises(DataError, match="lacks the bands B4, B8; it has red, green, blue"):
        matching(model, None)
    with pytest.raises(DataError, match="lacks the bands red, green, blue; it has B2, B4, B8, B11"):
        matching(None, more)
    assert matching(bands("green red"), None) == bands("green red")
