"""ONNX graphs in 8 bits: static quantisation, calibrated on training images.

Weights of convolutions and linear layers get a scale for each channel, what enters them one that training images tell.
What leaves a linear layer stays in float32: it is added to a residual stream, or boxes are decoded from it, and
256 steps cost a detector several points of AP there. So do attention's own products, resampling and the tables of
boxes: they are small, and a box whose corners are rounded to 256 steps is none.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vitp.core.errors import ConfigError
from vitp.core.extras import need


@contextmanager
def _quiet_root() -> Iterator[None]:
    """Keep from the console that a graph could be optimised first: it is as the exporter left it, on purpose."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


_LAYERS = ["Conv", "ConvTranspose", "Gemm", "MatMul"]


class _Images:
    """What onnxruntime asks for calibration images."""

    def __init__(self, inputs: Iterable[np.ndarray]) -> None:
        self._inputs: Iterator[np.ndarray] = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image_BChw = next(self._inputs, None)
        return None if image_BChw is None else {"image": image_BChw}


def quantise_graph(path: Path, target: Path, inputs: Iterable[np.ndarray]) -> None:
    """Write a graph in 8 bits (QDQ, weights by channel).

    Args:
        path: ONNX file in float32.
        target: File to write.
        inputs: Batches as the graph takes them.

    Raises:
        ConfigError: onnxruntime isn't installed.
    """
    need("onnx", "onnx", "--int8", ConfigError)
    ort = need("onnx", "onnxruntime.quantization", "--int8", ConfigError)
    reader: Any = _Images(inputs)
    with _quiet_root():
        ort.quantize_static(
            path,
            target,
            reader,
            quant_format=ort.QuantFormat.QDQ,
            op_types_to_quantize=_LAYERS,
            per_channel=True,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            extra_options={
                # Only products with weights: those within attention stay as they are.
                "MatMulConstBOnly": True,
                "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
            },
        )
