"""Images without labels: how a folder is read, and questions whose answers the tests recompute from the pixels."""

from __future__ import annotations

import io
import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from vitp.core.config import make_config
from vitp.core.errors import ConfigError, DataError
from vitp.data.compile import compile_labels
from vitp.data.formats import read_labels
from vitp.data.shards import write_shards
from vitp.data.synthesis.build import SynthesisConfig
from vitp.data.synthesis.pretext_look import look_at
from vitp.data.synthesis.pretext_tasks import PRETEXT_TASKS, colour_names, gradients, turned_copy
from vitp.io.images import image_size, load_image, load_planes
from vitp.io.open_pixels import open_pixels
from vitp.objectives.image_rows import read_image_rows, read_uncompiled
from vitp.records.channels import Channel, Channels
from vitp.records.instructions import InstructionRecord, Turn
from vitp.records.labels import LabelledImage
from vitp.runs.pretrain import PretrainConfig, build


def picture(seed: int, size: tuple[int, int] = (120, 90)) -> np.ndarray:
    """Blobs of colour, brighter and rougher on some sides."""
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    array = cv2.resize(array, size, interpolation=cv2.INTER_CUBIC)
    half = array[:, : size[0] // 2]
    noise = rng.integers(-90, 90, (30, 30)).repeat(6, 0).repeat(6, 1)[: half.shape[0], : half.shape[1], None]
    half[:] = np.clip(half.astype(int) + noise, 0, 255)
    return array


def folder_of(root: Path, count: int = 24) -> Path:
    for number in range(count):
        array = picture(number, (120, 90) if number % 3 else (96, 140))
        if number % 4 == 0:
            array[..., 1] = 255 - array[..., 1] // 4
            array[..., ::2] //= 4
        if number % 4 == 1:
            array[:, array.shape[1] // 2 :] = array[:, array.shape[1] // 2 :] // 4 + 96
        array = array[:, ::-1] if number % 8 < 4 else array  # else all would be rougher on the left
        (root / "sub").mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(root / ("sub" if number % 5 == 0 else ".") / f"view_{number}.png")
    return root


def test_images_of_many_bands_are_looked_at_band_by_band(tmp_path: Path) -> None:
    """OpenCV takes means over areas of four channels at most."""
    rasterio = pytest.importorskip("rasterio")
    rng = np.random.default_rng(0)
    planes = [cv2.resize(rng.integers(0, 4000, (9, 12)).astype(np.float32), (240, 180)) for _ in range(6)]
    with rasterio.open(
        tmp_path / "six.tif", "w", driver="GTiff", width=240, height=180, count=6, dtype="uint16"
    ) as file:
        file.write(np.stack(planes).astype(np.uint16))
    channels = Channels(channels=tuple(Channel(band=str(n + 1), high=4000) for n in range(6)))
    look = look_at(LabelledImage("six", str(tmp_path / "six.tif"), 240, 180), channels)
    assert look is not None and look.small_HWC.shape == (72, 96, 6)
    for number, plane_HW in enumerate(planes):
        seen_HW = np.rint(plane_HW.astype(np.uint16) * (255 / 4000)).astype(np.float32) / 255
        small_HW = cv2.resize(seen_HW, (96, 72), interpolation=cv2.INTER_AREA)
        assert np.abs(look.small_HWC[..., number] - small_HW).max() < 0.005
    question = turned_copy(look, np.random.default_rng(1))
    assert question is not None


# --- views of an image


def test_views_are_what_their_addresses_say(tmp_path: Path) -> None:
    array = picture(1)
    Image.fromarray(array).save(tmp_path / "a.png")
    file = str(tmp_path / "a.png")
    views = {
        "turn=90": np.rot90(array, -1),
        "turn=180": np.rot90(array, 2),
        "turn=270": np.rot90(array, 1),
        "mirror=1": array[:, ::-1],
        "window=10,20,60,80&mirror=1&turn=90": np.rot90(array[20:80, 10:60][:, ::-1], -1),
    }
    for part, expected in views.items():
        assert np.array_equal(np.asarray(load_image(f"{file}#{part}")), expected), part
        assert np.array_equal(load_planes(f"{file}#{part}"), expected.transpose(2, 0, 1)), part
        assert image_size(f"{file}#{part}") == expected.shape[1::-1], part
    blank = np.asarray(load_image(f"{file}#hole=0,0,500,333"))
    expected = array.copy()
    expected[:30, :60] = 128
    assert np.array_equal(blank, expected)
    small = load_image(f"{file}#turn=90", enough=lambda width, height: (width, height))
    assert small.size == (90, 120)


@pytest.mark.parametrize("part", ["turn=45", "turn=0", "mirror=2", "hole=5,5,5,9", "hole=1,2,3"])
def test_views_that_are_none_are_refused(part: str, tmp_path: Path) -> None:
    Image.fromarray(picture(1)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="chooses"):
        load_image(f"{tmp_path}/a.png#{part}")


def test_values_of_views_are_not_read(tmp_path: Path) -> None:
    Image.fromarray(picture(1)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="view"):
        open_pixels(f"{tmp_path}/a.png#turn=90")


def test_shards_hold_views_as_they_are_seen(tmp_path: Path) -> None:
    array = picture(1)
    Image.fromarray(array).save(tmp_path / "a.png")
    record = InstructionRecord(
        "a@turned", (f"{tmp_path}/a.png#turn=90&mirror=1",), (Turn("<image>\nWhat?", "this"),)
    )
    (shard,) = write_shards([record], tmp_path / "shards", "views")
    with tarfile.open(shard) as archive:
        name = next(name for name in archive.getnames() if name.endswith(".png"))
        stored = archive.extractfile(name)
        assert stored is not None
        found = np.asarray(Image.open(io.BytesIO(stored.read())))
    assert np.array_equal(found, np.rot90(array[:, ::-1], -1))


# --- folders


def test_a_folder_says_what_it_holds(tmp_path: Path) -> None:
    folder_of(tmp_path, 8)
    (tmp_path / "broken.png").write_bytes(b"nothing")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "masks").mkdir()
    Image.fromarray(picture(1)).save(tmp_path / "masks" / "view_1.png")
    labelled = read_labels("images", tmp_path)
    assert len(labelled) == 8 and not any(item.objects or item.captions for item in labelled.items)
    said = "\n".join(labelled.understood)
    for words in (
        "8 images without labels: 120×90 px, 96×140 px",
        "1 images below masks/ are left out",
        "broken.png: is not an image",
        "1 hidden files are left out (.hidden.png)",
        "1 other files are no images (notes.txt)",
        "splits: train",
    ):
        assert words in said, words


def test_folders_of_splits_count_and_others_train(tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder_of(tmp_path / split, 5)
    labelled = read_uncompiled(tmp_path)
    assert [len(labelled.split(split)) for split in ("train", "val", "test")] == [5, 0, 5]
    rows = read_image_rows(tmp_path)
    assert len(rows) == 5 and rows.fingerprint() == read_image_rows(tmp_path).fingerprint()
    assert len(read_uncompiled(folder_of(tmp_path / "train" / "more", 2)).split("train")) == 2


def test_folders_without_images_or_with_broken_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no image"):
        read_labels("images", tmp_path)
    folder_of(tmp_path, 2)
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jpg").write_bytes(b"?")
    with pytest.raises(DataError, match=r"3 of 5 images can't be read \(the first: a.jpg"):
        read_labels("images", tmp_path)


def test_captions_of_names_are_asked_for(tmp_path: Path) -> None:
    Image.fromarray(picture(1)).save(tmp_path / "RedBarn_at_night-012.png")
    (tmp_path / "old_harbour").mkdir()
    Image.fromarray(picture(2)).save(tmp_path / "old_harbour" / "7.png")
    plain = read_labels("images", tmp_path)
    assert not any(item.captions for item in plain.items)
    named = {item.id: item.captions for item in read_labels("images", tmp_path, captions="names").items}
    assert named == {"RedBarn_at_night-012": ("red barn at night",), "old_harbour/7": ()}
    folders = {item.id: item.captions for item in read_labels("images", tmp_path, captions="folders").items}
    assert folders["old_harbour/7"] == ("old harbour",)
    with pytest.raises(ConfigError, match="choose names or folders"):
        read_labels("images", tmp_path, captions="exif")


def test_names_of_medical_images_are_never_captions(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    values = np.random.default_rng(0).integers(0, 900, (40, 40, 6)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "Jane_Doe.nii.gz")
    labelled = read_labels("images", tmp_path)
    assert len(labelled) == 6 and "each slice is an image" in "\n".join(labelled.understood)
    assert len(read_labels("images", tmp_path, every=3)) == 2
    with pytest.raises(ConfigError, match="may tell who the patient is"):
        read_labels("images", tmp_path, captions="names")
    compile_labels(tmp_path, "images", tmp_path / "out", val=0.0, test=0.0)
    turns = [turn for record in records_of(tmp_path / "out") for turn in record.turns]
    assert turns and not any("jane" in (turn.question + turn.answer).lower() for turn in turns)


# --- questions


@dataclass(frozen=True)
class Record:
    """A line of a compiled file: absolute addresses, and pairs of question and answer."""

    id: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]


def records_of(compiled: Path) -> list[Record]:
    root = Path(json.loads((compiled / "mixture.json").read_text()).popitem()[1]["root"])
    found = []
    for line in (compiled / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        images = [row["image"]] if isinstance(row["image"], str) else row["image"]
        texts = [part["value"] for part in row["conversations"]]
        turns = tuple(Turn(*pair) for pair in zip(texts[::2], texts[1::2], strict=True))
        found.append(Record(row["id"], tuple(str(compiled / root / image) for image in images), turns))
    return found


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    root = folder_of(tmp_path_factory.mktemp("bare"), 40)
    config = SynthesisConfig(questions_per_image=15)
    compile_labels(root, "images", root / "out", synthesis=config, val=0.0, test=0.0)
    return records_of(root / "out")


def asked(records: list[Record], task: str) -> list[tuple[list[np.ndarray], str]]:
    found = [r for r in records if r.id.endswith(f"@{task}")]
    assert len(found) >= 8, task
    return [([np.asarray(load_image(one)) for one in r.images], r.turns[0].answer) for r in found]


def test_turned_and_mirrored_copies(records: list[Record]) -> None:
    answers = set()
    for (first, second), answer in asked(records, "turned"):
        turns = [q for q in range(4) if np.array_equal(np.rot90(first, -q), second)]
        assert turns == [int(answer) // 90]
        answers.add(answer)
    assert answers == {"90", "180", "270"}
    for (first, second), answer in asked(records, "mirrored"):
        is_mirror = np.array_equal(first[:, ::-1], second)
        assert (answer == "yes") == is_mirror and is_mirror != np.array_equal(first, second)


def test_missing_patches(records: list[Record]) -> None:
    for (image,), answer in asked(records, "missing_patch"):
        height, width = image.shape[:2]
        flat = [
            f"row {row + 1}, column {column + 1}"
            for row in range(3)
            for column in range(3)
            if np.ptp(
                image[
                    round(height * row / 3) + 1 : round(height * (row + 1) / 3) - 1,
                    round(width * column / 3) + 1 : round(width * (column + 1) / 3) - 1,
                ]
            )
            == 0
        ]
        assert flat == [answer]


def test_places_of_crops(records: list[Record]) -> None:
    rows, columns = ("upper", "middle", "lower"), ("left", "middle", "right")
    for (whole, crop), answer in asked(records, "crop_place"):
        fit = cv2.matchTemplate(whole, crop, cv2.TM_SQDIFF)
        _, _, (x, y), _ = cv2.minMaxLoc(fit)
        assert np.array_equal(whole[y : y + crop.shape[0], x : x + crop.shape[1]], crop)
        row = int(3 * (y + crop.shape[0] / 2) / whole.shape[0])
        column = int(3 * (x + crop.shape[1] / 2) / whole.shape[1])
        assert answer == ("centre" if (row, column) == (1, 1) else f"{rows[row]} {columns[column]}")


def test_larger_crops_hold_the_smaller(records: list[Record]) -> None:
    for (first, second), answer in asked(records, "larger_crop"):
        large, small = (first, second) if answer == "first" else (second, first)
        assert large.size > small.size
        _, _, (x, y), _ = cv2.minMaxLoc(cv2.matchTemplate(large, small, cv2.TM_SQDIFF))
        assert np.array_equal(large[y : y + small.shape[0], x : x + small.shape[1]], small)


def test_questions_about_the_image_itself(records: list[Record]) -> None:
    seen = set()
    for record in (r for r in records if r.id.endswith("@itself")):
        image = np.asarray(load_image(record.images[0])).astype(np.float32) / 255
        for turn in record.turns:
            halves = re.search(r"\b(left|upper)\b.*\b(right|lower)\b", turn.question)
            if halves is None:
                names, counts = np.unique(colour_names(image).astype(str), return_counts=True)
                assert turn.answer == names[counts.argmax()]
                seen.add("colour")
                continue
            axis = 1 if halves[1] == "left" else 0
            rough = any(word in turn.question.lower() for word in ("texture", "detail", "structure", "rough"))
            small = cv2.resize(image, (96, 96), interpolation=cv2.INTER_AREA).mean(2)
            values = gradients(small) if rough else image.mean(2)
            one, other = (half.mean() for half in np.array_split(values, 2, axis=axis))
            assert turn.answer == (halves[1] if one > other else halves[2]), turn
            seen.add("texture" if rough else "brightness")
    assert seen == {"colour", "texture", "brightness"}


def test_nothing_is_asked_whose_answer_could_be_another(tmp_path: Path) -> None:
    """One image is symmetric in every way, one has a period, one is blank, one is tiny."""
    y, x = np.mgrid[0:90, 0:90] - 44.5
    rings = (127 + 100 * np.cos(np.hypot(y, x) / 3)).astype(np.uint8)
    tiled = np.tile(picture(3, (15, 15)), (6, 6, 1))
    for name, array in {"rings": rings, "tiled": tiled, "blank": np.full((90, 90), 128, np.uint8)}.items():
        Image.fromarray(array).convert("RGB").save(tmp_path / f"{name}.png")
    Image.fromarray(picture(5, (20, 20))).save(tmp_path / "tiny.png")
    Image.fromarray(picture(6)).save(tmp_path / "plain.png")
    config = SynthesisConfig(questions_per_image=30)
    compile_labels(tmp_path, "images", tmp_path / "out", synthesis=config, val=0.0, test=0.0)
    ids = {record.id for record in records_of(tmp_path / "out")}
    assert not ids & {"rings@turned", "rings@mirrored", "tiled@crop_place"}
    assert not any(name.startswith("tiny") for name in ids)
    assert {name for name in ids if name.startswith("blank")} <= {"blank@itself"}
    assert "plain@turned" in ids


def test_labelled_sets_are_asked_only_where_a_weight_is_given(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder_of(tmp_path / "set" / name, 8)
    summary = compile_labels(tmp_path / "set", "folders", tmp_path / "without")
    assert not set(summary.splits["train"].tasks) & set(PRETEXT_TASKS)
    weighted = SynthesisConfig(tasks={"turned": 1.0})
    summary = compile_labels(tmp_path / "set", "folders", tmp_path / "with", synthesis=weighted)
    train = summary.splits["train"]
    assert train.tasks["turned"] > 0 and train.tasks["mirrored"] == 0 and summary.unasked == 0
    assert train.records > train.images


# --- mixed with labelled sets


def test_bare_and_labelled_sets_are_drawn_at_their_rates(tmp_path: Path) -> None:
    """One run of visual instructions over a folder without labels and one with classes: each at its rate."""
    asked = SynthesisConfig(questions_per_image=2)
    compile_labels(
        folder_of(tmp_path / "bare", 12), "images", tmp_path / "a", synthesis=asked, val=0.0, test=0.0
    )
    for name in ("barn", "boat"):
        folder_of(tmp_path / "set" / name, 8)
    compile_labels(tmp_path / "set", "folders", tmp_path / "b", val=0.0, test=0.0)
    rates = [0.5, 2.0]
    data = {"mixture": [str(tmp_path / "a"), str(tmp_path / "b")], "rates": rates, "global_batch": 4}
    run = build(make_config(PretrainConfig, {"data": data, "train": {"steps": 1}}))
    assert [one["rate"] for one in run.sets] == rates
    shares = [rate * int(one["records"]) for rate, one in zip(rates, run.sets, strict=True)]
    order = run.source.order  # type: ignore[attr-defined]
    drawn = [order.locate(position).entry for position in range(round(sum(shares)))]
    assert [drawn.count(entry) for entry in (0, 1)] == pytest.approx(shares, abs=1)
    names = [order[position].record.id for position in range(len(drawn))]
    assert any("@" in name for name in names)  # a pretext question, beside the classes of the other set
    first = drawn[: len(drawn) // 2]
    assert first.count(0) / len(first) == pytest.approx(shares[0] / sum(shares), abs=0.25)
