"""What an exported graph says of itself: `vitp` in the metadata of an ONNX file, and `vitp_graph.json` beside it.

Shapes: C channels, H × W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from vitp.core.errors import CheckpointError

GRAPH_FORMAT = "vitp-task-graph-1"
METADATA_KEY = "vitp"
_YOUNGER = ("mask_patch", "things", "least_share", "parts")
"""Fields that graphs of earlier versions lack."""


@dataclass(frozen=True)
class GraphContract:
    """All that it takes to use a graph.

    Attributes:
        task: "classification", "segmentation", "change", "detection", "instance", "oriented" or "panoptic".
        classes: Names, in the order of the outputs.
        size: Height and width of the images that the graph takes.
        batch: Images that it takes at once; None: any number.
        channels: Band, low, high and transform of each channel of one date; None: RGB pictures.
        mean, std: Of values on 0..1, channel by channel; they are applied inside of the graph.
        resize: `mode` and `size`: what size images get first; see `vitp.runtime.views.seen_size`. What is larger than
            the graph then is seen through windows of its size.
        parts: Longer side above which images are seen through windows at a fraction of their own resolution, whatever
            `resize` says, and that fraction; None: `resize` counts for all.
        overlap: Share of a window that the next one sees again.
        multi_label: For classification: whether an image may have several classes.
        least_score: Objects with a lower score are none.
        iou: Overlap within a class above which the weaker of two objects goes.
        most_objects: Most objects of one window.
        shown_score: Objects with a lower score aren't written to files.
        mask_patch: Objects come as masks of the whole window, each once, without boxes; the masks reach as far as
            whole patches of this side do. 0: they don't.
        things: For panoptic segmentation: classes whose segments are single objects.
        least_share: For panoptic segmentation: least share of a mask that surer ones leave to it.
    """

    task: str
    classes: tuple[str, ...]
    size: tuple[int, int]
    batch: int | None
    channels: tuple[dict[str, Any], ...] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: dict[str, Any]
    overlap: float
    multi_label: bool = False
    least_score: float = 0.0
    iou: float = 1.0
    most_objects: int = 0
    shown_score: float = 0.3
    mask_patch: int = 0
    things: tuple[str, ...] = ()
    least_share: float = 0.0
    parts: tuple[float, float] | None = None

    @property
    def pairs(self) -> bool:
        """Whether the graph takes two dates, as one image of twice the channels."""
        return self.task == "change"

    @property
    def planes(self) -> int:
        """Channels of one date."""
        return 3 if self.channels is None else len(self.channels)

    def to_values(self) -> dict[str, Any]:
        """Return plain values."""
        return {"format": GRAPH_FORMAT, **asdict(self)}

    @classmethod
    def from_values(cls, values: Mapping[str, Any], *, where: str) -> GraphContract:
        """Return what plain values say.

        Raises:
            CheckpointError: They are of another format, or incomplete.
        """
        try:
            if values["format"] != GRAPH_FORMAT:
                raise CheckpointError(
                    f"its graph is in the format {values['format']}, not {GRAPH_FORMAT}",
                    where=where,
                    fix="use the version of vitp that wrote it, or export it again",
                )
            known = {field.name: values[field.name] for field in fields(cls) if field.name not in _YOUNGER}
            known |= {name: values[name] for name in _YOUNGER if name in values}
            for name in ("classes", "size", "mean", "std", "channels", *({"things", "parts"} & known.keys())):
                known[name] = known[name] if known[name] is None else tuple(known[name])
            return cls(**known)
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"its description lacks {error}", where=where, fix="export it again"
            ) from error


def contract_of(metadata: Mapping[str, str], *, where: str) -> GraphContract:
    """Return the contract in the metadata of an ONNX file.

    Raises:
        CheckpointError: There is none.
    """
    if METADATA_KEY not in metadata:
        raise CheckpointError(
            "isn't the graph of a task model of vitp",
            where=where,
            fix="write one: vitp export RUN --format onnx",
        )
    try:
        values = json.loads(metadata[METADATA_KEY])
    except ValueError as error:
        raise CheckpointError(f"its metadata are damaged ({error})", where=where) from error
    return GraphContract.from_values(values, where=where)
