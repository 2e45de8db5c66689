"""Lengths, areas and volumes of a body as words, and how near an answer comes."""

from __future__ import annotations

import numpy as np
import pytest

from vitp.data.synthesis.build import score_answer
from vitp.data.synthesis.ground_tasks import (
    body_area_text,
    body_length_text,
    body_volume_text,
    near_amount,
    parse_amount,
)
from vitp.data.synthesis.volume_tasks import longest_diameter


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (body_length_text(43.2), 0.043),
        (body_length_text(0.0123), 12e-6),
        (body_area_text(43.2), 43e-6),
        (body_area_text(1234), 12e-4),
        (body_area_text(0.0005), 5e-10),
        (body_volume_text(1234.0), 1.2e-6),
        ("12 millilitres", 12e-6),
        ("3 cm2", 3e-4),
    ],
)
def test_amounts_of_bodies_are_read_back(text: str, read: float) -> None:
    assert parse_amount(text) == pytest.approx(read)


def test_another_kind_of_amount_is_wrong() -> None:
    assert near_amount("12 mm", "about 1.2 cm") == 1
    assert near_amount("12 mm²", "about 12 mm") == 0
    assert score_answer("volume_ml", "12 ml", "about 12 ml") == 1
    assert score_answer("growth_mm", "about 12 mm larger", "about 12 mm smaller") == 0
    assert score_answer("growth_mm", "12 mm larger", "about 12 mm larger") == 1
    assert score_answer("growth_mm", "12 mm", "about 12 mm smaller") == 0


def test_the_longest_diameter_is_one_of_corners() -> None:
    assert longest_diameter(np.ones((1, 1), bool), (3.0, 4.0)) == pytest.approx(5.0)
    assert longest_diameter(np.ones((2, 5), bool), (1.0, 6.0)) == pytest.approx(13.0)
