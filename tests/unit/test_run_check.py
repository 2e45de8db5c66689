"""`vitp check`: equal is called equal, a difference is found and ends with exit code 1."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import make_record, save_image, tiny_vlm_config
from tests.map_models import BrightestBand
from vitp.cli import run
from vitp.core.config import make_config, save_config
from vitp.core.errors import ConfigError
from vitp.models import run_attention
from vitp.records.instructions import to_line
from vitp.runs.check.findings import (
    BatchOutcome,
    CheckFinding,
    Difference,
    compare,
    compare_curves,
    compare_tensors,
)
from vitp.runs.check.run import check_run, load_run
from vitp.runs.check.runs import short_run
from vitp.runs.check.seams import moved_pixels
from vitp.runs.pretrain import PretrainConfig
from vitp.tasks.base import TestSettings
from vitp.tasks.data import classes_of, open_labelled


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    """A tiny run over six records with one and several questions."""
    folder = tmp_path_factory.mktemp("data")
    records = [make_record(n, turns=1 + n % 3, independent=n % 2 == 0) for n in range(6)]
    for record in records:
        for image in record.images:
            save_image(folder / image, seed=int(record.id), size=(32, 32))
    lines = "".join(to_line(record) + "\n" for record in records)
    (folder / "train.jsonl").write_text(lines, encoding="utf-8")
    values = {
        "model": {
            "init": "scratch",
            "scratch": tiny_vlm_config().model_dump(),
            "vocabulary": 400,
        },
        "data": {
            "mixture": [str(folder / "train.jsonl")],
            "global_batch": 4,
            "sequence": {"max_length": 512, "max_tiles": 1},
        },
        "optim": {"lr": 1e-3},
        "train": {"steps": 100, "num_workers": 2, "device": "cpu"},
    }
    return make_config(PretrainConfig, values)


def gradients(**values: list[float]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_equal_outcomes_differ_by_nothing():
    one = BatchOutcome(2.0, gradients(a=[1.0, 2.0], b=[3.0]))
    found = compare(one, one, 1e-4)
    assert [difference.value for difference in found] == [0.0, 0.0, pytest.approx(1.0)]
    assert all(difference.ok for difference in found)


def test_differences_are_measured():
    reference = BatchOutcome(2.0, gradients(a=[3.0, 4.0]))
    found = compare(BatchOutcome(2.2, gradients(a=[6.0, 8.0])), reference, 1e-4)
    assert [difference.value for difference in found] == pytest.approx([0.1, 1.0, 1.0])
    assert [difference.ok for difference in found] == [False, False, True]
    turned = compare(BatchOutcome(2.0, gradients(a=[4.0, -3.0])), reference, 1e-4)
    assert turned[2].value == pytest.approx(0.0) and not turned[2].ok


def test_a_gradient_that_one_side_lacks_counts_as_zero():
    reference = BatchOutcome(1.0, gradients(a=[3.0], b=[4.0]))
    found = compare(BatchOutcome(1.0, gradients(a=[3.0])), reference, 1e-4)
    assert found[1].value == pytest.approx(0.8) and not found[1].ok


def test_weights_and_curves():
    a, b = gradients(x=[3.0, 4.0]), gradients(x=[3.0, 4.0])
    assert compare_tensors(a, b, 0.0)[0].ok
    assert compare_tensors(gradients(x=[3.0, 4.5]), b, 1e-4)[0].value == pytest.approx(0.1)
    assert compare_tensors(gradients(y=[3.0, 4.0]), b, 1e9)[0].value == math.inf
    assert compare_curves([1.0, 2.0], [1.0, 2.1], 1e-5)[0].value == pytest.approx(0.1 / 2.1)
    assert not compare_curves([1.0], [1.0, 2.0], 1e9)[0].ok


def test_what_is_not_finite_is_never_equal():
    assert not Difference("loss", math.nan, 1.0).ok
    assert not Difference("cosine", math.inf, 1.0, at_least=True).ok
    assert CheckFinding("x", skipped="no GPU").ok


@pytest.mark.filterwarnings("error:Converting a tensor:UserWarning")
def test_batches_of_a_run_are_equal(config: PretrainConfig):
    found = list(check_run(config, records=6, only=("packed", "shared", "attention", "bf16", "recompute")))
    assert [finding.ok for finding in found] == [True] * 5
    measured = [finding for finding in found if finding.skipped is None]
    assert [finding.name.split(" (")[0] for finding in measured] == [
        "packed ≡ one by one",
        "questions on one image ≡ each alone",
        "attention runs ≡ dense mask",
        "recomputed ≡ kept activations",
    ]
    for finding in measured:
        assert finding.differences[0].value < 1e-5 and finding.differences[1].value < 1e-4


def test_resumed_runs_are_bit_identical(config: PretrainConfig):
    (found,) = check_run(config, records=4, only=("resume",))
    assert found.ok and found.differences[0].value == 0.0 and found.differences[0].limit == 0.0


@pytest.mark.slow
def test_two_ranks_equal_one(config: PretrainConfig):
    (found,) = check_run(config, records=4, only=("ranks",))
    assert found.ok, found
    assert [difference.limit for difference in found.differences] == [1e-5, 1e-4]


@pytest.mark.slow
def test_compiled_equals_eager(config: PretrainConfig):
    (found,) = check_run(config, records=3, only=("compile",))
    if found.skipped is not None:
        pytest.skip(found.skipped)
    assert found.ok, found


def test_a_leak_is_found_and_ends_with_1(config: PretrainConfig, tmp_path: Path, monkeypatch, capsys):
    """Attention that lets branches see one another's tokens."""

    def leaky(self, slots: int, prefix: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(slots, prefix + slots, dtype=dtype)

    monkeypatch.setattr(run_attention.RunAttention, "_mask", leaky)
    save_config(config, tmp_path / "config.yaml")
    arguments = ["check", str(tmp_path), "--records", "6", "--only", "attention", "--only", "shared"]
    assert run([*arguments, "--json", str(tmp_path / "found.json")]) == 1
    out = capsys.readouterr().out
    assert "DIFFERENT" in out and "← here" in out and "wanted ≤ 0.0001" in out
    found = json.loads((tmp_path / "found.json").read_text())
    assert [one["ok"] for one in found] == [False, False]


def test_a_short_run_is_deterministic_and_keeps_the_data(config: PretrainConfig):
    short = short_run(config, batch=6, device="cpu")
    assert short.train.deterministic and short.train.steps == 4 and short.data.global_batch == 6
    assert short.model.drop_path == 0 and short.data.mixture == config.data.mixture
    assert config.train.steps == 100


def test_wrong_names_are_refused(config: PretrainConfig, tmp_path: Path):
    with pytest.raises(ConfigError, match='did you mean "packed"'):
        list(check_run(config, only=("packd",)))
    with pytest.raises(ConfigError, match=r"there is no such file or folder"):
        load_run(tmp_path / "nothing")


# Seams of a finetuned run.


class Leaning(BrightestBand):
    """Its answer leans on where in its window a pixel lies, by so much."""

    def __init__(self, lean: float, classes: Sequence[str] = ("a", "b")) -> None:
        super().__init__(classes)
        self.lean = lean
        self.description = {"head": {}}

    def maps(self, images_BCHW: torch.Tensor, later_BCHW: torch.Tensor | None) -> list[torch.Tensor]:
        lean_W = self.lean * torch.linspace(-1, 1, images_BCHW.shape[-1])
        more_BHW = images_BCHW[:, 0].float() / 255 - 0.5 + lean_W
        others = [more_BHW - 9] * (len(self.classes) - 2)
        return torch.stack([-more_BHW, more_BHW, *others], 1)  # type: ignore[return-value]


def test_pixels_that_change_class_with_the_windows_are_counted() -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 96, 80), dtype=np.uint8))
    settings = TestSettings(window=32, overlap=0.25)
    still, leaning = moved_pixels(Leaning(0), image, settings), moved_pixels(Leaning(0.4), image, settings)
    assert still is not None and leaning is not None
    assert still.tolist() == [0, 0, 0] and leaning.min() > 0.02 * image[0].numel()
    assert moved_pixels(Leaning(0), image, TestSettings()) is None
    assert moved_pixels(Leaning(0), image[:, :32, :30], settings) is None


