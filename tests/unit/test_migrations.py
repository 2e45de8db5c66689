"""Configurations that an earlier version wrote, and that its users wrote, still mean what they meant.

The fixtures were made by that version: `run-*` are `config.yaml` of run folders of every objective and task, `written-*`
are files as users had them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import vitp
from vitp.core.config import load_config, make_config, save_config
from vitp.core.errors import ConfigError
from vitp.objectives import SETTINGS
from vitp.runs import migrations
from vitp.runs.finetune import FinetuneConfig
from vitp.runs.folder import settings_that_differ
from vitp.runs.pretrain import PretrainConfig
from vitp.tasks.build import TASK_MODELS

OLD = Path(__file__).parent.parent / "fixtures" / "old_configs"
SECTIONS = {
    **{name: name for name in ("mae", "simclr", "dino", "supervised", "dense")},
    "clip": "image_text",
    "siglip": "image_text",
}
"""Objective → the section that its settings had."""

MOVED = {"train.batch_size": "data.global_batch", "objective": "objective.name"} | {
    name: f"objective.{name}" for name in ("vrl", "align", "prior")
}
DATA = {"mixture": ["x"]}


@pytest.fixture(autouse=True)
def said_anew() -> None:
    migrations._note.cache_clear()


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from leaves(part, f"{place}.{key}" if place else key)
    else:
        yield place, value


def expected(old: dict[str, Any]) -> dict[str, Any]:
    """Each value under today's key, by a table of its own."""
    own = SECTIONS.get(old.get("objective", ""))
    found = {}
    for key, value in leaves(old):
        if key == "train.tensorboard":  # a switch then, a list of all who are told now
            found["log.trackers"] = ["tensorboard"] if value else []
            continue
        if key == "model.vision_lora":  # none in all of them; it is one kind of model.adapt now
            found["model.adapt"] = value
            continue
        first = key.partition(".")[0]
        if first in SECTIONS.values() and first != own:
            continue
        moved = {**MOVED, first: "objective"} if first == own else MOVED
        before = next((old for old in moved if key == old or key.startswith(f"{old}.")), None)
        found[key if before is None else key.replace(before, moved[before], 1)] = value
    return found


@pytest.mark.parametrize("file", sorted(path.name for path in OLD.glob("*.yaml")))
def test_old_configurations_mean_what_they_meant(file: str, tmp_path: Path) -> None:
    kind: Any = FinetuneConfig if "finetune" in file else PretrainConfig
    settings = load_config(kind, OLD / file)
    now = dict(leaves(settings.model_dump(mode="json")))
    wanted = expected(yaml.safe_load((OLD / file).read_text()))
    assert len(wanted) > 15
    assert {key: now.get(key, "missing") for key in wanted} == wanted
    # What is written now is read back without a word about old keys.
    save_config(settings, tmp_path / "config.yaml")
    migrations._note.cache_clear()
    assert load_config(kind, tmp_path / "config.yaml") == settings
    assert migrations._note.cache_info().currsize == 0
    # The run goes on with it.
    (tmp_path / "config.yaml").write_bytes((OLD / file).read_bytes())
    assert settings_that_differ(tmp_path, settings) == []


def test_there_is_an_old_configuration_of_everything() -> None:
    files = {path.stem for path in OLD.glob("*.yaml")}
    older = set(SETTINGS) - {"joint", "droppos", "distil", "regionclip"}
    assert {f"run-pretrain-{name}" for name in older} <= files
    assert {f"written-pretrain-{name}" for name in older} <= files
    assert {f"run-finetune-{task}" for task in set(TASK_MODELS) - {"panoptic"}} <= files


@pytest.mark.parametrize(
    ("objective", "override", "key", "value"),
    [
        ("vitp", "vrl.ratio=0.5", ("vrl", "ratio"), 0.5),
        ("vitp", "align.steps=7", ("align", "steps"), 7),
        ("vitp", "prior={alpha: 2.0}", ("prior", "alpha"), 2.0),
        ("mae", "mae.ratio=0.5", ("ratio",), 0.5),
        ("siglip", "image_text.dimension=16", ("dimension",), 16),
        ("dino", "dino={mask: 0.5}", ("mask",), 0.5),
        ("dense", "dense.head=conv", ("head",), "conv"),
    ],
)
def test_old_keys_work_as_overrides_and_say_so(
    objective: str, override: str, key: tuple[str, ...], value: object, caplog: pytest.LogCaptureFixture
) -> None:
    new = {"objective": {"name": objective}, "data": DATA}
    for values in (new, {"objective": objective, "data": DATA}):
        found: Any = make_config(PretrainConfig, values, [override]).objective
        for part in key:
            found = getattr(found, part)
        assert found == value
    assert (
        len(caplog.records) == 1
        and f"{override.partition('.')[0].partition('=')[0]} is objective" in caplog.text
    )


