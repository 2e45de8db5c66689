"""What `vitp pretrain --data FOLDER` does when nobody says how."""

from __future__ import annotations

import pytest

import vitp
from vitp.core.errors import ConfigError
from vitp.recipes.paradigms import PARADIGMS, PUBLISHED_STEPS, STARTER_STEPS, pretrain_settings
from vitp.runs.pretrain import PretrainConfig

DATA = 'data.mixture=["here"]'


def test_the_starter_is_continued_at_its_own_rates() -> None:
    found = pretrain_settings(None, None, [DATA])
    assert isinstance(found, PretrainConfig)
    own = PARADIGMS["vitp"]
    assert (found.data.global_batch, found.optim.lr, found.train.steps) == (own.batch, own.lr, STARTER_STEPS)
    assert (found.objective.align.steps, found.objective.vrl.ratio, found.data.mixture) == (
        160,
        0.75,
        ["here"],
    )
    # Large images are cut into tiles here as with a file.
    assert found.data.sequence == PretrainConfig(data={"mixture": ["here"]}).data.sequence  # type: ignore[arg-type]


def test_what_is_said_counts() -> None:
    found = pretrain_settings(None, None, [DATA, "train.steps=50", "optim.lr=0.1", "vrl.ratio=0.5"])
    assert isinstance(found, PretrainConfig)
    assert (found.train.steps, found.objective.align.steps, found.optim.lr, found.objective.vrl.ratio) == (
        50,
        10,
        0.1,
        0.5,
    )


@pytest.mark.parametrize("name", ["mae", "clip", "simclr", "dino", "supervised", "dense", "siglip"])
def test_other_objectives_take_theirs(name: str) -> None:
    found = pretrain_settings(None, name, [DATA])
    own = PARADIGMS[name]
    assert (found.data.global_batch, found.optim.lr, found.train.steps) == (own.batch, own.lr, STARTER_STEPS)


def test_other_models_take_the_papers() -> None:
    found = pretrain_settings(None, None, [DATA, "model.init=models/mine"])
    assert found == PretrainConfig.model_validate(
        {"model": {"init": "models/mine"}, "data": {"mixture": ["here"]}, "train": {"steps": PUBLISHED_STEPS}}
    )


def test_python_has_the_settings_of_the_command() -> None:
    assert vitp.starter_config(["here"]) == pretrain_settings(None, None, [DATA])
    found = vitp.starter_config(["here"], objective="mae", steps=30, overrides=["optim.lr=0.1"])
    assert found == pretrain_settings(None, "mae", [DATA, "train.steps=30", "optim.lr=0.1"])
    with pytest.raises(ConfigError, match='did you mean "mae"'):
        vitp.starter_config(["here"], objective="mea")
