"""The table of all objectives of pretraining: a new one is a file of its own and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import Discriminator, Tag

from vitp.objectives.dense import DenseSettings
from vitp.objectives.distil import DistilSettings
from vitp.objectives.distillation import DistillationSettings
from vitp.objectives.dropped_positions import DroppedPositionSettings
from vitp.objectives.image_text import ImageTextSettings
from vitp.objectives.joint import JointSettings
from vitp.objectives.masked_image import MaskedImageSettings
from vitp.objectives.regions import RegionTextSettings
from vitp.objectives.settings import ObjectiveSettings
from vitp.objectives.simclr import SimCLRSettings
from vitp.objectives.supervised import SupervisedSettings
from vitp.objectives.vitp import ViTPSettings

Default = ViTPSettings
"""The objective of a configuration that names none."""


def _name_of(value: Any) -> Any:
    """Return the name in the settings of an objective, validated or not."""
    return value.get("name") if isinstance(value, Mapping) else getattr(value, "name", None)


_Single = (
    Annotated[ViTPSettings, Tag("vitp")]
    | Annotated[MaskedImageSettings, Tag("mae")]
    | Annotated[ImageTextSettings, Tag("clip")]
    | Annotated[ImageTextSettings, Tag("siglip")]
    | Annotated[SimCLRSettings, Tag("simclr")]
    | Annotated[DistillationSettings, Tag("dino")]
    | Annotated[DistilSettings, Tag("distil")]
    | Annotated[SupervisedSettings, Tag("supervised")]
    | Annotated[DenseSettings, Tag("dense")]
    | Annotated[DroppedPositionSettings, Tag("droppos")]
    | Annotated[RegionTextSettings, Tag("regionclip")]
)

# pydantic's `Field(discriminator="name")` refuses settings whose values are looked at before they are taken.
One = Annotated[_Single, Discriminator(_name_of)]
"""The settings of one objective, chosen by their name."""

# Joint settings hold those of other objectives, and the union of these exists only here.
JointSettings.model_rebuild(_types_namespace={"One": One})

AnyObjective = Annotated[_Single | Annotated[JointSettings, Tag("joint")], Discriminator(_name_of)]
"""The settings of one objective, or of several at once."""

SETTINGS: dict[str, type[ObjectiveSettings]] = {
    get_args(option)[1].tag: get_args(option)[0] for option in get_args(get_args(AnyObjective)[0])
}
"""Name → settings, in the order of tables."""
