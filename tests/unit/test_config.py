"""Configuration files: typed values, and an answer for every mistake."""

from __future__ import annotations

import pytest

from vitp.config import load_config, make_config, save_config
from vitp.errors import ConfigError
from vitp.pretrain import PretrainConfig

MINIMAL = {"data": {"mixture": ["x"]}}


def test_defaults_are_the_papers():
    config = make_config(PretrainConfig, MINIMAL)
    assert config.vrl.ratio == 0.75
    assert config.vrl.probability == 1.0
    assert config.optim.lr == 2e-5
    assert config.optim.weight_decay == 0.01
    assert config.optim.warmup_ratio == 0.2
    assert config.optim.schedule == "cosine"
    assert config.train.steps == 8000
    assert config.data.global_batch == 128
    assert config.data.sequence.max_length == 4096
    assert config.model.drop_path == 0.1


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("vrl.ration=0.5", "unknown key 'vrl.ration'; did you mean \"ratio\"?"),
        ("optim.lr=fast", "optim.lr is 'fast'"),
        ("vrl.ratio=1.5", "vrl.ratio is 1.5"),
        ("train.steps=0", "train.steps is 0"),
        ("trian.steps=5", 'did you mean "train"?'),
        ("nonsense", "no key=value"),
    ],
)
def test_mistakes_are_named(override, expected):
    with pytest.raises(ConfigError) as caught:
        make_config(PretrainConfig, MINIMAL, [override])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_scientific_notation_is_a_number():
    assert make_config(PretrainConfig, MINIMAL, ["optim.lr=3e-4"]).optim.lr == 3e-4


def test_file_round_trip(tmp_path):
    config = make_config(PretrainConfig, MINIMAL, ["vrl.ratio=0.5", "model.freeze=[vision]"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(PretrainConfig, tmp_path / "config.yaml") == config


def test_broken_yaml_names_the_line(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("data:\n  mixture: [a\noptim: {}\n")
    with pytest.raises(ConfigError, match=r"c\.yaml:\d"):
        load_config(PretrainConfig, path)


def test_missing_key_is_named():
    with pytest.raises(ConfigError, match="'data' is missing"):
        make_config(PretrainConfig, {})
