"""Contrastive losses by hand, and texts where they belong."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.conftest import tiny_chat, tiny_vlm_config
from tests.objective_toys import CASES, image_text, labelled_folder, simclr
from vitp.core.config import make_config
from vitp.core.errors import ConfigError, DataError
from vitp.data.mixture import Sample
from vitp.models.vlm import VisionLanguageModel
from vitp.objectives.image_rows import ImageRows
from vitp.objectives.image_text import clip_loss, siglip_loss
from vitp.objectives.simclr import TwoViewBatch, nt_xent
from vitp.objectives.text_tower import (
    LanguageTextTower,
    RecordTexts,
    SmallTextTower,
    TextBatch,
    Tokens,
    captions_of,
    has_caption,
    read_record_texts,
)
from vitp.records.labels import LabelledImage, LabelledSet, ObjectLabel
from vitp.runs.pretrain import PretrainConfig, build


def vectors(rows: int, seed: int, width: int = 5) -> torch.Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_clip_is_two_cross_entropies() -> None:
    image, text = vectors(4, 0), vectors(4, 1)
    scale, total = 7.0, 0.0
    for i in range(4):
        to_texts = [math.exp(scale * float(image[i] @ text[j])) for j in range(4)]
        to_images = [math.exp(scale * float(text[i] @ image[j])) for j in range(4)]
        total += -(math.log(to_texts[i] / sum(to_texts)) + math.log(to_images[i] / sum(to_images))) / 2
    assert clip_loss(image, text, torch.tensor(scale)).item() == pytest.approx(total, rel=1e-5)


def test_siglip_is_a_sigmoid_for_each_pair() -> None:
    image, text = vectors(4, 0), vectors(4, 1)
    scale, bias, total = 10.0, -10.0, 0.0
    for i in range(4):
        for j in range(4):
            z = 1 if i == j else -1
            total += math.log(1 + math.exp(-z * (scale * float(image[i] @ text[j]) + bias)))
    found = siglip_loss(image, text, torch.tensor(scale), torch.tensor(bias))
    assert found.item() == pytest.approx(total, rel=1e-5)


def test_nt_xent_finds_the_other_view_among_all_but_itself() -> None:
    first, second = vectors(3, 0), vectors(3, 1)
    everything, total = torch.cat([first, second]), 0.0
    for row in range(6):
        partner = (row + 3) % 6
        similar = [math.exp(float(everything[row] @ other) / 0.2) for other in everything]
        total += -math.log(similar[partner] / (sum(similar) - similar[row]))
    assert nt_xent(first, second, 0.2).item() == pytest.approx(total / 2, rel=1e-5)


def test_one_image_alone_is_refused_where_others_are_needed() -> None:
    """Its loss is 0 whatever the vectors are, which would look like a run that has learned all."""
    one, other = vectors(1, 0), vectors(1, 1)
    for loss in (lambda: nt_xent(one, other, 0.1), lambda: clip_loss(one, other, torch.tensor(7.0))):
        with pytest.raises(ConfigError, match=r"data\.global_batch: a micro-batch has a single one"):
            loss()
    assert siglip_loss(one, other, torch.tensor(1.0), torch.tensor(0.0)) > 0  # a pair has its own loss


def test_aligned_views_have_the_lowest_loss() -> None:
    basis = torch.eye(4)
    aligned = nt_xent(basis, basis, 0.1).item()
    assert aligned < nt_xent(basis, basis.roll(1, 0), 0.1).item()
    # Six strangers with cosine 0 against a partner with cosine 1.
    assert aligned == pytest.approx(4 * math.log(1 + 6 * math.exp(-10)), rel=1e-3)


def test_views_are_symmetric() -> None:
    objective = simclr().eval()
    tiles = torch.randint(0, 256, (2, 3, 3, 32, 32), dtype=torch.uint8)
    there = objective(TwoViewBatch(tiles, ("a", "b", "c")))["contrast"]
    back = objective(TwoViewBatch(tiles.flip(0), ("a", "b", "c")))["contrast"]
    assert there.item() == pytest.approx(back.item(), rel=1e-5)


def test_the_scale_is_learned_and_bounded(tmp_path: Path) -> None:
    objective = image_text("clip")
    batch = CASES["clip"].source(labelled_folder(tmp_path / "toy"))(0, 0, 0, 1)
    objective(batch)["contrast"].backward()
    assert objective.log_scale.grad is not None and objective.log_scale.grad != 0
    objective.zero_grad()
    with torch.no_grad():
        objective.log_scale.fill_(10.0)  # e^10 is far above 100
    objective(batch)["contrast"].backward()
    assert objective.log_scale.grad == 0


# Texts.


def test_padding_does_not_change_a_text() -> None:
    torch.manual_seed(0)
    small = SmallTextTower(50, width=16, layers=2, heads=2, length=8).eval()
    language = VisionLanguageModel(tiny_vlm_config(), vocabulary=50).eval().language
    for tower in (small, LanguageTextTower(language).eval()):
        ids = torch.tensor([[3, 9, 4]])
        short = tower(TextBatch(ids, torch.ones(1, 3, dtype=torch.bool)))
        padded = torch.tensor([[3, 9, 4, 0, 0], [7, 7, 7, 7, 7]])
        valid = torch.tensor([[True, True, True, False, False], [True] * 5])
        long = tower(TextBatch(padded, valid))
        assert torch.allclose(short[0], long[0], atol=1e-5)
        assert not torch.allclose(long[0], long[1], atol=1e-3)


def test_tokens_are_cut_and_marked() -> None:
    chat = tiny_chat()
    made = Tokens(chat.tokenizer, 4)(["a ship in the harbour and more words", "a", ""])
    assert made.ids_BL.shape == (3, 4)
    assert made.valid_BL[0].all() and made.valid_BL[2].tolist() == [True, False, False, False]
    expected = chat.tokenizer("a ship in the harbour and more words", add_special_tokens=False)["input_ids"]
    assert made.ids_BL[0].tolist() == expected[:4]


def place(item: LabelledImage) -> Sample[LabelledImage]:
    return Sample(item, None, False, 0, 0)


def test_captions_are_given_or_composed_from_labels() -> None:
    boat = ObjectLabel("ship", (1, 1, 9, 9))
    items = [
        LabelledImage("a", "a.png", 20, 20, captions=("two boats",)),
        LabelledImage("b", "b.png", 20, 20, objects=(boat, boat)),
        LabelledImage("c", "c.png", 20, 20),
    ]
    rows = ImageRows(LabelledSet("toy", items, ("ship",)), "", Path())
    texts = captions_of([rows])
    rng = np.random.default_rng(0)
    assert texts(place(items[0]), rng) == "two boats"
    composed = texts(place(items[1]), rng)
    assert "ships" in composed and ("two" in composed or "2" in composed)
    assert [has_caption(item) for item in items] == [True, True, False]


def test_texts_of_records_are_questions_with_answers(tmp_path: Path) -> None:
    folder = labelled_folder(tmp_path / "toy")
    known = read_record_texts(folder)
    assert len(known) == 12
    image = str(folder / "0.png")
    assert known[image] == ("Which scene? harbour", "Any ship? yes")
    texts = RecordTexts((known,))
    item = LabelledImage("a", image, 48, 40)
    drawn = {texts(place(item), np.random.default_rng(seed)) for seed in range(20)}
    assert drawn == set(known[image])


@pytest.mark.parametrize("objective", ["simclr", "clip", "siglip", "dino"])
def test_a_set_of_one_image_tells_nothing_apart(tmp_path: Path, objective: str) -> None:
    """All others of a step would be copies of the image, from which it would have to learn to differ."""
    labelled_folder(tmp_path / "one", images=1)
    settings = {"koleo": 0.1} if objective == "dino" else {}
    values = {
        "objective": {"name": objective, **settings},
        "data": {"mixture": [str(tmp_path / "one")], "global_batch": 4},
    }
    config = make_config(PretrainConfig, values)
    with pytest.raises(
        DataError, match=r"holds a single training image, .*telling images apart; give more images"
    ):
        build(config)
    if objective == "dino":  # without the regulariser each image is looked at alone
        build(make_config(PretrainConfig, {**values, "objective": {"name": "dino"}}))
