"""The floating-point operations of our step and of the published one: what their ratio is, whatever machine runs them.

    python benchmarks/published_flops.py

counts both kinds of records of `train_step.py` at every size, full scale included, without making a weight.
"""

from __future__ import annotations

from dataclasses import dataclass

from published_step import BASELINES, Baseline
from vitp.data.packing import PackedBatch
from vitp.models.flops import forward_flops, patch_embed_flops
from vitp.models.token_runs import token_runs
from vitp.planning.bench.synthetic import ModelSize
from vitp.planning.model import ModelShape, model_shape

BLOCKS = {"none": 3.0, "selective": 3.0, "full": 4.0}
"""Times the forward pass that forward and backward of the blocks cost: full recomputation makes a second one."""


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one forward and backward pass, recomputed activations counted.

    Attributes:
        vision, projector, language, logits: Of the parts; the language model without its output layer.
    """

    vision: float
    projector: float
    language: float
    logits: float

    @property
    def total(self) -> float:
        """Of all parts."""
        return self.vision + self.projector + self.language + self.logits


def step_flops(shape: ModelShape, batch: PackedBatch, *, recompute: str = "none") -> StepFlops:
    """Return what our step costs: dropped tokens and padding are not computed, logits are made where they are needed."""
    runs = token_runs(batch.segments_BL.numpy(), batch.branches_BL.numpy())
    blocks = BLOCKS[recompute]
    return StepFlops(
        blocks * _vision(shape, len(batch.tiles_TCHW)),
        3.0 * _projector(shape, len(batch.keep_K)),
        blocks * forward_flops(shape.language, batch.tokens, runs.context),
        3.0 * _logits(shape, len(batch.target_ids_S)),
    )


def published_flops(
    shape: ModelShape, batch: PackedBatch, length: int, baseline: Baseline = "unpadded"
) -> StepFlops:
    """Return what the published step costs.

    Args:
        shape: Of the model.
        batch: One record a row.
        length: Tokens that each row is padded to.
        baseline: How its language model attends.
    """
    tokens = len(batch.record_names) * length
    runs = token_runs(batch.segments_BL.numpy(), batch.branches_BL.numpy())
    # Mean keys a token: of the records' own tokens, spread over all that pass through the layers, or of whole rows.
    context = runs.context * batch.tokens / tokens if baseline == "unpadded" else (length + 1) / 2
    return StepFlops(
        BLOCKS["full"] * _vision(shape, len(batch.tiles_TCHW)),
        3.0 * _projector(shape, len(batch.tiles_TCHW) * shape.image_tokens),
        BLOCKS["full"] * forward_flops(shape.language, tokens, context),
        3.0 * _logits(shape, tokens),
    )


def flop_ratios(
    size: ModelSize, ours: PackedBatch, published: PackedBatch, recompute: str
) -> dict[str, float]:
    """Return how many times our FLOPs the published step needs, for each baseline; with and without our recomputation."""
    shape = model_shape(size.config, size.vocabulary)
    found = {}
    for baseline in BASELINES:
        theirs = published_flops(shape, published, size.padded_length, baseline).total
        for name, mode in {baseline: recompute, f"{baseline}_ours_without_recompute": "none"}.items():
            found[name] = round(theirs / step_flops(shape, ours, recompute=mode).total, 2)
    return found


def _vision(shape: ModelShape, tiles: int) -> float:
    tokens = shape.patches + shape.prefix
    blocks = forward_flops(shape.vision, tiles * tokens, tokens)
    return blocks + patch_embed_flops(
        shape.vision.width, shape.patch_size, tiles * shape.patches, shape.channels
    )


def _projector(shape: ModelShape, tokens: int) -> float:
    folded, width = shape.vision.width * shape.shuffle**2, shape.language.width
    return 2.0 * width * (folded + width) * tokens


def _logits(shape: ModelShape, tokens: int) -> float:
    return forward_flops(shape.language, 0, 0.0, logits=tokens)


def main() -> None:
    from train_step import KINDS, RECOMPUTE, batches_of
    from vitp.planning.bench.synthetic import MODEL_SIZES

    for name, size in MODEL_SIZES.items():
        for kind in KINDS:
            ours, published = batches_of(size, 4, KINDS[kind])
            print(name, kind, flop_ratios(size, ours, published, RECOMPUTE[kind]))


if __name__ == "__main__":
    main()
