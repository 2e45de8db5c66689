"""Scores by case in millimetres, and intervals over cases, against SimpleITK, brute force and formulas of papers."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from vitp.metrics.cases import CaseScorer, has_cases, with_cases, write_cases
from vitp.metrics.intervals import (
    area_under_curve,
    group_numbers,
    interval_of_draws,
    rate_interval,
    resampled_means,
    wilson,
)
from vitp.metrics.rates import with_rates
from vitp.metrics.results import CaseScore, Scores
from vitp.metrics.segmentation import border_distances, hd95, hd95_of, surface_dice
from vitp.records.labels import LabelledImage
from vitp.report.cases_page import write_case_files

SPACINGS = ((1.0, 1.0, 1.0), (5.0, 0.7, 0.7), (0.9, 3.0, 1.3))
CLASSES = ("background", "liver", "lesion")


def blobs(seed: int, shape: tuple[int, ...] = (9, 14, 12)) -> np.ndarray:
    """Return a mask of a few boxes."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    for _ in range(3):
        corner = [rng.integers(0, side - 3) for side in shape]
        mask[tuple(slice(c, c + rng.integers(2, 6)) for c in corner)] = True
    return mask


def brute(guess: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances of borders by comparing all with all."""
    points = [np.argwhere(m & ~binary_erosion(m)) * np.array(spacing) for m in (guess, truth)]
    between = cdist(*points)
    return between.min(1), between.min(0)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_distances_are_those_of_brute_force_and_of_simpleitk(seed: int, spacing: tuple[float, ...]) -> None:
    guess, truth = blobs(seed), blobs(seed + 10)
    ours, theirs = border_distances(guess, truth, spacing), brute(guess, truth, spacing)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(np.sort(one), np.sort(other), rtol=1e-12)
    wanted = max(np.percentile(theirs[0], 95), np.percentile(theirs[1], 95))
    assert hd95(guess, truth, spacing) == pytest.approx(wanted)
    # MedPy's takes both directions together; ours is never smaller than the smaller direction.
    pooled = float(np.percentile(np.concatenate(theirs), 95))
    assert min(np.percentile(each, 95) for each in theirs) - 1e-9 <= pooled <= wanted + 1e-9
    for tolerance in (0.5, 1.45, 3.3):
        near = sum(int((each <= tolerance).sum()) for each in theirs) / sum(map(len, theirs))
        assert surface_dice(ours, tolerance) == pytest.approx(near)
    images = [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (guess, truth)]
    for image in images:
        image.SetSpacing(spacing[::-1])
    # SimpleITK's counts from every voxel of one mask to the other mask: its maximum is that of the borders.
    distance = sitk.HausdorffDistanceImageFilter()
    distance.Execute(*images)
    assert max(each.max() for each in ours) >= distance.GetHausdorffDistance() - 1e-6
    inside = [cdist(np.argwhere(a & ~b) * np.array(spacing), np.argwhere(b) * np.array(spacing)).min(1).max(initial=0)
              for a, b in ((guess, truth), (truth, guess))]  # fmt: skip
    assert distance.GetHausdorffDistance() == pytest.approx(max(inside), abs=1e-5)


def test_distances_of_masks_at_the_border_of_the_image_and_of_empty_ones() -> None:
    full, empty = np.ones((3, 4, 5), bool), np.zeros((3, 4, 5), bool)
    assert hd95(full, full, (3, 1, 1)) == 0 and surface_dice(border_distances(full, full, (1, 1, 1)), 0) == 1
    assert math.isnan(surface_dice(border_distances(empty, empty, (1, 1, 1)), 2))
    one_empty = border_distances(full, empty, (3, 1, 1))
    assert surface_dice(one_empty, 1e9) == 0 and hd95_of(one_empty, 7.5) == 7.5
    # A distance that is the tolerance itself counts, however it was rounded.
    left, right = np.zeros((1, 1, 9), bool), np.zeros((1, 1, 9), bool)
    left[..., 0] = right[..., 3] = True
    assert surface_dice(border_distances(left, right, (1, 1, 0.1)), 0.3) == 1
    assert surface_dice(border_distances(left, right, (1, 1, 0.1)), 0.29) == 0
    # Spacings of an affine are float32: what is rounded lies within, what is farther doesn't.
    for step, near in ((2.00000002, 1), (2.00001, 1), (2.0001, 0)):
        assert surface_dice(border_distances(left, right, (1, 1, step / 3)), 2) == near
    assert surface_dice(border_distances(left, left, (1, 1, 1)), 0) == 1
    assert surface_dice(border_distances(left, right, (1, 1, 1e-5)), 0) == 0


def slices_of(
    case: str,
    truth_SHW: np.ndarray,
    spacing: tuple[float, float, float] | None,
    group: str = "",
    numbers: list[int] | None = None,
) -> list[LabelledImage]:
    """Return the slices of a volume as the images of a set."""
    count, height, width = truth_SHW.shape
    return [
        LabelledImage(
            f"{case}-{row}", f"/data/{case}.nii.gz#slice={number}&plane=axial", width, height, group=group,
            spacing=None if spacing is None else (spacing[2], spacing[1]),
            thickness=None if spacing is None else spacing[0],
        )
        for row, number in enumerate(numbers or range(count))
    ]  # fmt: skip


def scored(
    volumes: dict[str, tuple[np.ndarray, np.ndarray, tuple[float, float, float] | None]],
    mixed: bool = False,
    groups: dict[str, str] | None = None,
) -> tuple[list[CaseScore], Scores]:
    """Return the scores of volumes that are given slice by slice: name → prediction, labels, spacing."""
    items, layers = [], {}
    for name, (guess, truth, spacing) in volumes.items():
        own = slices_of(name, truth, spacing, (groups or {}).get(name, ""))
        items += own
        layers |= {item.id: (guess[row], truth[row]) for row, item in enumerate(own)}
    scorer = CaseScorer(items[::-1] if mixed else items, CLASSES, tolerance=2.0)
    for item in scorer.in_order():
        scorer.add(item, *layers[item.id])
    found = with_cases(
        Scores("miou", {"miou": 0.5}, {name: {"iou": 0.5} for name in CLASSES}), scorer.scores, CLASSES
    )
    return scorer.scores, found


def test_a_volume_is_scored_as_one_solid_whatever_the_order_of_its_slices() -> None:
    volumes = {}
    for number, spacing in enumerate(SPACINGS):
        guess, truth = (np.where(blobs(number + k), 1, 0).astype(np.uint8) for k in (0, 20))
        guess[blobs(number + 40)] = truth[blobs(number + 60)] = 2
        volumes[f"ct{number}"] = (guess, truth, spacing)
    found, scores = scored(volumes)
    assert found == scored(volumes)[0] and len(found) == 6
    for name, (guess, truth, spacing) in volumes.items():
        for number, category in ((1, "liver"), (2, "lesion")):
            (one,) = [
                row for row in found if row.case.startswith(f"/data/{name}.") and row.category == category
            ]
            overlap = sitk.LabelOverlapMeasuresImageFilter()
            overlap.Execute(*(sitk.GetImageFromArray((v == number).astype(np.uint8)) for v in (truth, guess)))
            assert one.dice == pytest.approx(overlap.GetDiceCoefficient())
            assert one.hd95 == pytest.approx(
                max(np.percentile(each, 95) for each in brute(guess == number, truth == number, spacing))
            )
            assert one.unit == "ml" and one.slices == 9
            assert one.size * one.voxel == pytest.approx((truth == number).sum() * math.prod(spacing) / 1000)
            assert one.error == pytest.approx(
                (int((guess == number).sum()) - int((truth == number).sum())) * math.prod(spacing) / 1000
            )
    liver = [row.dice for row in found if row.category == "liver"]
    assert scores.per_class["liver"]["case_dice"] == pytest.approx(np.mean(liver))
    low, high = scores.class_intervals["liver"]["case_dice"]
    assert min(liver) <= low <= np.mean(liver) <= high <= max(liver)
    assert scores.values["cases"] == 3 and scores.per_class["background"] == {"iou": 0.5}


def test_empty_classes_follow_the_stated_rule() -> None:
    nothing, liver = np.zeros((2, 4, 4), np.uint8), np.ones((2, 4, 4), np.uint8)
    unknown = np.full((2, 4, 4), 255, np.uint8)
    volumes = {
        "missed": (nothing, liver, (3.0, 1.0, 1.0)),
        "invented": (liver, nothing, (3.0, 1.0, 1.0)),
        "none": (nothing, nothing, (3.0, 1.0, 1.0)),
        "unknown": (liver, unknown, (3.0, 1.0, 1.0)),
    }
    found, scores = scored(volumes)
    diagonal = math.hypot(6, 4, 4)
    rows = {row.case.split("/")[2].split(".")[0]: row for row in found if row.category == "liver"}
    for name in ("missed", "invented"):
        assert (rows[name].dice, rows[name].surface, rows[name].hd95) == (0, 0, pytest.approx(diagonal))
    assert [rows[name].error for name in rows] == pytest.approx([-0.096, 0.096, 0, 0])
    assert all(math.isnan(rows[name].dice) and math.isnan(rows[name].hd95) for name in ("none", "unknown"))
    assert scores.per_class["liver"]["cases"] == 2 and scores.per_class["liver"]["case_dice"] == 0
    assert scores.per_class["lesion"]["cases"] == 0 and math.isnan(scores.per_class["lesion"]["case_dice"])


def test_slices_that_a_set_lacks_and_slices_at_steps() -> None:
    truth = np.ones((3, 4, 4), np.uint8)
    for numbers, thickness, count in (([4, 6, 8], 4.0, 3), ([4, 5, 8], 2.0, 5)):
        items = slices_of("a", truth, (2.0, 1.0, 1.0), numbers=numbers)
        scorer = CaseScorer(items, CLASSES, 2.0)
        for item in scorer.in_order():
            scorer.add(item, np.zeros((4, 4), np.uint8), truth[0])
        (liver, _) = scorer.scores
        assert liver.voxel == pytest.approx(thickness / 1000) and liver.size == 48 and liver.slices == 3
        assert liver.hd95 == pytest.approx(math.hypot(thickness * count, 4, 4))


def test_windows_of_slices_images_with_a_spacing_and_those_without() -> None:
    truth = np.zeros((6, 8), np.uint8)
    truth[2:5, 3:7] = 1
    halves = [
        LabelledImage(
            str(x), f"v.nii#slice=3&window={x},0,{x + 4},6", 4, 6, spacing=(0.5, 2.0), thickness=5.0
        )
        for x in (0, 4)
    ]
    xray = LabelledImage("x", "x.png", 8, 6, spacing=(0.5, 2.0))
    plain = LabelledImage("p", "p.png", 8, 6)
    assert has_cases([plain, xray]) and not has_cases([plain])
    scorer = CaseScorer([*halves, xray, plain], CLASSES, 2.0)
    for item in scorer.in_order():
        x = int(item.id) if item.id.isdigit() else 0
        part = truth[:, x : x + item.width]
        scorer.add(item, np.roll(part, 1, 0), part)
    liver = {row.unit: row for row in scorer.scores if row.category == "liver"}
    assert {unit: row.size * row.voxel for unit, row in liver.items()} == pytest.approx(
        {"ml": 12 * 5 / 1000, "mm2": 12, "px": 12}
    )
    assert {unit: row.slices for unit, row in liver.items()} == {"ml": 1, "mm2": 0, "px": 0}
    assert liver["mm2"].hd95 == liver["px"].hd95 * 2 == 2.0


def test_the_table_names_cases_by_their_files_where_these_differ(tmp_path: Path) -> None:
    one = CaseScore("/a/ct.nii.gz#plane=axial", "patient-0001", "liver", 3, 10, 12, 0.5, "ml", 0.9, 0.8, 1.25)
    others = [replace(one, case=f"/{folder}/same.nii.gz", category=name)
              for folder in "xy" for name in ("liver", "lesion")]  # fmt: skip
    write_cases(
        tmp_path / "cases.csv", [one, *others, replace(one, case="/b.nii", dice=math.nan, hd95=math.nan)], 2.0
    )
    rows = list(csv.DictReader((tmp_path / "cases.csv").open()))
    assert [row["case"] for row in rows] == [
        "ct.nii.gz#plane=axial", *["x/same.nii.gz"] * 2, *["y/same.nii.gz"] * 2, "b.nii"
    ]  # fmt: skip
    assert rows[0] | {"error": "1"} == rows[0] and rows[0]["true"] == "5" and rows[0]["predicted"] == "6"
    assert rows[0]["hd95"] == "1.25" and rows[0]["distance_unit"] == "mm" and rows[-1]["dice"] == ""


def test_a_patients_cases_are_drawn_together() -> None:
    values_NM = np.array([[0.0], [0.0], [1.0], [math.nan]])
    draws_B = resampled_means(values_NM, group_numbers(["a", "a", "b", "b"]), draws=400)[:, 0]
    # Twice a: 0; twice b: 1; both: 1/3.
    assert set(np.round(draws_B, 6)) == {0.0, round(1 / 3, 6), 1.0}
    shares = [np.mean(np.isclose(draws_B, value)) for value in (0, 1 / 3, 1)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.08)
    assert interval_of_draws(draws_B, 2) == (0.0, 1.0)
    assert all(map(math.isnan, interval_of_draws(draws_B, 1)))
    rng = np.random.default_rng(0)
    normal_N = rng.normal(0.7, 0.1, 60)
    low, high = interval_of_draws(resampled_means(normal_N[:, None], np.arange(60))[:, 0], 60)
    half = 1.96 * normal_N.std(ddof=1) / math.sqrt(60)
    assert (low, high) == pytest.approx((normal_N.mean() - half, normal_N.mean() + half), abs=0.004)


def test_rates_have_wilsons_interval_and_fewer_trials_where_images_are_alike() -> None:
    # Newcombe, Stat. Med. 1998, table I.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4) and wilson(1, 29)[0] == pytest.approx(
        0.0061, abs=1e-4
    )
    hit_N = np.arange(40) % 4 > 0
    alone = rate_interval(hit_N, np.arange(40))
    assert alone == wilson(30, 40)
    # Ten copies of each value say no more than one of each does.
    copied = rate_interval(hit_N.repeat(10), np.arange(40).repeat(10))
    assert copied == pytest.approx(alone, abs=0.003)
    assert rate_interval(np.ones(30, bool), np.arange(30) // 10) == wilson(3, 3)
    assert all(map(math.isnan, rate_interval(np.zeros(0, bool), np.zeros(0, int))))


def delong(score_N: np.ndarray, positive_N: np.ndarray) -> tuple[float, float]:
    """Return area and variance by comparing each positive with each negative (DeLong et al. 1988)."""
    ours, theirs = score_N[positive_N], score_N[~positive_N]
    right = (ours[:, None] > theirs) + 0.5 * (ours[:, None] == theirs)
    return right.mean(), right.mean(1).var(ddof=1) / len(ours) + right.mean(0).var(ddof=1) / len(theirs)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_areas_have_delongs_interval_and_obuchowskis_of_groups(seed: int) -> None:
    rng = np.random.default_rng(seed)
    positive_N = rng.random(80) < 0.4
    score_N = np.round(rng.normal(positive_N * 0.8, 1.0), 1)  # some are equal
    area, variance = delong(score_N, positive_N)
    found, (low, high) = area_under_curve(score_N, positive_N)
    half = 1.959964 * math.sqrt(variance) / (area * (1 - area))
    logit = math.log(area / (1 - area))
    assert found == pytest.approx(area)
    assert (low, high) == pytest.approx(
        [1 / (1 + math.exp(half * sign - logit)) for sign in (1, -1)], abs=1e-6
    )
    copies = area_under_curve(score_N.repeat(5), positive_N.repeat(5), np.arange(80).repeat(5))
    assert copies[0] == pytest.approx(area) and copies[1] == pytest.approx((low, high), abs=1e-9)
    # Patients with images of both kinds: against a resampling of patients.
    group_N = np.arange(80) // 4
    shifted_N = score_N + rng.normal(0, 1, 20)[group_N]
    middle, (low, high) = area_under_curve(shifted_N, positive_N, group_N)
    drawn = []
    for _ in range(300):
        rows = np.concatenate([np.flatnonzero(group_N == g) for g in rng.integers(0, 20, 20)])
        drawn.append(delong(shifted_N[rows], positive_N[rows])[0])
    assert (high - low) / 2 / 1.96 == pytest.approx(np.std(drawn), rel=0.25) and low < middle < high


def test_areas_without_a_spread_or_without_a_kind() -> None:
    score_N = np.arange(10) / 10
    area, interval = area_under_curve(score_N, score_N > 0.45)
    assert area == 1 and interval == wilson(5, 5)
    assert math.isnan(area_under_curve(score_N, score_N > 2)[0])
    one = area_under_curve(score_N, score_N > 0.85)
    assert one[0] == 1 and all(map(math.isnan, one[1]))


def test_classes_have_sensitivity_specificity_and_area() -> None:
    probability_NK = np.array([[0.9, 0.2], [0.4, 0.7], [0.8, 0.6], [0.1, 0.9], [0.3, 0.1]])
    label_NK = np.array([[1, 0], [1, 1], [0, -1], [0, 1], [0, 0]])
    base = Scores("map", {"map": 0.5}, {"a": {"ap": 0.5}, "b": {"ap": 0.5}})
    found = with_rates(base, ("a", "b"), probability_NK, probability_NK > 0.5, label_NK, list(range(5)))
    assert found.per_class["a"] == pytest.approx(
        {"ap": 0.5, "sensitivity": 0.5, "specificity": 2 / 3, "auc": 5 / 6}
    )
    assert found.per_class["b"] == pytest.approx({"ap": 0.5, "sensitivity": 1, "specificity": 1, "auc": 1})
    assert found.class_intervals["a"]["sensitivity"] == wilson(1, 2)
    assert found.class_intervals["b"]["specificity"] == wilson(2, 2)
    assert found.values == pytest.approx(
        {"map": 0.5, "sensitivity": 0.75, "specificity": 5 / 6, "auc": 11 / 12}
    )
    assert found.to_json()["per_class_intervals"]["a"]["sensitivity"] == list(wilson(1, 2))
    assert "per_class_intervals" not in base.to_json() and "intervals" not in base.to_json()


def test_the_page_of_cases_has_means_intervals_and_the_worst_cases(tmp_path: Path) -> None:
    volumes = {}
    for number in range(4):
        guess, truth = (np.where(blobs(number + k), 1, 0).astype(np.uint8) for k in (0, 20))
        volumes[f"ct{number}"] = (guess, truth, (3.0, 1.0, 1.0))
    found, scores = scored(volumes, groups={f"ct{number}": f"patient-{number // 2}" for number in range(4)})
    table, page = write_case_files(tmp_path, "cases", scores, "organs of the test", 2.0)
    text = page.read_text()
    low, high = scores.class_intervals["liver"]["case_dice"]
    assert f"{scores.per_class['liver']['case_dice']:.3f} [{low:.3f}, {high:.3f}]" in text
    assert "not a medical device" in text and "/data/" not in text
    worst_first = sorted((row for row in found if row.category == "liver"), key=lambda row: row.dice)
    places = [text.index(f">{Path(row.case).name}") for row in worst_first]
    assert places == sorted(places)
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 8 and {row["patient"] for row in rows} == {"patient-0", "patient-1"}
    # Two patients: each resample is one of three means.
    assert low == pytest.approx(
        min(
            np.mean([r.dice for r in found if r.category == "liver" and r.group == g])
            for g in ("patient-0", "patient-1")
        )
    )
