"""`python -m vitp.runtime MODEL.onnx IMAGE…`: what an exported task model says of pictures, as JSON and PNG."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitp.core.errors import DataError, VitpError
from vitp.runtime.contract import GraphContract
from vitp.runtime.graph_model import GraphPrediction, open_graph, predictions_of_files
from vitp.runtime.objects import GraphObjects

_DIGITS = 4


def described_prediction(
    contract: GraphContract, prediction: GraphPrediction, least_score: float | None = None
) -> dict[str, Any]:
    """Return plain values of what was found.

    Args:
        contract: Contract of the graph.
        prediction: Prediction of one image.
        least_score: Objects with a lower score are left out; None: as the model says.
    """
    least = contract.shown_score if least_score is None else least_score
    if prediction.probabilities_K is not None:
        shares = zip(contract.classes, prediction.probabilities_K, strict=True)
        return {"probabilities": {name: round(float(share), _DIGITS) for name, share in shares}}
    if prediction.classes_HW is not None:
        counts = np.bincount(prediction.classes_HW.ravel(), minlength=len(contract.classes))
        return {"pixels": {name: int(count) for name, count in zip(contract.classes, counts, strict=False)}}
    assert prediction.objects is not None
    objects = prediction.objects
    rows = [row for row in range(len(objects.scores_N)) if objects.scores_N[row] >= least]
    return {"objects": [_described_object(contract, objects, row) for row in rows]}


def _described_object(contract: GraphContract, objects: GraphObjects, row: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "class": contract.classes[int(objects.labels_N[row])],
        "score": round(float(objects.scores_N[row]), _DIGITS),
        "box": [round(float(value), 2) for value in objects.boxes_N4[row]],
    }
    if objects.quads_N8 is not None:
        found["quad"] = [round(float(value), 2) for value in objects.quads_N8[row]]
    if objects.masks is not None:
        found["pixels"] = int(objects.masks[row].sum())
    return found


def picture_of(prediction: GraphPrediction, least_score: float) -> Image.Image | None:
    """Return a class map as a grey picture, or of instances the number of each pixel's object, from 1; else None."""
    if prediction.classes_HW is not None:
        return Image.fromarray(prediction.classes_HW)
    objects = prediction.objects
    if objects is None or objects.masks is None:
        return None
    shown = [
        mask for mask, score in zip(objects.masks, objects.scores_N, strict=True) if score >= least_score
    ]
    if not shown:
        return None
    numbers_HW = np.zeros(shown[0].shape, np.uint16)
    for number, mask_HW in reversed(list(enumerate(shown, 1))):  # the surest last, on top
        numbers_HW[mask_HW] = number
    return Image.fromarray(numbers_HW)


def write_found(folder: Path, image: str, values: Mapping[str, Any], picture: Image.Image | None) -> None:
    """Write `NAME.json`, and `NAME.png` where there is a picture."""
    stem = Path(image).stem
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _put(folder / f"{stem}.json", (json.dumps(values, indent=1) + "\n").encode())
        if picture is not None:
            png = io.BytesIO()
            picture.save(png, format="PNG")
            _put(folder / f"{stem}.png", png.getvalue())
    except OSError as error:
        fix = "free some space, or check the path and its permissions"
        raise VitpError(f"can't be written ({error.strerror})", where=str(folder), fix=fix) from error


def _put(path: Path, content: bytes) -> None:
    """Write a file that is never there in half: the writers of `vitp.core.files` need packages that lack here."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def run_runtime(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 1 where some of the images can't be used, 2 where nothing can."""
    parser = argparse.ArgumentParser(prog="python -m vitp.runtime", description=__doc__)
    parser.add_argument("model", help="model.onnx, or the folder of an export")
    parser.add_argument("images", nargs="+", help="8-bit pictures, or .npy files of bands")
    parser.add_argument(
        "--later", action="append", help="change: images of the later date, in the same order"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for NAME.json and NAME.png; without it JSON is printed"
    )
    parser.add_argument("--score", type=float, help="objects with a lower score are left out")
    chosen = parser.parse_args(arguments)
    try:
        _check_names(chosen.images, chosen.later or [], chosen.out)
        model = open_graph(chosen.model)
        least = model.contract.shown_score if chosen.score is None else chosen.score
        bad = 0
        for image, found in predictions_of_files(model, chosen.images, chosen.later):
            if isinstance(found, DataError):
                bad += 1
                print(f"error: {found}", file=sys.stderr, flush=True)
                continue
            values = {"image": image, **described_prediction(model.contract, found, least)}
            if chosen.out is None:
                print(json.dumps(values), flush=True)
            else:
                write_found(chosen.out, image, values, picture_of(found, least))
    except VitpError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 2 if bad == len(chosen.images) else min(bad, 1)


def _check_names(images: Sequence[str], later: Sequence[str], out: Path | None) -> None:
    """Refuse to write where the file of an image would replace that of another, or an image itself."""
    if out is None:
        return
    stems = [Path(image).stem for image in images]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise VitpError(
            f"several images are called {twice[0]}, and their files would replace each other",
            where="--out",
            fix="name them in several commands, with folders of their own",
        )
    written = {(out / f"{stem}{suffix}").resolve() for stem in stems for suffix in (".json", ".png")}
    if lost := next((image for image in (*images, *later) if Path(image).resolve() in written), None):
        raise VitpError(
            f"{lost} would be replaced by what is found in it", where="--out", fix="name another folder"
        )


if __name__ == "__main__":
    sys.exit(run_runtime())
