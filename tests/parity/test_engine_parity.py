"""Two ranks are one rank: the same global batch gives the same curve and the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.parity import engine_ranks
from tests.parity.launching import launch_ranks

# Two processes; one worker makes the runs for all.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("engine ranks")]


def launch(folder: Path, world: int) -> list[dict[str, Any]]:
    """Run the scenarios in `world` processes, return what each rank wrote."""
    folder.mkdir()
    launch_ranks("tests.parity.engine_ranks", folder, world=world, timeout=120)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(world)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "one").mkdir()
    engine_ranks.main(folder / "one")
    one = json.loads((folder / "one" / "rank0.json").read_text())
    return one, launch(folder / "two", 2), folder


def assert_same_weights(a: dict[str, list[float]], b: dict[str, list[float]], relative: float) -> None:
    for name, values in a.items():
        difference = sum((x - y) ** 2 for x, y in zip(values, b[name], strict=True)) ** 0.5
        assert difference <= relative * sum(x * x for x in values) ** 0.5, name


@pytest.mark.parametrize("scenario", ["plain", "accumulated", "half text"])
def test_two_ranks_are_one(runs: Any, scenario: str) -> None:
    one, two, _ = runs[0][scenario], [rank[scenario] for rank in runs[1]], runs[2]
    assert len(one["losses"]) == 8
    for rank in two:
        assert rank["losses"] == pytest.approx(one["losses"], rel=1e-5)
        assert rank["norms"] == pytest.approx(one["norms"], rel=1e-5)
        assert rank["samples"] == [24] * 8
        assert_same_weights(one["weights"], rank["weights"], 1e-5)
    assert two[0]["weights"] == two[1]["weights"]


def test_all_ranks_skip_a_step_that_is_not_finite_on_one(runs: Any) -> None:
    one, two, folder = runs[0]["fp16"], [rank["fp16"] for rank in runs[1]], runs[2]
    assert one["error"] is None and all(rank["error"] is None for rank in two)
    assert two[0]["weights"] == two[1]["weights"]
    assert_same_weights(one["weights"], two[0]["weights"], 1e-2)
    for name in ("one", "two"):
        state = json.loads((folder / name / "fp16/checkpoints/step_00000008/state.json").read_text())
        assert state["more"]["scaler"] == {"scale": 2.0**9, "finite": 3, "skipped": 1}


def test_ranks_drop_out_differently_but_stay_together(runs: Any) -> None:
    two = [rank["dropout"] for rank in runs[1]]
    assert two[0]["weights"] == two[1]["weights"]
    assert two[0]["losses"] == two[1]["losses"]
    assert two[0]["losses"] != runs[0]["dropout"]["losses"]


def test_a_nan_on_one_rank_stops_both_with_its_records(runs: Any) -> None:
    for rank in runs[1]:
        assert "in step 5" in rank["nan"]["error"]
        assert "toy.jsonl:96" in rank["nan"]["error"]
        assert "toy.jsonl:108" not in rank["nan"]["error"]
        assert_same_weights(runs[0]["nan"]["weights"], rank["nan"]["weights"], 1e-5)


def test_a_data_error_on_one_rank_stops_both(runs: Any) -> None:
    for rank in runs[1]:
        assert rank["bad data"]["error"] == "DataError: image_7.png: is truncated; replace it"
        assert len(rank["bad data"]["losses"]) == 2


def test_a_signal_to_one_rank_stops_both_and_the_run_resumes_exactly(runs: Any) -> None:
    for rank in runs[1]:
        assert rank["stopped"]["error"].startswith("Interrupted: interrupted by SIGTERM after step 3")
        assert rank["stopped"]["losses"] + rank["resumed"]["losses"] == rank["dropout"]["losses"]
        assert rank["resumed"]["weights"] == rank["dropout"]["weights"]


def test_only_rank_0_writes(runs: Any) -> None:
    rows = (runs[2] / "two" / "plain" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [8]
