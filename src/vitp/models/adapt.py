"""Few parameters beside a frozen vision tower: prompts, bottleneck adapters, gates. The tower's own weights stay.

They are a part of the tower's settings (`VisionSettings.adapt`), so that whatever holds a tower holds them, too, and
modules of their own (`VisionTower.adapt`) beside timm's model, whose names and weights they leave alone.

Shapes: B images, L tokens, D width of the tower, n prompts, m memory tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Discriminator, Field, Tag
from torch import Tensor, nn

from vitp.core.config import SettingsModel


class AdaptSettings(SettingsModel):
    """Base of what is trained in place of the tower's own weights."""

    init: str | None = None
    """Trained ones to begin with: `adapt.safetensors`, or the folder or run that has it; none: new ones."""


class PromptSettings(AdaptSettings):
    """Learned tokens in front of an image's own (VPT, Jia et al., 2022)."""

    kind: Literal["prompts"] = "prompts"
    """Learned tokens in front of an image's own."""
    count: int = Field(10, ge=1, le=4096)
    """Prompts (n)."""
    deep: bool = True
    """Each block has its own prompts; else the first block's go through all blocks."""


class AdapterSettings(AdaptSettings):
    """Small branches that add nothing at first."""

    kind: Literal["adapters", "gates"] = "adapters"
    """`adapters`: a bottleneck of two linear layers, the second of which starts at 0 (Houlsby et al., 2019;
    AdaptFormer, Chen et al., 2022). `gates`: attention to learned tokens, times a learned α that starts at 0 (as
    FIBER's fusion in the backbone, Dou et al., 2022)."""
    width: int = Field(64, ge=1, le=65_536)
    """Width of the bottleneck, or number of the learned tokens (m)."""
    place: Literal["beside", "after"] = "beside"
    """`beside` the MLP of each block (AdaptFormer), or `after` each block (Houlsby). Gates are always after."""
    scale: float = Field(0.1, gt=0, le=1000)
    """Factor on the bottleneck's output."""


def adapt_kind(value: Any) -> Any:
    """Return the kind in such settings, validated or not."""
    return value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)


_Attached = (
    Annotated[PromptSettings, Tag("prompts")]
    | Annotated[AdapterSettings, Tag("adapters")]
    | Annotated[AdapterSettings, Tag("gates")]
)
Attached = Annotated[_Attached, Discriminator(adapt_kind)]
"""What is kept beside a tower; low-rank updates are merged into it (`vitp.models.adapting`)."""


class Prompts(nn.Module):
    """Prompts of one block.

    Args:
        tokens_nD: They; None: those that the block before gives on.
        before: Of the block before.
        count: n.
        carry: Whether the block behind takes what becomes of them here.
    """

    def __init__(self, tokens_nD: Tensor | None, before: Prompts | None, count: int, *, carry: bool) -> None:
        super().__init__()
        self.tokens_nD = None if tokens_nD is None else nn.Parameter(tokens_nD)
        self.count, self.carry = count, carry
        self._before = (before,)  # in a tuple it is no part of this one
        self._out_BnD: Tensor | None = None

    def insert(
        self, block: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put the prompts in front of a block's input; where a mask says what is seen, they see and are seen."""
        x_BLD = arguments[0]
        if self.tokens_nD is not None:
            prompts_BnD = self.tokens_nD.to(x_BLD.dtype).expand(len(x_BLD), -1, -1)
        else:
            before = self._before[0]
            assert before is not None and before._out_BnD is not None
            # Taken out at once: kept until the next batch, it would hold the graph and the memory of this one.
            prompts_BnD, before._out_BnD = before._out_BnD, None
        if named.get("attn_mask") is not None:
            more = (self.count, 0) * 2
            named = {**named, "attn_mask": F.pad(named["attn_mask"], more, value=True)}
        return (torch.cat([prompts_BnD, x_BLD], dim=1), *arguments[1:]), named

    def remove(self, block: nn.Module, arguments: tuple[Any, ...], output_BLD: Tensor) -> Tensor:
        """Take them out of its output."""
        if self.carry:
            self._out_BnD = output_BLD[:, : self.count]
        return output_BLD[:, self.count :]


class Adapter(nn.Module):
    """A bottleneck, x + scale · W₂ GELU(W₁ norm(x)) with W₂ = 0 at first."""

    def __init__(self, width: int, inner: int, scale: float) -> None:
        super().__init__()
        self.norm, self.scale = nn.LayerNorm(width), scale
        self.down, self.up = nn.Linear(width, inner), nn.Linear(inner, width)
        # Nothing is added at first: the tower begins as it was.
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return what is added."""
        added_BLD: Tensor = self.scale * self.up(F.gelu(self.down(self.norm(x_BLD))))
        return added_BLD

    def beside(self, mlp: nn.Module, arguments: tuple[Any, ...], output_BLD: Tensor) -> Tensor:
        """Add to the output of a module what its input gives."""
        sum_BLD: Tensor = output_BLD + self(arguments[0])
        return sum_BLD

    def after(self, block: nn.Module, arguments: tuple[Any, ...], output_BLD: Tensor) -> Tensor:
        """Add to the output of a module what it gives itself."""
        sum_BLD: Tensor = output_BLD + self(output_BLD)
        return sum_BLD


class GatedMemory(Adapter):
    """x + α · attention(norm(x), memory) with α = 0 at first."""

    def __init__(self, width: int, tokens: int, heads: int) -> None:
        nn.Module.__init__(self)
        self.norm = nn.LayerNorm(width)
        self.memory_mD = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        # Nothing is added at first: the tower begins as it was.
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return what is added."""
        memory_BmD = self.memory_mD.expand(len(x_BLD), -1, -1)
        found_BLD: Tensor = self.attention(self.norm(x_BLD), memory_BmD, memory_BmD, need_weights=False)[0]
        return self.alpha * found_BLD


def attach(vit: Any, settings: PromptSettings | AdapterSettings) -> nn.ModuleDict:
    """Hang new parameters into the blocks of a timm model, and return them by the number of the block."""
    found: dict[str, Prompts | Adapter] = {}
    blocks, width = list(vit.blocks), int(vit.embed_dim)
    for number, block in enumerate(blocks):
        if isinstance(settings, PromptSettings):
            own = settings.deep or number == 0
            tokens = torch.randn(settings.count, width) * 0.02 if own else None
            before = found.get(str(number - 1))
            last = number == len(blocks) - 1
            prompts = Prompts(
                tokens,
                before if isinstance(before, Prompts) and not own else None,
                settings.count,
                carry=not settings.deep and not last,
            )
            block.register_forward_pre_hook(prompts.insert, with_kwargs=True)
            block.register_forward_hook(prompts.remove)
            if hasattr(block.attn, "num_prefix_tokens"):  # rotary positions are of the patches behind them
                block.attn.num_prefix_tokens += settings.count
            found[str(number)] = prompts
        elif settings.kind == "gates":
            found[str(number)] = gate = GatedMemory(width, settings.width, block.attn.num_heads)
            block.register_forward_hook(gate.after)
        else:
            found[str(number)] = adapter = Adapter(width, settings.width, settings.scale)
            if settings.place == "beside":
                block.mlp.register_forward_hook(adapter.beside)
            else:
                block.register_forward_hook(adapter.after)
    return nn.ModuleDict(found)
