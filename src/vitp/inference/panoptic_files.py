"""Segments of pictures in COCO's panoptic form: one JSON about all, beside the PNGs of `outputs.write_segments`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from vitp.core.files import write_json
from vitp.core.tensors import present
from vitp.inference.outputs import Named
from vitp.runtime.segments import boxes_around

PANOPTIC_FILE = "panoptic.json"


def write_panoptic(
    out: Path, found: Sequence[Named], classes: Sequence[str], things: Collection[str]
) -> None:
    """Write images, segments (id, class, box, area, score) and categories (from 1) as COCO panoptic JSON.

    Args:
        out: Folder; its `panoptic/NAME.png` hold the pixels.
        found: Segments of each image, in the order of the numbers in its PNG.
        classes: Names.
        things: Those whose segments are single objects.
    """
    images, annotations = [], []
    for number, named in enumerate(found, 1):
        prediction, (height, width) = named.prediction, named.size
        masks_NHW = present(prediction.masks_NHW).numpy()
        boxes_N4 = boxes_around(masks_NHW).tolist()
        rows = zip(
            present(prediction.labels_N).tolist(),
            present(prediction.scores_N).tolist(),
            boxes_N4,
            masks_NHW,
            strict=True,
        )
        segments = [
            {
                "id": ident,
                "category_id": label + 1,
                "iscrowd": 0,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": int(mask_HW.sum()),
                "score": round(score, 5),
            }
            for ident, (label, score, (x1, y1, x2, y2), mask_HW) in enumerate(rows, 1)
        ]
        images.append({"id": number, "file_name": named.image, "width": width, "height": height})
        annotations.append({"image_id": number, "file_name": f"{named.name}.png", "segments_info": segments})
    categories = [
        {"id": number, "name": name, "isthing": int(name in things)} for number, name in enumerate(classes, 1)
    ]
    write_json(out / PANOPTIC_FILE, {"images": images, "annotations": annotations, "categories": categories})
