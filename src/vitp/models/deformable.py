"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, eq. 2 and 3) in plain PyTorch.

A query looks at P points near its reference point on each of L maps, instead of at every cell. Cost and memory
grow with queries × points, not with queries × cells, and no operator has to be compiled.

Shapes: B images, Q queries, D width, S cells of all levels together, L levels, A heads, P points a head and
level, d channels a head, h × w cells of a level. Coordinates are (x, y); 0 and 1 are a map's *borders*, so that
cell i of n has its centre at (i + 0.5) / n and one location means the same place on every level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitp.core.errors import ConfigError


def deformable_attention(
    value_BSAd: Tensor,
    shapes: Sequence[tuple[int, int]],
    locations_BQALP2: Tensor,
    weights_BQALP: Tensor,
) -> Tensor:
    """Return the weighted sums of bilinear samples, (B, Q, A·d), in float32 (or float64 when given that).

    Args:
        value_BSAd: Values of all levels one after the other, each row by row.
        shapes: Height and width of each level; their cells add up to S.
        locations_BQALP2: Where to look, (x, y) on 0..1 of each map. Outside there are zeros.
        weights_BQALP: Attention weights; a head's sum to 1 over levels and points.

    Raises:
        ValueError: The levels don't hold as many cells as there are values.
    """
    batch, cells, heads, channels = value_BSAd.shape
    queries = locations_BQALP2.shape[1]
    if sum(height * width for height, width in shapes) != cells:
        raise ValueError(f"levels of {list(shapes)} cells don't hold {cells} values")
    # In bfloat16 a location is off by up to two cells of a map of 1024: sampling stays in full precision.
    with torch.autocast(value_BSAd.device.type, enabled=False):
        dtype = torch.promote_types(value_BSAd.dtype, torch.float32)
        # `grid_sample` counts from -1 to 1; with align_corners=False these are a map's borders, as 0 and 1 are here.
        grid_BQALP2 = 2 * locations_BQALP2.to(dtype) - 1
        weights_BQALP = weights_BQALP.to(dtype)
        out = None
        levels = value_BSAd.to(dtype).split([height * width for height, width in shapes], dim=1)
        for level, ((height, width), level_BsAd) in enumerate(zip(shapes, levels, strict=True)):
            # Heads look independently of each other, so they join the batch, and one call samples for all.
            maps = level_BsAd.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
            grid = grid_BQALP2[:, :, :, level].transpose(1, 2).flatten(0, 1)
            samples_NdQP = F.grid_sample(
                maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False
            )
            weights_N1QP = weights_BQALP[:, :, :, level].transpose(1, 2).flatten(0, 1).unsqueeze(1)
            level_NdQ = (samples_NdQP * weights_N1QP).sum(-1)
            # Adding up level by level keeps one level's samples in memory when no gradient is wanted.
            out = level_NdQ if out is None else out + level_NdQ
        assert out is not None
        return out.view(batch, heads * channels, queries).transpose(1, 2)


def cell_centers(
    shape: tuple[int, int], cell: float, frame: tuple[int, int], device: torch.device | None = None
) -> Tensor:
    """Return the centres of a map's cells, row by row, (h·w, 2) as (x, y) on 0..1 of a frame.

    Args:
        shape: Height and width of the map in cells.
        cell: Side of a cell in pixels.
        frame: Height and width in pixels of what the centres are relative to. Map and frame share the upper
            left corner; centres beyond the frame are above 1.
        device: Device on which they are made.
    """
    y_h = (torch.arange(shape[0], device=device, dtype=torch.float32) + 0.5) * (cell / frame[0])
    x_w = (torch.arange(shape[1], device=device, dtype=torch.float32) + 0.5) * (cell / frame[1])
    grid_y, grid_x = torch.meshgrid(y_h, x_w, indexing="ij")
    return torch.stack((grid_x.flatten(), grid_y.flatten()), dim=-1)


