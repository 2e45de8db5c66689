"""Generated scenes: reproducible, exactly labelled, and made of other things in every split."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import subprocess
import sys
from collections import Counter

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vitp.core.errors import ConfigError, DataError
from vitp.core.words import how_many
from vitp.records.labels import IGNORE, SPLITS
from vitp.scenes import (
    DOMAINS,
    Scene,
    SceneAddress,
    load_pair,
    load_scene,
    parse_scene_address,
    render_pair,
    render_scene,
    scene_set,
)
from vitp.scenes.layout import LAYOUTS
from vitp.scenes.looks import LOOKS
from vitp.scenes.render import MIN_SHOWN
from vitp.scenes.shapes import PAINTS, ROLES, SHAPES
from vitp.scenes.textures import SHAPE_PARAMETERS, TEXTURES, bank

ADDRESSES = [
    str(SceneAddress("general", 3, 5)),
    str(SceneAddress("general", 4, 5, split="val")),
    str(SceneAddress("general", 0, 11, size=64, split="val")),
    str(SceneAddress("port", 2, 4, size=128, date="after")),
]


def digest(address: str) -> str:
    scene = load_scene(address)
    content = scene.image_HWC.tobytes() + scene.semantic_HW.tobytes() + scene.instance_HW.tobytes()
    content += repr((scene.objects, scene.caption, scene.scene_type, scene.look)).encode()
    return hashlib.sha256(content).hexdigest()


# Another process renders the same addresses in the opposite order.
DIGESTS = f"""
import hashlib, sys
from vitp.scenes import load_scene

