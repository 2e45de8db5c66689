"""Two ranks compare their samples with each other's: the same losses and gradients as one process with all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.objective_toys import labelled_folder
from tests.parity.contrast_ranks import GATHERING, STEPS
from tests.parity.launching import launch_ranks

# Three processes; one worker makes the runs for all.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("contrast ranks")]


def launch(folder: Path, data: Path, world: int) -> list[dict[str, Any]]:
    """Train in `world` processes, return what each rank wrote."""
    folder.mkdir()
    launch_ranks("tests.parity.contrast_ranks", folder, data, world=world, timeout=300)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(world)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("contrast")
    data = labelled_folder(folder / "toy")
    return launch(folder / "one", data, 1)[0], launch(folder / "two", data, 2)


@pytest.mark.parametrize("name", GATHERING)
def test_two_ranks_have_the_losses_of_one(
    runs: tuple[dict[str, Any], list[dict[str, Any]]], name: str
) -> None:
    one, ranks = runs
    for rank in ranks:
        assert len(rank[name]["losses"]) == STEPS
        for expected, found in zip(one[name]["losses"], rank[name]["losses"], strict=True):
            assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", GATHERING)
def test_two_ranks_have_the_gradients_of_one(
    runs: tuple[dict[str, Any], list[dict[str, Any]]], name: str
) -> None:
    """What another rank's loss says about this rank's samples arrives: without it the norms would differ."""
    one, ranks = runs
    for rank in ranks:
        assert rank[name]["norms"] == pytest.approx(one[name]["norms"], rel=1e-3)


def test_the_centre_is_that_of_all_ranks(runs: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    one, ranks = runs
    for rank in ranks:
        assert rank["ibot"]["centre"] == pytest.approx(one["ibot"]["centre"], rel=1e-3, abs=1e-6)
