"""From CT volumes with masks to a segmentation that a viewer lays over the series: compile, pretrain, finetune, predict.

    python examples/ct_walk.py OUT [STEPS]

The volumes are generated: an nnU-Net folder of a few patients, and a DICOM series of one more. The commands are those
that anybody would type, and are printed. Needs `pip install 'vitp[medical]'`.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np

from vitp.scenes.volume_files import write_dicom_series, write_nnunet
from vitp.scenes.volumes import TrunkVolume, make_volume

SIZE = (96, 80, 14)
NEW_PATIENT = 99


def vitp(*words: object) -> None:
    """Run a command."""
    command = ["vitp", *map(str, words)]
    print("$", " ".join(command), flush=True)
    subprocess.run([sys.executable, "-m", *command], check=True)


def dice(volume: TrunkVolume, found: Path) -> dict[str, float]:
    """Return the Dice of each class that the volume or its prediction holds."""
    labels_IJK = np.asarray(nibabel.load(found).dataobj)
    scores = {}
    for number, name in enumerate(volume.classes, 1):
        truth, guess = volume.labels_IJK == number, labels_IJK == number
        if truth.any() or guess.any():
            scores[name] = float(2 * (truth & guess).sum() / (truth.sum() + guess.sum()))
    return scores


def main(out: Path, steps: int = 300) -> dict[str, float]:
    """Write everything under OUT; return the Dice of each class in the new patient."""
    write_nnunet(out / "volumes", 6, size=SIZE, twice=1)
    new = make_volume(NEW_PATIENT, size=SIZE)
    write_dicom_series(new, out / "new" / "series", name="new")
    vitp("data", "compile", out / "volumes", "--out", out / "data", "-o", "val=0.2", "-o", "test=0.2")
    vitp("data", "check", out / "data")
    vitp("pretrain", "--data", out / "data", "--out", out / "run", "--steps", steps)
    made = ("--data", out / "data", "--backbone", out / "run", "--out", out / "organs")
    vitp("finetune", "segmentation", *made, "--steps", steps, "-s", "data.global_batch=8")
    vitp("eval", out / "organs", out / "data", "-s", "tolerance=5")
    vitp("predict", out / "organs", out / "new" / "series", "--format", "dicom-seg", "--out", out / "labels")
    with (out / "labels" / "volumes.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            print(
                f"{row['class']:>14}: {float(row['ml']):8.1f} ml, {new.millilitres(row['class']):8.1f} in truth"
            )
    return dice(new, out / "labels" / "masks" / "series.nii.gz")


if __name__ == "__main__":
    print({name: round(value, 3) for name, value in main(Path(sys.argv[1]), *map(int, sys.argv[2:])).items()})
