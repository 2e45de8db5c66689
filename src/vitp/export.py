"""Vision towers on their own: out of a vision-language model, into timm, transformers and back.

    backbone/
        model.safetensors         weights under timm's names; the contract in its metadata
        config.json               what `timm.create_model("local-dir:…")` and transformers' `AutoModel` read
        vitp_backbone.json        description: contract, digests, provenance
        test_vectors.safetensors  two images and the features they must give
        README.md                 model card

Shapes: B images, N patch tokens, D width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vitp import pretrained
from vitp.errors import CheckpointError
from vitp.export_card import BackboneDescription, Provenance, model_card, provenance_of_run
from vitp.export_verify import Check, VerifyReport
from vitp.files import atomic_dir, write_json, write_text
from vitp.models.vision import VisionConfig, VisionTower
from vitp.models.vlm import VLMConfig
from vitp.version import __version__
