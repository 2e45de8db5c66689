"""Views and the order of images: pure functions of the place in the run, and exactly what the settings say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.objective_toys import SIZE, labelled_folder, source_of
from vitp.core.errors import ConfigError, DataError
from vitp.data.augment import ViewSettings, jittered, make_view
from vitp.data.mixture import Mixture, MixtureEntry
from vitp.data.readers.records import JsonlRecords
from vitp.objectives.image_rows import image_mixture, read_image_rows
from vitp.objectives.simclr import TwoViews


def picture(width: int = 48, height: int = 40, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_the_neutral_view_is_the_resized_image() -> None:
    image = picture()
    view, window = make_view(image, SIZE, ViewSettings.neutral(), np.random.default_rng(0))
    assert window == (0, 0, 48, 40)
    assert np.array_equal(view, np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)))


@given(
    st.integers(0, 2**31),
    st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(lambda pair: (min(pair), max(pair))),
    st.integers(8, 90),
    st.integers(8, 90),
)
@settings(max_examples=60, deadline=None)
def test_a_crop_lies_in_the_image_and_has_its_share(
    seed: int, crop: tuple[float, float], width: int, height: int
) -> None:
    config = ViewSettings.geometric(crop)
    view, (x1, y1, x2, y2) = make_view(picture(width, height), 16, config, np.random.default_rng(seed))
    assert view.shape == (16, 16, 3) and view.dtype == np.uint8
    assert 0 <= x1 < x2 <= width + 1e-6 and 0 <= y1 < y2 <= height + 1e-6
    share = (x2 - x1) * (y2 - y1) / (width * height)
    # A side is never longer than the image's, nor shorter than a pixel: then the share is a little off.
    clipped = x2 - x1 > width - 1e-6 or y2 - y1 > height - 1e-6
    assert share <= crop[1] + 0.02
    assert clipped or share >= crop[0] - 0.02


def test_switching_one_change_off_leaves_the_others() -> None:
    both = ViewSettings(crop=(0.5, 1), colour=0, hue=0, grey=0, blur=0.5)
    sharp = both.model_copy(update={"blur": 0.0})
    image, equal = picture(160, 140), 0
    for seed in range(20):
        blurred, window = make_view(image, 112, both, np.random.default_rng(seed))
        plain, same = make_view(image, 112, sharp, np.random.default_rng(seed))
        assert window == same
        equal += bool(np.array_equal(blurred, plain))
    assert 4 <= equal <= 17  # half of the views are blurred, some of them too little to see


def test_turns_and_mirrors_only_move_pixels() -> None:
    image = picture(SIZE, SIZE)
    config = ViewSettings.geometric((1.0, 1.0))
    expected = np.sort(np.asarray(image).reshape(-1, 3), axis=0)
    seen = set()
    for seed in range(40):
        view, _ = make_view(image, SIZE, config, np.random.default_rng(seed))
        assert np.array_equal(np.sort(view.reshape(-1, 3), axis=0), expected)
        seen.add(view.tobytes())
    assert len(seen) == 8  # the symmetries of a square


def test_colours_change_by_formula() -> None:
    image = np.full((2, 2, 3), (100, 60, 20), np.uint8)
    assert jittered(image, 1.2, 1.0, 1.0)[0, 0].tolist() == [120, 72, 24]
    luma = 0.299 * 100 + 0.587 * 60 + 0.114 * 20
    assert jittered(image, 1.0, 1.0, 0.0)[0, 0].tolist() == [round(luma)] * 3
    # The image is of one colour, so contrast moves it away from its own mean luma.
    assert jittered(image, 1.0, 0.5, 1.0)[0, 0].tolist() == [
        round(luma + (value - luma) / 2) for value in (100, 60, 20)
    ]
    third = jittered(np.full((1, 1, 3), (200, 0, 0), np.uint8), 1, 1, 1, hue=1 / 3)
    assert third[0, 0].tolist() == [0, 200, 0]


def test_grey_views_have_no_colour() -> None:
    config = ViewSettings.neutral().model_copy(update={"grey": 1.0})
    view, _ = make_view(picture(), SIZE, config, np.random.default_rng(0))
    assert np.array_equal(view[..., 0], view[..., 1]) and np.array_equal(view[..., 0], view[..., 2])


def test_crops_must_rise() -> None:
    with pytest.raises(ValueError, match="must rise"):
        ViewSettings(crop=(0.8, 0.2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_folder(tmp_path_factory.mktemp("views") / "toy")


def test_images_come_in_the_order_of_the_instructions(folder: Path) -> None:
    """At equal rates and seeds ViTP and the other paradigms see the same images at the same places."""
    records = JsonlRecords(folder / "train.jsonl", folder, "toy")
    instructions = Mixture([MixtureEntry(records, 1.5)], seed=7)
    images = image_mixture([read_image_rows(folder)], [1.5], seed=7)
    assert len(images) == len(instructions) == 18
    for position in range(40):
        assert images[position].record.image == instructions[position].record.images[0]


def test_an_epoch_has_every_training_image_once_and_no_other(folder: Path) -> None:
    images = image_mixture([read_image_rows(folder)], None, seed=0)
    ids = [images[position].record.id for position in range(len(images))]
    assert sorted(ids) == sorted(f"image {number}" for number in range(12))
    assert images.describe() == [{"name": "toy", "records": 12, "rate": 1.0, "licence": "CC0"}]


def test_the_fingerprint_follows_what_decides_the_batches(folder: Path) -> None:
    collate = TwoViews(SIZE, ViewSettings())
    source = source_of(folder, collate)
    assert source.fingerprint() == source_of(folder, TwoViews(SIZE, ViewSettings())).fingerprint()
    others = [
        source_of(folder, TwoViews(SIZE + 8, ViewSettings())),
        source_of(folder, TwoViews(SIZE, ViewSettings(blur=0.1))),
        source_of(folder, collate, batch=8),
    ]
    assert all(other.fingerprint() != source.fingerprint() for other in others)
    # Cutting a step into micro-batches changes nothing that is learned.
    assert source_of(folder, collate, micro=2).fingerprint() == source.fingerprint()


def test_unequal_parts_are_refused(folder: Path) -> None:
    source = source_of(folder, TwoViews(SIZE, ViewSettings()), batch=4)
    with pytest.raises(ConfigError, match="choose a multiple of 3"):
        source(0, 0, 0, 3)


def test_images_without_the_labels_are_left_out(folder: Path) -> None:
    rows = read_image_rows(folder)
    assert len(rows.having(lambda item: item.scene == "harbour", "harbours")) == 6
    with pytest.raises(DataError, match="has no training heights"):
        rows.having(lambda item: False, "heights")
