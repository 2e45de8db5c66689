"""From the vision tower's patch tokens to the language model's image tokens.

Shapes: T tiles, N patch tokens a tile, D width of the ViT, s shuffle factor, H width of the language model.
"""

from __future__ import annotations

from torch import Tensor, nn


def pixel_shuffle(tokens_TND: Tensor, factor: int) -> Tensor:
    """Fold each factor × factor square of patches into one token: (T, N, D) → (T, N / s², s² · D).

    The order of tokens and channels is that of InternVL's second version (`ps_version` v2), so that its
    projector weights fit. Factor 1 returns the tokens as they are.

    Raises:
        ValueError: N is not a square grid that the factor divides.
    """
    if factor == 1:
        return tokens_TND
    tiles, number, width = tokens_TND.shape
    grid = int(number**0.5)
    if grid * grid != number or grid % factor:
        raise ValueError(f"{number} patch tokens are no square grid that {factor} divides")
    small = grid // factor
    # First neighbours in a row join, then neighbours in a column: channels come in InternVL's order only this way.
    x = tokens_TND.reshape(tiles, grid, small, width * factor)
    x = x.permute(0, 2, 1, 3).reshape(tiles, small, small, width * factor * factor)
    return x.permute(0, 2, 1, 3).reshape(tiles, small * small, width * factor * factor)


class Projector(nn.Sequential):
    """`LayerNorm(s²D) → Linear(s²D, H) → GELU → Linear(H, H)`; children 0, 1, 3 as in `mlp1.*`."""

    def __init__(self, vision_width: int, language_width: int, factor: int) -> None:
        folded = vision_width * factor * factor
        super().__init__(
            nn.LayerNorm(folded),
            nn.Linear(folded, language_width),
            nn.GELU(),
            nn.Linear(language_width, language_width),
        )
