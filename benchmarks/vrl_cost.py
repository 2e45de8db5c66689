"""What VRL saves: forward and backward of the language model at ratio 0 and 0.75, on image-heavy records.

Records of five tiles and one question. The language model alone is timed (its input is made beforehand), because
that is where the dropped tokens would have been computed; the whole step is timed beside it.
"""

from __future__ import annotations

import numpy as np
import torch

from common import median_seconds, save
from vitp.data.chat import ChatTokenizer
from vitp.data.packing import PackedBatch, pack
from vitp.data.tokenizer import train_tokenizer
from vitp.models.attention_layouts import packed_attention_mask
from vitp.models.language import micro_qwen2
from vitp.models.vision import VisionSettings
from vitp.models.vlm import VisionLanguageModel, VLMSettings
from vitp.models.vrl import VisualRobustness, VRLSettings
from vitp.objectives.vitp import ViTPObjective
from vitp.records.instructions import InstructionRecord, Turn

RECORDS, TILES = 8, 5


def model_and_tokenizer() -> tuple[ViTPObjective, ChatTokenizer]:
    torch.manual_seed(0)
    chat = ChatTokenizer(
        train_tokenizer(["Is there a ship in the image?", "yes no"] * 20, vocabulary=2000),
        template="micro",
        tokens_per_tile=144,
    )
    config = VLMSettings(
        vision=VisionSettings(arguments={"embed_dim": 192, "depth": 6, "num_heads": 3, "patch_size": 8}),
        language=micro_qwen2(),
        shuffle=1,
        template="micro",
    )
    return ViTPObjective(VisionLanguageModel(config, vocabulary=len(chat)), chat), chat


def batch_at(ratio: float, chat: ChatTokenizer) -> PackedBatch:
    vrl = VisualRobustness(VRLSettings(ratio=ratio), seed=0).train()
    record = InstructionRecord("1", ("image.png",), (Turn("<image>\nIs there a ship in the image?", "yes"),))
    encoded = [chat.encode(record, [TILES]) for _ in range(RECORDS)]
    rng = np.random.default_rng(0)
    return pack(
        encoded,
        [rng.integers(0, 256, (TILES, 3, 96, 96), dtype=np.uint8) for _ in encoded],
        [vrl(int(e.image_N.sum()), (i,)) for i, e in enumerate(encoded)],
        tokens_per_tile=144,
        max_length=1024,
        pad_id=chat.pad_id,
    )


def main() -> None:
    torch.set_num_threads(2)
    objective, chat = model_and_tokenizer()
    figures: dict[str, object] = {"records": RECORDS, "tiles_per_record": TILES}
    seconds: dict[str, dict[float, float]] = {"language": {}, "step": {}}
    for ratio in (0.0, 0.75):
        batch = batch_at(ratio, chat)
        vlm = objective.vlm
        with torch.no_grad():
            inputs = vlm.embed(batch.tiles_TCHW, batch.keep_K, batch.image_index_K, batch.ids_BL)
        mask = packed_attention_mask(batch.segments_BL, batch.branches_BL)

        def language(inputs=inputs, mask=mask, batch=batch, vlm=vlm) -> None:
            start = inputs.detach().requires_grad_()
            out = vlm.language.get_decoder()(
                inputs_embeds=start, attention_mask=mask, position_ids=batch.positions_BL, use_cache=False
            ).last_hidden_state
            out.sum().backward()

        def step(batch=batch) -> None:
            objective(batch)["language"].backward()

        seconds["language"][ratio] = median_seconds(language)
        seconds["step"][ratio] = median_seconds(step, repeats=3, warmup=1)
        figures[f"tokens_at_{ratio}"] = batch.tokens
        figures[f"rows_at_{ratio}"] = list(batch.ids_BL.shape)
    for name, by_ratio in seconds.items():
        figures[f"{name}_seconds"] = {str(ratio): round(value, 4) for ratio, value in by_ratio.items()}
        figures[f"{name}_times_cheaper"] = round(by_ratio[0.0] / by_ratio[0.75], 2)
    save("vrl_cost", figures)


if __name__ == "__main__":
    main()
