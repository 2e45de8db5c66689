"""What sharing saves: six questions on an image as one record, against six records of one question."""

from __future__ import annotations

import numpy as np
import torch

from common import median_seconds, save
from vitp.data.chat import ChatTokenizer
from vitp.data.packing import PackedBatch, pack
from vitp.records.instructions import InstructionRecord, Turn
from vrl_cost import model_and_tokenizer

IMAGES, QUESTIONS = 8, 6


def batch_of(chat: ChatTokenizer, *, shared: bool) -> PackedBatch:
    question, answer = "Is there a ship in the image?", "yes"
    first = Turn(f"<image>\n{question}", answer)
    if shared:
        turns = (first, *[Turn(question, answer)] * (QUESTIONS - 1))
        records = [InstructionRecord("1", ("image.png",), turns, independent=True)] * IMAGES
    else:
        records = [InstructionRecord("1", ("image.png",), (first,))] * (IMAGES * QUESTIONS)
    rng = np.random.default_rng(0)
    encoded = [chat.encode(record, [1]) for record in records]
    return pack(
        encoded,
        [rng.integers(0, 256, (1, 3, 96, 96), dtype=np.uint8) for _ in encoded],
        [np.arange(144) for _ in encoded],
        tokens_per_tile=144,
        max_length=1024,
        pad_id=chat.pad_id,
    )


def main() -> None:
    torch.set_num_threads(2)
    objective, chat = model_and_tokenizer()
    figures: dict[str, object] = {"images": IMAGES, "questions_per_image": QUESTIONS}
    rates = {}
    for name, shared in (("separate", False), ("shared", True)):
        batch = batch_of(chat, shared=shared)

        def step(batch: PackedBatch = batch) -> None:
            objective(batch)["language"].backward()

        seconds = median_seconds(step, repeats=3, warmup=1)
        rates[name] = IMAGES * QUESTIONS / seconds
        figures[f"{name}_vision_passes"] = len(batch.tiles_TCHW)
        figures[f"{name}_tokens"] = batch.tokens
        figures[f"{name}_questions_per_second"] = round(rates[name], 1)
    figures["times_faster"] = round(rates["shared"] / rates["separate"], 2)
    save("questions_per_image", figures)


if __name__ == "__main__":
    main()
