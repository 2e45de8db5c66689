"""What QGIS's plug-in Deepness reads in an ONNX file, so that a segmenter or detector runs there as it is.

Followed are the plug-in's pages "Model classes and requirements" and "Adding metadata to ONNX model": one input of
[1, channels, size, size] that gets 8-bit values / 255 as float32; segmenters return [1, classes, size, size] with
softmax; detectors return the table of the type `YOLO_Ultralytics`, [1, 4 + classes, rows] with centre, sides and scores
in pixels of the tile, oriented ones that of `YOLO_Ultralytics_obb`, with the angle in radians last. The plug-in
suppresses overlapping rows itself.
"""

from __future__ import annotations

import json
from typing import Any

from vitp.runtime.contract import GraphContract

_TYPES = {"detection": "YOLO_Ultralytics", "instance": "YOLO_Ultralytics", "oriented": "YOLO_Ultralytics_obb"}


def qgis_obstacle(contract: GraphContract) -> str | None:
    """Return why the plug-in can't run a graph, in words; None: it can."""
    if contract.task == "classification":
        return "it has no models that give an image one class"
    if contract.mask_patch:
        return "it has no models that give each object a mask of the whole tile"
    if contract.size[0] != contract.size[1]:
        return f"its tiles are square, and the graph takes {contract.size[0]}×{contract.size[1]} px (--size)"
    if contract.batch != 1:
        return "it takes one tile at a time (--batch 1)"
    return None


def qgis_metadata(contract: GraphContract, resolution: float | None = None) -> dict[str, str]:
    """Return key → JSON text, as the plug-in reads it; none where it can't run the graph.

    Args:
        contract: Contract of the graph.
        resolution: Centimetres of a pixel that the model sees; None: the plug-in asks.
    """
    if qgis_obstacle(contract) is not None:
        return {}
    channels = contract.planes * (2 if contract.pairs else 1)
    values: dict[str, Any] = {
        "model_type": "Detector" if contract.task in _TYPES else "Segmentor",
        "class_names": {str(number): name for number, name in enumerate(contract.classes)},
        # Versions differ in the name of this one.
        "tile_size": contract.size[0],
        "tiles_size": contract.size[0],
        "tiles_overlap": round(100 * contract.overlap),
        # The normalisation is part of the graph.
        "standardization_mean": [0.0] * channels,
        "standardization_std": [1.0] * channels,
    }
    if resolution is not None:
        values["resolution"] = resolution
    if contract.task in _TYPES:
        values |= {
            "det_type": _TYPES[contract.task],
            "det_conf": contract.shown_score,
            "det_iou_thresh": contract.iou,
            "det_remove_overlap": True,
        }
    else:
        values |= {"seg_thresh": 0.0, "seg_small_segment": 0}
    return {name: json.dumps(value) for name, value in values.items()}