{inspect.getsource(digest)}
print(*reversed([digest(address) for address in reversed(sys.argv[1:])]), sep="\\n")
"""


def sample(domain: str, count: int = 110, split: str = "train") -> list[Scene]:
    return [render_scene(domain, 1, index, split=split) for index in range(count)]


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    return {name: sample(name) for name in DOMAINS}


def test_same_arguments_give_the_same_bytes_in_another_process_and_order() -> None:
    here = [digest(address) for address in ADDRESSES]
    again = render_scene("general", 3, 5)
    assert np.array_equal(again.image_HWC, load_scene(ADDRESSES[0]).image_HWC)
    there = subprocess.run(
        [sys.executable, "-c", DIGESTS, *ADDRESSES], capture_output=True, text=True, check=True
    )
    assert there.stdout.split() == here
    assert len(set(here)) == len(here)


def test_every_argument_changes_the_picture() -> None:
    base = render_scene("general", 1, 1).image_HWC
    others = [
        render_scene("general", 2, 1),
        render_scene("general", 1, 2),
        render_scene("general", 1, 1, split="val"),
        render_scene("port", 1, 1),
    ]
    assert all(not np.array_equal(base, other.image_HWC) for other in others)


def check_labels(scene: Scene, domain: str, size: int) -> None:
    specs = DOMAINS[domain]
    names = specs.semantic_classes
    assert scene.image_HWC.shape == (size, size, 3) and scene.image_HWC.dtype == np.uint8
    assert scene.semantic_HW.shape == (size, size) and scene.semantic_HW.dtype == np.uint8
    assert scene.instance_HW.shape == (size, size) and scene.instance_HW.dtype == np.uint16
    values = set(np.unique(scene.semantic_HW).tolist()) - {IGNORE}
    assert max(values) < len(names)
    assert scene.instance_HW.max(initial=0) <= len(scene.objects)
    is_land = scene.semantic_HW < len(specs.land_classes)
    assert np.array_equal(scene.instance_HW == 0, is_land | (scene.semantic_HW == IGNORE))
    for number, item in enumerate(scene.objects, 1):
        mask = scene.instance_HW == number
        assert item.visible_pixels == np.count_nonzero(mask) > 0
        assert (scene.semantic_HW[mask] == names.index(item.category)).all()
        x1, y1, x2, y2 = item.box
        assert 0 <= x1 < x2 <= size and 0 <= y1 < y2 <= size
        xs, ys = item.quad[0::2], item.quad[1::2]
        clipped = [min(max(value, 0), size) for value in (min(xs), min(ys), max(xs), max(ys))]
        assert clipped == pytest.approx(list(item.box), abs=1e-6)
        rows, columns = np.nonzero(mask)
        assert columns.min() >= np.floor(x1) and columns.max() < np.ceil(x2)
        assert rows.min() >= np.floor(y1) and rows.max() < np.ceil(y2)
        # Positive area with y pointing down means clockwise on the screen.
        area = 0.5 * sum(xs[k] * ys[(k + 1) % 4] - xs[(k + 1) % 4] * ys[k] for k in range(4))
        assert area > 0
        assert 0 <= item.attributes["heading"] < 360
        assert item.attributes["size"] in ("small", "large")
        assert ("colour" in item.attributes) == LOOKS[scene.look].true_colour


@settings(max_examples=40, deadline=None)
@given(
    domain=st.sampled_from(sorted(DOMAINS)),
    seed=st.integers(0, 2**31),
    index=st.integers(0, 10**6),
    size=st.sampled_from([16, 48, 64, 96, 131]),
    split=st.sampled_from(SPLITS),
)
def test_masks_boxes_and_quads_agree(domain: str, seed: int, index: int, size: int, split: str) -> None:
    check_labels(render_scene(domain, seed, index, size=size, split=split), domain, size)


@pytest.mark.parametrize("domain", sorted(DOMAINS))
def test_boxes_are_tight_for_objects_that_lie_inside(domain: str, scenes: dict[str, list[Scene]]) -> None:
    upright = [name for name, spec in DOMAINS[domain].objects.items() if spec.round]
    checked = 0
    for scene in scenes[domain]:
        for number, item in enumerate(scene.objects, 1):
            x1, y1, x2, y2 = item.box
            if item.category not in upright or min(x1, y1) < 1 or max(x2, y2) > 95:
                continue
            rows, columns = np.nonzero(scene.instance_HW == number)
            got = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert np.abs(np.subtract(got, item.box)).max() <= 1.0
            checked += 1
    assert checked > 20


@pytest.mark.parametrize("domain", sorted(DOMAINS))
def test_objects_differ_from_their_ground(domain: str, scenes: dict[str, list[Scene]]) -> None:
    # Labels must lie on what is drawn: the step of brightness along outlines is far above the ground's own.
    ratios = []
    for scene in scenes[domain]:
        gray = scene.image_HWC.mean(2)
        step = np.abs(cv2.Laplacian(cv2.GaussianBlur(gray, (3, 3), 0), cv2.CV_64F))
        edge = cv2.morphologyEx((scene.instance_HW > 0).astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3)))
        if edge.sum() > 50:
            ratios.append(step[edge > 0].mean() / step[(edge == 0) & (scene.instance_HW == 0)].mean())
    assert np.median(ratios) > 1.25


@pytest.mark.parametrize("domain", sorted(DOMAINS))
def test_every_class_scene_type_and_look_occurs(domain: str, scenes: dict[str, list[Scene]]) -> None:
    specs = DOMAINS[domain]
    objects = Counter(item.category for scene in scenes[domain] for item in scene.objects)
    assert set(objects) == set(specs.object_classes) and min(objects.values()) >= 15
    assert {scene.scene_type for scene in scenes[domain]} == set(specs.scene_types)
    assert {scene.look for scene in scenes[domain]} == set(specs.looks)
    pixels = sum(np.bincount(s.semantic_HW.ravel(), minlength=256) for s in scenes[domain])
    assert (pixels[: len(specs.semantic_classes)] > 0).all()
    assert pixels[IGNORE] < 0.01 * pixels.sum()
    counts = [len(scene.objects) for scene in scenes[domain]]
    assert 4 <= np.mean(counts) <= 14 and max(counts) <= 30


def test_domains_are_complete_and_share_neither_objects_nor_looks() -> None:
    for domain in DOMAINS.values():
        assert set(domain.rules) == set(domain.scene_types) <= set(LAYOUTS)
        assert len(domain.object_classes) >= 6 and len(domain.land_classes) >= 6
        assert set(domain.object_classes) <= set(SHAPES)
        assert domain.semantic_classes == domain.land_classes + domain.object_classes
        for spec in domain.objects.values():
            assert set(spec.palette) <= set(PAINTS)
        for land in domain.land.values():
            assert set(land.textures) <= set(TEXTURES)
        for rule in itertools.chain.from_iterable(domain.rules.values()):
            assert rule.category in domain.object_classes
            assert set(rule.zones) <= set(domain.land_classes)
    general, port = DOMAINS["general"], DOMAINS["port"]
    assert not set(general.object_classes) & set(port.object_classes)
    assert not set(general.looks) & set(port.looks)


@given(
    category=st.sampled_from(sorted(SHAPES)),
    share=st.floats(0, 1),
    shape=st.lists(st.floats(0, 0.999), min_size=SHAPE_PARAMETERS, max_size=SHAPE_PARAMETERS),
)
@example("building", 0.0, [0.75, 0.75, 0.0, 0.75, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
@example("building", 0.0, [0.0, 0.75, 0.0, 0.75, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
def test_shapes_are_convex_parts_of_the_asked_length(category: str, share: float, shape: list[float]) -> None:
    spec = next(d.objects[category] for d in DOMAINS.values() if category in d.objects)
    length = spec.length[0] + share * (spec.length[1] - spec.length[0])
    parts = SHAPES[category](length, shape)
    solid = np.concatenate([part.points for part in parts if part.solid])
    assert np.ptp(solid[:, 0]) == pytest.approx(length, rel=0.08)
    lower, upper = solid.min(0) - 0.9, solid.max(0) + 0.9
    for part in parts:
        assert part.role in ROLES
        assert (part.points >= lower).all() and (part.points <= upper).all()
        hull = cv2.contourArea(cv2.convexHull(part.points))
        assert cv2.contourArea(part.points) == pytest.approx(hull, abs=0.02 * hull + 1e-3)


@pytest.mark.parametrize("domain", sorted(DOMAINS))
def test_splits_share_no_texture_and_no_object_variant(domain: str) -> None:
    banks = {split: bank(domain, split) for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        for land in DOMAINS[domain].land_classes:
            for a, b in itertools.product(banks[one].land[land], banks[other].land[land]):
                assert not np.array_equal(a.level_B, b.level_B)
            # Correlation at the best of all shifts: a shifted copy of a texture would reach 1.
            a, b = banks[one].land[land][0], banks[other].land[land][0]
            spectrum = np.fft.rfft2(a.texture_HW) * np.conj(np.fft.rfft2(b.texture_HW))
            assert np.fft.irfft2(spectrum).max() / a.texture_HW.size < 0.9
        for name in DOMAINS[domain].object_classes:
            mine = {variant.shape for variant in banks[one].objects[name]}
            assert not mine & {variant.shape for variant in banks[other].objects[name]}


def test_scene_type_is_not_a_matter_of_mean_colour(scenes: dict[str, list[Scene]]) -> None:
    train, test = scenes["general"], sample("general", 110, "test")

    def features(scene: Scene) -> np.ndarray:
        return np.concatenate([scene.image_HWC.mean((0, 1)), scene.image_HWC.std((0, 1))])

    known = np.stack([features(scene) for scene in train])
    scale = known.std(0)
    hits = 0
    for scene in test:
        distance = (((known - features(scene)) / scale) ** 2).sum(1)
        votes = Counter(train[k].scene_type for k in np.argsort(distance)[:7])
        hits += votes.most_common(1)[0][0] == scene.scene_type
    assert hits / len(test) < 0.45  # chance is 1/8


def test_a_larger_scene_is_a_larger_place_with_objects_of_the_same_size() -> None:
    def facts(size: int, count: int) -> tuple[float, float]:
        found = [render_scene("general", 5, index, size=size) for index in range(count)]
        cars = [o for scene in found for o in scene.objects if o.category == "car"]
        lengths = [np.hypot(o.quad[2] - o.quad[0], o.quad[3] - o.quad[1]) for o in cars]
        return float(np.mean(lengths)), sum(len(scene.objects) for scene in found) / count

    (small_length, small_count), (large_length, large_count) = facts(64, 40), facts(160, 12)
    assert large_length == pytest.approx(small_length, rel=0.1)
    assert large_count > 3 * small_count


@pytest.mark.parametrize("domain", sorted(DOMAINS))
def test_captions_are_true(domain: str, scenes: dict[str, list[Scene]]) -> None:
    texts = set()
    for scene in scenes[domain]:
        for name, count in Counter(item.category for item in scene.objects).items():
            words = how_many(count, name)
            assert words.lower() in scene.caption.lower()
        for name in set(DOMAINS[domain].object_classes) - {item.category for item in scene.objects}:
            assert f" {name} " not in scene.caption.replace("container terminal", "")
        assert any(p.lower() in scene.caption.lower() for p in LOOKS[scene.look].phrases)
        assert scene.caption[0].isupper() and scene.caption.endswith(".") and ".." not in scene.caption
        texts.add(scene.caption)
    assert len(texts) > 0.85 * len(scenes[domain])


@pytest.mark.parametrize("domain", sorted(DOMAINS))
def test_pairs_change_where_their_labels_say(domain: str) -> None:
    kinds: Counter[str] = Counter()
    unchanged = 0
    for index in range(45):
        pair = render_pair(domain, 4, index)
        check_labels(pair.before, domain, 96)
        check_labels(pair.after, domain, 96)
        kinds.update(change.kind for change in pair.changes)
        differs = pair.before.semantic_HW != pair.after.semantic_HW
        # Instance numbers differ between dates, but an object that stays is in both and never moves.
        assert np.array_equal(differs, pair.change_HW)
        covered = np.zeros((96, 96), bool)
        for _, _, (x1, y1, x2, y2) in pair.changes:
            window = covered[int(np.floor(y1)) : int(np.ceil(y2)), int(np.floor(x1)) : int(np.ceil(x2))]
            window[:] = True
        assert not (pair.change_HW & ~covered).any()
        assert bool(pair.changes) == bool(pair.change_HW.any())
        unchanged += not pair.changes
        boxes = {kind: Counter() for kind in ("appeared", "disappeared")}
        before = Counter((item.category, item.box) for item in pair.before.objects)
        after = Counter((item.category, item.box) for item in pair.after.objects)
        for kind, category, box in pair.changes:
            if kind != "land":
                boxes[kind][category, box] += 1
        assert after - before == boxes["appeared"] and before - after == boxes["disappeared"]
        assert pair.before.look == pair.after.look
        assert not np.array_equal(pair.before.image_HWC, pair.after.image_HWC)
    assert min(kinds[kind] for kind in ("appeared", "disappeared", "land")) >= 8
    assert 3 <= unchanged <= 22


def test_objects_that_show_little_are_ignored_not_labelled() -> None:
    shown = Counter()
    for index in range(100):
        scene = render_scene("general", 8, index, size=48)
        shown["ignored"] += bool((scene.semantic_HW == IGNORE).any())
        border = scene.instance_HW[scene.semantic_HW == IGNORE]
        assert (border == 0).all()
    assert 0 < MIN_SHOWN < 1 and shown["ignored"] >= 5


@given(
    domain=st.sampled_from(sorted(DOMAINS)),
    seed=st.integers(0, 10**9),
    index=st.integers(0, 10**9),
    size=st.integers(16, 2048),
    split=st.sampled_from(SPLITS),
    date=st.sampled_from([None, "before", "after"]),
)
def test_addresses_round_trip(
    domain: str, seed: int, index: int, size: int, split: str, date: str | None
) -> None:
    text = str(SceneAddress(domain, seed, index, size=size, split=split, date=date))
    assert parse_scene_address(text) == SceneAddress(domain, seed, index, size, split, date)
    assert str(parse_scene_address(text)) == text


def test_the_address_form_is_fixed() -> None:
    assert str(SceneAddress("port", 7, 123, split="val")) == "scene:port/7/123?size=96&split=val"
    assert ADDRESSES[3] == "scene:port/2/4?size=128&split=train&date=after"
    assert parse_scene_address("scene:general/0/1") == SceneAddress("general", 0, 1)


@pytest.mark.parametrize(
    "address",
    [
        "scene:general/1",
        "scene:general/-1/2",
        "port/1/2",
        "scene:port/1/2?size=big",
        "scene:port/1/2?split=training",
        "scene:port/1/2?date=now",
        "scene:port/1/2?colour=red",
        "scene:port/1/2?size=",
    ],
)
def test_wrong_addresses_say_what_is_wrong(address: str) -> None:
    with pytest.raises(DataError) as caught:
        load_scene(address)
    assert caught.value.where == address and caught.value.fix


def test_wrong_arguments_say_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match='did you mean "general"'):
        render_scene("generel", 0, 0)
    with pytest.raises(ConfigError, match='did you mean "train"'):
        render_scene("general", 0, 0, split="trian")
    with pytest.raises(ConfigError, match="negative"):
        render_scene("general", -1, 0)
    with pytest.raises(ConfigError, match="from 16 to 2048"):
        render_scene("general", 0, 0, size=8)
    with pytest.raises(ConfigError, match="negative"):
        scene_set("general", seed=0, count=-1)


def test_cached_scenes_cannot_be_spoilt() -> None:
    scene = load_scene(ADDRESSES[0])
    assert load_scene(ADDRESSES[0]) is scene
    with pytest.raises(ValueError):
        scene.image_HWC[0, 0] = 0
    pair = load_pair(ADDRESSES[3])
    assert load_scene(ADDRESSES[3]) is pair.after
    assert load_scene(ADDRESSES[3].replace("after", "before")) is pair.before