class Patchy(Leaning):
    """Its answer is one for each patch of eight pixels."""

    patches = 8

    def __init__(self) -> None:
        super().__init__(0)
        self.plain.strides = (self.patches,)

    def maps(self, images_BCHW: torch.Tensor, later_BCHW: torch.Tensor | None) -> list[torch.Tensor]:
        maps: torch.Tensor = super().maps(images_BCHW, later_BCHW)  # type: ignore[assignment]
        return torch.nn.functional.avg_pool2d(maps, self.patches)  # type: ignore[return-value]


def test_staggered_windows_hide_where_patches_lie() -> None:
    """The same overlap, the same number of windows, and less than half of the pixels change."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((1, 3, 12, 12))).float()
    image = (255 * torch.nn.functional.interpolate(coarse, size=(160, 160), mode="bilinear")[0]).byte()
    plain = moved_pixels(Patchy(), image, TestSettings(window=64, overlap=0.5))
    staggered = moved_pixels(Patchy(), image, TestSettings(window=64, overlap=0.5, stagger=True))
    assert plain is not None and staggered is not None
    assert plain[0] < 0.001 * image[0].numel(), "by whole patches"
    assert plain[1] > 0.01 * image[0].numel() and staggered.max() < plain.max() / 2
    valid = np.zeros((160, 160), bool)
    valid[:40] = True
    counted = moved_pixels(Patchy(), image, TestSettings(window=64, overlap=0.5), valid_HW=valid)
    assert counted is not None and 0 < counted[1] < plain[1]


def test_hann_weights_halve_what_plain_means_show() -> None:
    """What the blend is for: the same model, the same windows, equal weights."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 128, 128), dtype=np.uint8))
    settings = TestSettings(window=32, overlap=0.5)
    blended = moved_pixels(Leaning(0.4), image, settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitp.tasks.windows.view_weights", lambda view, size: None)
        equal = moved_pixels(Leaning(0.4), image, settings)
    assert blended is not None and equal is not None and 2 * blended.max() < equal.max()


def test_seams_of_a_run_are_printed_and_bounded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text(
        "task: segmentation\ndata: {root: port, format: scenes, options: {count: 9, val: 0.3, test: 0.3, size: 48}}\n"
        "test: {window: 16}\n"
    )
    lean = 0.0
    monkeypatch.setattr("vitp.runs.check.seams.load_task", lambda _: of_scenes(lean))

    def of_scenes(lean: float) -> Leaning:
        return Leaning(lean, classes_of(open_labelled("port", "scenes", count=2, size=48), "semantic"))

    assert run(["check", str(tmp_path), "--json", str(tmp_path / "found.json")]) == 0
    assert "equal      seams" in capsys.readouterr().out
    assert json.loads((tmp_path / "found.json").read_text())[0]["differences"][0]["value"] == 0
    lean = 0.4
    assert run(["check", str(tmp_path), "--only", "seams"]) == 1
    assert "DIFFERENT  seams" in capsys.readouterr().out
    assert run(["check", str(tmp_path), "--only", "packed"]) == 2
    assert "checks are seams" in capsys.readouterr().err
    assert run(["check", str(tmp_path), "-s", "test.window=64"]) == 0
    assert "skipped    seams" in capsys.readouterr().out
