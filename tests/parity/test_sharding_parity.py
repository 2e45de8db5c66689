"""A model in parts learns what a whole one learns; its checkpoints fit any number of ranks and any layout."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.parity import sharding_ranks
from tests.parity.launching import launch_ranks
from vitp.engine import checkpoint

Ranks = list[dict[str, Any]]

# Four processes; one worker makes the runs for all.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sharding ranks")]


def launch(folder: Path, task: str, world: int) -> Ranks:
    """Run the scenarios of a task in `world` processes, return what each rank wrote."""
    launch_ranks("tests.parity.sharding_ranks", folder, task, world=world, timeout=480)
    return [json.loads((folder / f"{task}{rank}.json").read_text()) for rank in range(world)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Ranks, Ranks, Path]:
    """One rank, four ranks, and two ranks that go on from what the four have left."""
    folder = tmp_path_factory.mktemp("sharding")
    one = sharding_ranks.run(folder, "one")
    four = launch(folder, "four", 4)
    sharding_ranks.prepare_two(folder)
    return one, four, launch(folder, "two", 2), folder


def assert_same_model(run: Path, other: Path) -> None:
    ours, theirs = (load_file(folder / "model" / "weights.safetensors") for folder in (run, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert float((tensor - theirs[name]).norm()) <= 1e-5 * float(tensor.norm()), name


@pytest.mark.parametrize("scenario", ["fsdp", "hybrid", "ddp", "async"])
def test_four_ranks_are_one(runs: Any, scenario: str) -> None:
    one, four, _, folder = runs
    assert len(one["losses"]) == 8
    for rank in four:
        assert rank[scenario]["error"] is None
        assert rank[scenario]["losses"] == pytest.approx(one["losses"], rel=1e-5)
        assert rank[scenario]["norms"] == pytest.approx(one["norms"], rel=1e-5)
    assert_same_model(folder / scenario, folder / "one")


def test_matrices_gathered_in_bf16_learn_what_one_process_learns(runs: Any) -> None:
    """Two and four processes, the whole loss curve; the gradients of matrices are summed in fp32."""
    _, four, two, folder = runs
    one = sharding_ranks.run(folder, "bf16_one", precision="bf16")
    assert one["losses"] != pytest.approx(runs[0]["losses"], rel=1e-6)  # it does compute in bf16
    curves = [rank[name] for rank in four for name in ("bf16", "bf16_hybrid")]
    for found in [*curves, *(rank["bf16_two"] for rank in two)]:
        assert found["error"] is None
        assert found["losses"] == pytest.approx(one["losses"], rel=1e-4)


@pytest.mark.parametrize("scenario", ["averaged_ddp", "averaged_fsdp", "averaged_stopped"])
def test_all_ranks_end_together_with_the_best_average(runs: Any, scenario: str) -> None:
    """Four ranks; of the third scenario the four are stopped after step 3, and two go on without shards."""
    _, four, two, folder = runs
    wanted = folder / "averaged_one"
    if not wanted.exists():
        sharding_ranks.run(folder, "averaged_one", sharding_ranks.Judged(), **sharding_ranks.AVERAGED)
    ranks = two if scenario == "averaged_stopped" else four
    assert [rank[scenario]["error"] for rank in ranks] == [None] * len(ranks)
    for run in (folder / scenario, wanted):
        assert [path.name[-1] for path in checkpoint.checkpoints(run)] == ["4", "6"]  # the best and the last
    assert_same_model(folder / scenario, wanted)


@pytest.mark.parametrize("scenario", ["fsdp", "hybrid", "async"])
def test_hooks_on_rank_0_look_at_the_whole_model(runs: Any, scenario: str) -> None:
    one, four, _, folder = runs
    assert four[0][scenario]["seen"].keys() == {"2", "4", "6", "8"}
    for step, value in four[0][scenario]["seen"].items():
        assert value == pytest.approx(one["seen"][int(step)], rel=1e-4)
    ours, theirs = (json.loads((folder / name / "evidence.json").read_text()) for name in (scenario, "one"))
    assert ours["relative_change"] == pytest.approx(theirs["relative_change"], rel=1e-5)
    assert ours["gradient_share"] == pytest.approx(theirs["gradient_share"], rel=1e-5)
    assert ours["cka"] == pytest.approx(theirs["cka"], rel=1e-5)


def test_parts_are_written_by_all_and_pruned(runs: Any) -> None:
    folder = runs[3]
    last = checkpoint.folder(folder / "fsdp", 8)
    assert {path.name for path in (last / "shards").iterdir()} >= {
        ".metadata",
        "__0_0.distcp",
        "__3_0.distcp",
    }
    for name in ("fsdp", "async"):
        assert len(checkpoint.checkpoints(folder / name)) == 2
        assert [p.name for p in (folder / name / "checkpoints").iterdir() if p.name.startswith(".")] == []


def test_a_nan_stops_all_ranks_and_the_state_before_it_is_kept(runs: Any) -> None:
    for rank in runs[1]:
        assert "in step 5" in rank["nan"]["error"] and "toy.jsonl:96" in rank["nan"]["error"]
    assert [path.name for path in checkpoint.checkpoints(runs[3] / "nan")] == ["step_00000004"]


def test_shards_skip_the_steps_that_whole_models_skip(runs: Any) -> None:
    for rank in runs[1]:
        whole, parts = rank["fp16_ddp"], rank["fp16_fsdp"]
        assert whole["error"] is None and parts["error"] is None
        assert [math.isfinite(loss) for loss in parts["losses"]] == [True] * 4 + [False] + [True] * 3
        assert parts["losses"] == pytest.approx(whole["losses"], rel=1e-2, nan_ok=True)
    scalers = [
        checkpoint.read_state(checkpoint.folder(runs[3] / f"fp16_{kind}", 8)).more["scaler"]
        for kind in ("ddp", "fsdp")
    ]
    assert scalers == [{"scale": 2.0**9, "finite": 3, "skipped": 1}] * 2


def test_groups_must_divide_the_ranks(runs: Any) -> None:
    assert all("4 processes can't be cut into groups of 3" in rank["groups"] for rank in runs[1])


@pytest.mark.parametrize("scenario", ["to_ddp", "to_fsdp", "to_hybrid"])
def test_two_ranks_go_on_where_four_stopped(runs: Any, scenario: str) -> None:
    one, four, two, folder = runs
    assert all("after step 3" in rank["stopped"]["error"] for rank in four)
    for rank in two:
        assert rank[scenario]["losses"] == pytest.approx(one["losses"][3:], rel=1e-5)
    assert_same_model(folder / scenario, folder / "one")


def test_parts_go_on_from_whole_checkpoints(runs: Any) -> None:
    one, _, two, folder = runs
    for rank in two:
        assert rank["from_ddp"]["losses"] == pytest.approx(one["losses"][6:], rel=1e-5)
    assert_same_model(folder / "from_ddp", folder / "one")


def test_one_rank_goes_on_where_four_stopped(runs: Any) -> None:
    one, _, _, folder = runs
    assert sharding_ranks.run(folder, "to_one", resume=True)["losses"] == pytest.approx(
        one["losses"][3:], rel=1e-5
    )
    assert_same_model(folder / "to_one", folder / "one")


@pytest.mark.parametrize("scenario", ["damaged_ddp", "damaged_fsdp"])
def test_two_ranks_pass_over_a_part_with_a_flipped_bit(runs: Any, scenario: str) -> None:
    """Four have left checkpoints of steps 2 and 3; a bit is flipped in what the second of them wrote at step 3."""
    one, _, two, folder = runs
    for rank in two:
        assert rank[scenario]["error"] is None
        assert rank[scenario]["losses"] == pytest.approx(one["losses"][2:], rel=1e-5)
    assert_same_model(folder / scenario, folder / "one")


def test_one_rank_passes_over_a_part_with_a_flipped_bit(runs: Any) -> None:
    one, _, _, folder = runs
    found = sharding_ranks.run(folder, "damaged_one", resume=True)
    assert found["losses"] == pytest.approx(one["losses"][2:], rel=1e-5)
    assert_same_model(folder / "damaged_one", folder / "one")


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:40])


@pytest.mark.parametrize("damage", [cut_off, sharding_ranks.flip, Path.unlink])
@pytest.mark.parametrize("name", ["shards/__1_0.distcp", "shards/.metadata", "state.json", "SHA256SUMS"])
def test_a_damaged_file_is_one_error(runs: Any, tmp_path: Path, name: str, damage: Any) -> None:
    last = checkpoint.latest(runs[3] / "stopped")
    assert last is not None
    path = tmp_path / "run" / "checkpoints" / last.name
    shutil.copytree(last, path)
    damage(path / name)
    error = sharding_ranks.run(tmp_path, "run", resume=True)["error"]
    assert error.startswith("DamagedError: ") and "the only checkpoint is damaged" in error
    assert path.is_dir()


@pytest.mark.parametrize("name", ["shards/__1_0.distcp", "shards/.metadata"])
def test_without_digests_what_torch_cannot_read_is_damaged_too(runs: Any, tmp_path: Path, name: str) -> None:
    last = checkpoint.latest(runs[3] / "stopped")
    assert last is not None
    path = tmp_path / "run" / "checkpoints" / last.name
    shutil.copytree(last, path)
    (path / "SHA256SUMS").unlink()
    state = json.loads((path / "state.json").read_text())
    del state["digests"]
    (path / "state.json").write_text(json.dumps(state))
    cut_off(path / name)
    assert "the only checkpoint is damaged" in sharding_ranks.run(tmp_path, "run", resume=True)["error"]
