"""The paper's recipes: every one builds, and holds the values of the paper's tables."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vitp.core.config import load_config, save_config
from vitp.core.errors import ConfigError
from vitp.objectives.vitp import open_mixture
from vitp.recipes.catalogue import FINETUNING, PRETRAINING, recipe_of
from vitp.recipes.paper.pretraining import mixture_table
from vitp.recipes.paper.tables import MEDICAL, REMOTE_SENSING, PretrainingSet
from vitp.recipes.paper.tables import PRETRAINING_FACTS as FACTS
from vitp.recipes.paper.tables_downstream import ADAPTER, DOWNSTREAM
from vitp.recipes.paper.typical_sizes import TYPICAL
from vitp.runs.finetune import FinetuneConfig
from vitp.runs.pretrain import PretrainConfig
from vitp.tasks.build import TASK_MODELS

# The paper's table, once more and by hand: set → classes, input, rate, decay, length, score, task.
TABLE = {
    "dior": (20, 800, 2e-5, 0.9, 12, 79.80, "detection"),
    "dior_r": (20, 800, 2.5e-5, 0.95, 12, 75.08, "oriented"),
    "dota_v2": (18, 1024, 2.5e-5, 0.95, 12, 60.23, "oriented"),
    "sardet100k": (6, 1024, 1e-5, 0.95, 12, 59.7, "detection"),
    "rsar": (6, 800, 2.5e-5, 0.95, 12, 72.31, "oriented"),
    "ssdd": (1, 608, 1e-5, 0.9, 24, 70.80, "instance"),
    "isaid": (16, 896, 1.5e-5, 0.9, 80_000, 71.14, "segmentation"),
    "loveda": (7, 512, 1e-5, 0.9, 80_000, 54.28, "segmentation"),
    "uavid": (8, 768, 1e-5, 0.9, 80_000, 73.39, "segmentation"),
    "svcd": (2, 256, 2e-5, 0.94, 120_000, 98.63, "change"),
    "whu_cd": (2, 256, 2e-5, 0.9, 120_000, 94.98, "change"),
    "levir_cd": (2, 256, 1e-4, 0.9, 80_000, 92.67, "change"),
    "s2looking": (2, 512, 2e-5, 0.9, 120_000, 69.89, "change"),
    "amos2022": (14, 512, 2e-5, 0.9, 80_000, 90.60, "segmentation"),
    "brats2021": (3, 512, 2e-5, 0.9, 80_000, 72.11, "segmentation"),
    "covidquex": (2, 512, 2e-5, 0.9, 80_000, 91.55, "segmentation"),
}


def test_the_table_has_the_papers_sixteen_sets() -> None:
    assert list(DOWNSTREAM) == list(TABLE) == list(FINETUNING)
    for name, row in TABLE.items():
        facts = DOWNSTREAM[name]
        length = facts.epochs or facts.steps
        score = next(iter(facts.scores.values()))
        assert (
            facts.classes,
            facts.input_size,
            facts.lr,
            facts.layer_decay,
            length,
            score,
            facts.task,
        ) == row
    assert [name for name, facts in DOWNSTREAM.items() if not facts.published] == [
        "amos2022",
        "brats2021",
        "covidquex",
    ]
    assert DOWNSTREAM["ssdd"].scores == {"box AP": 70.80, "mask AP": 65.90}


@pytest.mark.parametrize("name", TABLE)
def test_a_downstream_recipe_holds_the_tables_values(name: str, tmp_path: Path) -> None:
    recipe = FINETUNING[name]
    facts, config = recipe.facts, recipe.make("somewhere", backbone="weights.safetensors")
    assert isinstance(config, FinetuneConfig) and config.task in TASK_MODELS
    assert config.data.root == "somewhere" and config.backbone.init == "weights.safetensors"
    optim = config.optim
    assert (optim.lr, optim.layer_decay, optim.weight_decay) == (
        facts.lr,
        facts.layer_decay,
        facts.weight_decay,
    )
    assert (optim.schedule, optim.warmup_steps, optim.clip_norm) == (
        facts.schedule,
        facts.warmup_steps,
        facts.clip_norm,
    )
    assert (optim.betas, optim.eps) == ((0.9, 0.999), 1e-8)
    assert config.data.global_batch == facts.batch
    assert (config.train.epochs or config.train.steps) == (facts.epochs or facts.steps)
    assert (config.backbone.patch_size, config.backbone.image_size) == (16, facts.input_size)
    assert config.backbone.drop_path == 0.1 and config.backbone.gradient_checkpointing
    neck = config.neck.options
    assert config.neck.kind == "adapter"
    assert neck["parts"] == [[0, 7], [8, 11], [12, 15], [16, 23]]
    assert (neck["value_ratio"], neck["ffn_ratio"], neck["heads"]) == (0.25, 0.25, 16)
    assert config.test.window == facts.window
    assert facts.window is None or config.test.overlap == pytest.approx(facts.overlap)
    # What is written to disk is read back as the same run.
    save_config(config, tmp_path / "run.yaml")
    assert load_config(FinetuneConfig, tmp_path / "run.yaml") == config


@pytest.mark.parametrize("name", TABLE)
def test_a_lab_page_says_what_to_run_and_what_to_expect(name: str) -> None:
    recipe = FINETUNING[name]
    page = recipe.page
    for score in recipe.facts.scores.values():
        assert f"{score:.2f}" in page or f"{score:g}" in page
    assert f"± {recipe.facts.tolerance}" in page
    assert f"vitp recipes run {name} --data" in page
    for line in recipe.facts.disagreements:
        assert f"- {line}" in page


def test_the_facts_of_single_runs() -> None:
    made = {name: recipe.make() for name, recipe in FINETUNING.items()}
    assert made["loveda"].optim.weight_decay == 0.1  # the published configuration; the others have 0.05
    assert made["isaid"].augment.scale == (1.0, 1.0) and made["isaid"].augment.max_class_share == 1.0
    assert made["uavid"].test.scales == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75) and made["uavid"].test.flip
    assert made["levir_cd"].head["width"] == 1024 and made["whu_cd"].head["width"] == 512
    assert made["svcd"].augment.swap_dates == 0 and made["whu_cd"].augment.swap_dates == 0.5
    assert made["svcd"].optim.lr_scale == {"vision tower": pytest.approx(0.94**15)}
    assert made["ssdd"].optim.milestones == pytest.approx((16 / 24, 22 / 24))
    assert made["dior"].augment.flip == "horizontal" and made["dior_r"].augment.flip is True
    assert made["dota_v2"].test.overlap == pytest.approx(200 / 1024)
    for name in ("dior_r", "dota_v2", "rsar"):
        augment = made[name].augment
        assert (augment.rotate, augment.rotate_probability, augment.rotate90) == (180, 0.5, False)
    for config in made.values():
        if "auxiliary" in config.head:
            assert config.head["auxiliary"] == 0.0 and config.head["norm"] == "sync"


def test_the_mixtures_are_the_papers() -> None:
    def rows(sets: tuple[PretrainingSet, ...]) -> list[tuple[float, float]]:
        return [(one.thousands, one.rate) for one in sets]

    assert rows(REMOTE_SENSING) == [
        (1394, 0.03), (100, 0.1), (100, 0.1), (64, 2), (38, 5), (5.5, 10), (27, 8), (1.5, 1), (16, 1), (223, 1),
        (50, 0.5), (33, 1), (920, 0.05),
    ]  # fmt: skip
    assert rows(MEDICAL) == [
        (1394, 0.02), (5, 20), (7, 5), (647, 0.1), (647, 0.5), (1647, 0.05), (227, 0.5), (89, 1), (723, 0.1), (147, 1),
    ]  # fmt: skip
    # 8,000 steps of 128 are about one epoch of the mixture.
    drawn = sum(1000 * one.thousands * one.rate for one in REMOTE_SENSING)
    assert FACTS.steps * FACTS.global_batch == 1_024_000
    assert drawn == pytest.approx(1_024_000, rel=0.05)
    assert {one.name for one in (*REMOTE_SENSING, *MEDICAL)} == set(TYPICAL)


@pytest.mark.parametrize("name", PRETRAINING)
def test_a_pretraining_recipe_holds_the_papers_values(name: str) -> None:
    config = PRETRAINING[name].make("mixture.json")
    assert isinstance(config, PretrainConfig)
    assert config.data.mixture == ["mixture.json"]
    assert (config.optim.lr, config.optim.weight_decay, config.optim.schedule) == (2e-5, 0.01, "cosine")
    assert (config.train.steps, config.data.global_batch, config.train.micro_batches) == (8000, 128, 4)
    assert config.optim.warmup(config.train.steps) == 1600
    assert (config.objective.vrl.ratio, config.objective.vrl.probability, config.data.sequence.pack) == (
        0.75,
        1.0,
        True,
    )
    assert (config.data.sequence.max_length, config.data.sequence.max_tiles) == (4096, 6)
    assert config.model.drop_path == 0.1 and config.model.gradient_checkpointing and not config.model.freeze
    published = PRETRAINING[name].make("mixture.json", as_published=True)
    assert (published.objective.vrl.probability, published.data.sequence.pack) == (0.25, False)
    assert PRETRAINING[name].make("m.json", gpus=1).train.micro_batches == 32
    assert (config.train.batch, config.compute.compile) == ("auto", "vision")
    assert (published.train.batch, published.compute.compile) == ("fixed", "none")
    with pytest.raises(ConfigError, match="can't be shared by 3 GPUs"):
        PRETRAINING[name].make("m.json", gpus=3)
    assert f"vitp recipes run {name} --data" in PRETRAINING[name].page


def prepared(root: Path, name: str, rows: int = 4) -> None:
    from tests.conftest import save_image

    folder = root / name
    for number in range(rows):
        save_image(folder / f"{number}.png", seed=number)
    lines = [
        json.dumps(
            {
                "id": str(number),
                "image": f"{number}.png",
                "width": 64,
                "height": 48,
                "conversations": [
                    {"from": "human", "value": "<image>\nWhat is it?"},
                    {"from": "gpt", "value": f"object {number}"},
                ],
            }
        )
        for number in range(rows)
    ]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_mixture_over_prepared_sets_has_the_papers_rates(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for name in ("vrsbench", "rsvg", "geochat"):
        prepared(root, name)
    with pytest.raises(
        ConfigError, match="10 of 13 sets are missing, the first is Mini-InternVL general"
    ) as caught:
        mixture_table(REMOTE_SENSING, root)
    assert "vitp data prepare general --root DOWNLOAD" in str(caught.value)
    table = mixture_table(REMOTE_SENSING, root, available=True)
    assert list(table) == ["geochat", "vrsbench", "rsvg"]
    assert [entry["repeat_time"] for entry in table.values()] == [2, 5, 10]
    (tmp_path / "sets.json").write_text(json.dumps(table), encoding="utf-8")
    config = PRETRAINING["remote_sensing"].make(str(tmp_path / "sets.json"))
    mixture = open_mixture(config.data, config.seed)
    assert len(mixture) == 4 * (2 + 5 + 10)
    assert {entry.max_tiles for entry in mixture.entries} == {12}
    with pytest.raises(ConfigError, match="13 of 13 sets are missing"):
        mixture_table(REMOTE_SENSING, tmp_path / "nowhere", available=True)


def test_an_unknown_recipe_gets_a_hint() -> None:
    with pytest.raises(ConfigError, match=re.escape('did you mean "levir_cd"?')):
        recipe_of("levircd")


def test_adapter_facts() -> None:
    assert [block for first, last in ADAPTER.parts for block in range(first, last + 1)] == list(range(24))


def test_the_counts_agree_with_the_sets_readers() -> None:
    from vitp.data.benchmarks.catalogue import BENCHMARKS

    assert set(BENCHMARKS) == set(DOWNSTREAM)
    for name, facts in DOWNSTREAM.items():
        known = BENCHMARKS[name]
        assert known.task == facts.task, name
        if known.window is not None and facts.window is not None:
            assert known.window == facts.window, name


def test_splits_stand_in_for_each_other_but_never_choose_by_the_test(tmp_path: Path) -> None:
    from vitp.core.config import make_config
    from vitp.data.formats import read_labels
    from vitp.runs.finetune import run_splits

    labelled = read_labels("scenes", "port", count=20, size=32, val=0.2, test=0.2)
    values = {"task": "segmentation", "data": {"root": "port", "format": "scenes", "splits": {"val": "test"}}}
    config = make_config(FinetuneConfig, values)
    plain = run_splits(
        labelled, make_config(FinetuneConfig, {**values, "data": {"root": "port"}}), "semantic"
    )
    split = run_splits(labelled, config, "semantic")
    ids = {name: [item.id for item in part.items] for name, part in split.items()}
    assert ids["val"] == ids["test"] == [item.id for item in plain["test"].items]
    assert ids["train"] == [item.id for item in plain["train"].items]
    best = make_config(FinetuneConfig, {**values, "train": {"choose": "best"}})
    with pytest.raises(ConfigError, match="no fair choice"):
        run_splits(labelled, best, "semantic")
    stand_ins = {name: recipe.make().data.splits for name, recipe in FINETUNING.items()}
    assert {name: where for name, where in stand_ins.items() if where} == {
        "dota_v2": {"test": "val"},
        "loveda": {"test": "val"},
        "uavid": {"test": "val"},
        "whu_cd": {"val": "test"},
    }


def test_epochs_become_steps() -> None:
    train = FINETUNING["dior"].make().train
    assert train.of(11_725, 8).steps == round(12 * 11_725 / 8) and train.of(11_725, 8).epochs is None
    assert FINETUNING["loveda"].make().train.of(5, 16).steps == 80_000