def test_an_old_override_wins_over_a_new_file() -> None:
    values = {"objective": {"name": "vitp", "vrl": {"ratio": 0.25, "ramp_steps": 3}}, "data": DATA}
    settings: Any = make_config(PretrainConfig, values, ["vrl.ratio=0.5"])
    assert (settings.objective.vrl.ratio, settings.objective.vrl.ramp_steps) == (0.5, 3)
    task = {"task": "change", "data": {"root": "x", "global_batch": 8}}
    assert make_config(FinetuneConfig, task, ["train.batch_size=4"]).data.global_batch == 4


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (
            PretrainConfig,
            {"objective": {"name": "vitp", "vrl": {"ratio": 0.5}}, "vrl": {"ratio": 0.25}, "data": DATA},
            "vrl.ratio: is 0.25, and under its new key 0.5",
        ),
        (
            PretrainConfig,
            {"objective": {"name": "mae", "ratio": 0.5}, "mae": {"ratio": 0.25}, "data": DATA},
            "mae.ratio: is 0.25, and under its new key 0.5",
        ),
        (
            FinetuneConfig,
            {"task": "change", "data": {"root": "x", "global_batch": 8}, "train": {"batch_size": 4}},
            "train.batch_size: is 4, and under its new key 8",
        ),
        (PretrainConfig, {"objective": "mae", "mae": 5, "data": DATA}, "mae: is 5"),
        (PretrainConfig, {"objective": "mae", "vrl": {"ratio": 0.5}, "data": DATA}, "unknown key 'vrl'"),
        (PretrainConfig, {"mae": {"ratio": 0.5}, "data": DATA}, "unknown key 'mae'"),
        (
            PretrainConfig,
            {"objective": "mae", "dino": {"maks": 1}, "data": DATA},
            'dino: .*did you mean "mask"',
        ),
        (PretrainConfig, {"objective": "mea", "data": DATA}, "unknown objective 'mea'; did you mean \"mae\""),
        (PretrainConfig, {"objective": 5, "data": DATA}, "unknown objective 5; choose one of vitp, mae, "),
        (
            PretrainConfig,
            {"objective": {"name": "dino", "rato": 1}, "data": DATA},
            "unknown key 'objective.rato'",
        ),
    ],
)
def test_two_readings_and_unknown_keys_are_refused(kind: Any, values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_config(kind, values)


def test_sections_of_other_objectives_are_named(caplog: pytest.LogCaptureFixture) -> None:
    values = {"objective": "mae", "data": DATA, "dino": {"mask": 0.5}, "simclr": {"temperature": 0.1}}
    assert make_config(PretrainConfig, values) == make_config(
        PretrainConfig, {"objective": "mae", "data": DATA}
    )
    assert "dino: not settings of mae, so not used" in caplog.text and "simclr" not in caplog.text


@pytest.mark.parametrize(
    "override", ["objective=dino", 'objective="dino"', "objective.name=dino", "objective={name: dino}"]
)
def test_another_objective_leaves_settings_behind(override: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    values = {"objective": {"name": "mae", "ratio": 0.5}, "data": DATA}
    found: Any = make_config(PretrainConfig, values, [override, "objective.local_views=2"]).objective
    assert (found.name, found.local_views) == ("dino", 2)
    same: Any = make_config(PretrainConfig, values, ["objective=mae"]).objective
    assert (same.name, same.ratio) == ("mae", 0.5)
    assert caplog.text == ""


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "joint"])
def test_keys_that_an_objective_has_no_use_for_are_refused(name: str) -> None:
    language = SETTINGS[name].has_language_model
    values = {"objective": name, "data": DATA}
    for override, needed in {
        "model.vocabulary=400": True,
        "model.freeze=[vision]": True,
        "data.sequence.pack=false": True,
        "data.balance=true": True,
        "compute.recompute=full": True,
        "model.vision={image_size: 64}": False,
    }.items():
        if needed == language:
            make_config(PretrainConfig, values, [override])
            continue
        with pytest.raises(ConfigError, match=f"the objective {name} has no use for it"):
            make_config(PretrainConfig, values, [override])
    written = make_config(PretrainConfig, values).model_dump()
    assert ("compute" in written, "vision" in written["model"]) == (language, not language)


def test_the_former_names_are_the_same_things() -> None:
    assert vitp.ImagePretrainConfig is vitp.PretrainConfig
    assert vitp.run_image_pretraining is vitp.run_pretraining
    old = vitp.ImagePretrainConfig(objective="mae", data=DATA, mae={"ratio": 0.5})  # type: ignore[arg-type, call-arg]
    assert old.objective == SETTINGS["mae"](ratio=0.5)  # type: ignore[call-arg]