class MultiScaleDeformableAttention(nn.Module):
    """Deformable attention with its projections.

    At the start every query looks evenly at a star of points around its reference: head a in direction
    2π·a / A, point p at p + 1 cells, as published.

    Args:
        width: Channels of queries, values and result (D).
        levels: Maps to look at (L).
        heads: Attention heads (A).
        points: Points a head and level (P).
        value_ratio: Channels of the projected values as a share of `width`; below 1 is the cheap variant of
            ViT-Adapter.

    Raises:
        ConfigError: The projected channels can't be shared among the heads.
    """

    def __init__(
        self, width: int, *, levels: int, heads: int, points: int = 4, value_ratio: float = 1.0
    ) -> None:
        super().__init__()
        value_width = round(width * value_ratio)
        if value_width < heads or value_width % heads:
            raise ConfigError(
                f"{value_width} channels ({width} × {value_ratio}) can't be shared among {heads} heads",
                where="deformable attention",
                fix="choose another number of heads or another ratio",
            )
        self.levels, self.heads, self.points = levels, heads, points
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, value_width)
        self.output_proj = nn.Linear(value_width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the published start: a star of points, even weights."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        angle_A = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        direction_A2 = torch.stack((angle_A.cos(), angle_A.sin()), dim=-1)
        # The points lie on squares, not on circles: that is how the published code scales the directions.
        direction_A2 = direction_A2 / direction_A2.abs().amax(-1, keepdim=True)
        steps_P = torch.arange(1, self.points + 1, dtype=torch.float32)
        star_ALP2 = torch.einsum("ac,p->apc", direction_A2, steps_P)[:, None].expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(star_ALP2.reshape(-1))

    def forward(
        self,
        query_BQD: Tensor,
        reference_Q2: Tensor,
        value_BSD: Tensor,
        shapes: Sequence[tuple[int, int]],
        frame_BQ22: Tensor | None = None,
    ) -> Tensor:
        """Return what each query gathered, (B, Q, D).

        Args:
            query_BQD: Queries.
            reference_Q2: Their places, (x, y) on 0..1 of the maps; (B, Q, 2) where images differ.
            value_BSD: Features of all levels one after the other, each row by row.
            shapes: Height and width of each level.
            frame_BQ22: Two vectors (the columns; rows are x and y on 0..1) that the steps are taken along, as half the
                edges of a box: its star then ends at the box's border. None: steps are in cells.
        """
        batch, queries, _ = query_BQD.shape
        value_BSAd = self.value_proj(value_BSD).unflatten(-1, (self.heads, -1))
        offsets_BQALP2 = self.sampling_offsets(query_BQD).view(
            batch, queries, self.heads, self.levels, self.points, 2
        )
        # One softmax over all levels, not one for each: a query may look at one level alone.
        weights_BQALP = (
            self.attention_weights(query_BQD)
            .view(batch, queries, self.heads, self.levels * self.points)
            .softmax(-1)
            .view(batch, queries, self.heads, self.levels, self.points)
        )
        # Offsets are in cells of the level: width for x, height for y.
        size_L2 = torch.tensor(
            [(width, height) for height, width in shapes], device=query_BQD.device, dtype=torch.float32
        )
        reference = reference_Q2.view(-1, queries, 1, 1, 1, 2).to(size_L2.dtype)
        offsets_BQALP2 = offsets_BQALP2.to(size_L2.dtype)
        if frame_BQ22 is None:
            steps_BQALP2 = offsets_BQALP2 / size_L2[:, None]
        else:
            # As in Deformable DETR a box's points are spread over it: the star's farthest ones reach its edges.
            frame = frame_BQ22.to(size_L2.dtype)[:, :, None, None, None] / self.points
            steps_BQALP2 = (frame * offsets_BQALP2[..., None, :]).sum(-1)
        locations_BQALP2 = reference + steps_BQALP2
        out_BQV = deformable_attention(value_BSAd, shapes, locations_BQALP2, weights_BQALP)
        looked_BQD: Tensor = self.output_proj(out_BQV.to(value_BSAd.dtype))
        return looked_BQD
