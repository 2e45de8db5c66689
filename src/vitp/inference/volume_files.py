"""Files of predicted volumes: label maps as NIfTI, objects and classes of slices, the table of volumes.

Shapes: K classes, N slices of H × W pixels, I × J × K voxels as the file has them.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitp.core.errors import DataError
from vitp.core.extras import need
from vitp.core.files import write_json, write_text
from vitp.inference.volumes import VolumePrediction
from vitp.io.volumes import Volume
from vitp.records.labels import BACKGROUND, IGNORE

_PLACED = (
    *(
        "qform_code",
        "sform_code",
        "quatern_b",
        "quatern_c",
        "quatern_d",
        "qoffset_x",
        "qoffset_y",
        "qoffset_z",
    ),
    *("srow_x", "srow_y", "srow_z", "xyzt_units"),
)
"""What of a NIfTI header tells where voxels lie. Nothing else of it is copied: its free text may name somebody."""
_SCANNER, _MILLIMETRES = 1, 2
"""NIfTI's codes: coordinates of the scanner, and their unit."""
_LARGEST_SIDE = 32_767
"""Of NIfTI-1."""

UNKNOWN_ROW = "(no data)"
"""In the table of volumes: voxels of which nothing is known."""


def write_nifti_labels(path: Path, volume: Volume, labels_IJK: np.ndarray) -> None:
    """Write the class of each voxel as NIfTI with the place of the volume, in its own order of voxels.

    Args:
        path: New file, `NAME.nii.gz`.
        volume: Volume that was seen.
        labels_IJK: uint8; read layer by layer.
    """
    _write(path, volume, labels_IJK[..., None], 1.0)


def write_nifti_shares(path: Path, volume: Volume, shares_IJKC: np.ndarray, scale: float) -> None:
    """Write bytes as NIfTI of four axes, the classes last.

    Args:
        path: New file, `NAME.nii.gz`.
        volume: Volume that was seen.
        shares_IJKC: uint8; read layer by layer.
        scale: Probability of a value of 1.
    """
    _write(path, volume, shares_IJKC, scale)


def _write(path: Path, volume: Volume, values_IJKC: np.ndarray, scale: float) -> None:
    nibabel = need("medical", "nibabel", str(path))
    header = _header(nibabel, volume, values_IJKC.shape)
    header["scl_slope"], header["scl_inter"] = scale, 0
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a name and a time in its head, so that equal maps are equal files.
    with nibabel.openers.Opener(str(path), "wb") as file:
        header.write_to(file)
        # Zeros are written up to the voxels: nothing can seek in a file that is being compressed.
        nibabel.volumeutils.seek_tell(file, header.get_data_offset(), write0=True)
        for category in range(values_IJKC.shape[3]):
            for k in range(values_IJKC.shape[2]):
                # NIfTI's first axis runs fastest.
                file.write(values_IJKC[:, :, k, category].tobytes(order="F"))


def _header(nibabel: Any, volume: Volume, shape: tuple[int, ...]) -> Any:
    """Return a header with the place of a volume: the source's own numbers where it is NIfTI."""
    source = _nifti_header(nibabel, volume)
    # NIfTI-1 has 348 bytes of header, in which a side has 16 bits.
    wide = max(shape) > _LARGEST_SIDE or (source is not None and len(source.binaryblock) > 348)
    header = nibabel.Nifti2Header() if wide else nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape if shape[3] > 1 else shape[:3])
    if source is not None:
        for name in _PLACED:
            header[name] = source[name]
        header["pixdim"][:4] = source["pixdim"][:4]
    else:
        spacing = volume.grid.spacing
        header["pixdim"][1:4] = spacing or (1, 1, 1)
        header["xyzt_units"] = _MILLIMETRES if spacing is not None else 0
        if volume.grid.affine is not None:
            affine_44 = np.array(volume.grid.affine)
            header.set_sform(affine_44, code=_SCANNER)
            # Without it where a quaternion can't say what the matrix does: of sheared voxels.
            header.set_qform(affine_44, code=_SCANNER, strip_shears=True)
            if not np.allclose(header.get_qform(), affine_44, atol=1e-3):
                header["qform_code"] = 0
    header["vox_offset"] = header.single_vox_offset
    return header


def _nifti_header(nibabel: Any, volume: Volume) -> Any:
    """Return the header of a NIfTI file; None for other kinds."""
    if not volume.source:
        return None
    try:
        image = nibabel.load(volume.source[0])
    except (OSError, nibabel.filebasedimages.ImageFileError):
        return None
    header = image.header
    return header if isinstance(header, nibabel.Nifti1Header) else None


def class_counts(prediction: VolumePrediction) -> list[list[Any]]:
    """Return class, voxels and millilitres of a finished class map, a row for each class but the background."""
    classes, voxel = prediction.model.classes, prediction.volume.grid.voxel_ml
    counts_V = np.zeros(256, np.int64)
    for number in range(prediction.shape[0]):
        counts_V += np.bincount(prediction.class_slice(number).ravel(), minlength=256)
    wanted = [(name, int(counts_V[n])) for n, name in enumerate(classes) if name != BACKGROUND]
    if counts_V[IGNORE]:
        wanted.append((UNKNOWN_ROW, int(counts_V[IGNORE])))
    return [[name, count, None if voxel is None else round(count * voxel, 6)] for name, count in wanted]


def write_volumes_csv(path: Path, rows: Mapping[str, Sequence[Sequence[Any]]]) -> None:
    """Write the table of volumes: case, class, voxels, millilitres (empty where the spacing isn't known).

    Args:
        path: New file.
        rows: Case → rows as `class_counts` returns them.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "class", "voxels", "ml"])
    for case, of_case in rows.items():
        for name, count, millilitres in of_case:
            writer.writerow([case, name, count, "" if millilitres is None else f"{millilitres:.6g}"])
    write_text(path, text.getvalue())


_OBJECT_COLUMNS = (
    *("slice", "plane", "class", "score", "x1", "y1", "x2", "y2"),
    *("i1", "j1", "k1", "i2", "j2", "k2", "x_mm", "y_mm", "z_mm", "width_mm", "height_mm"),
)


def write_objects(out: Path, name: str, prediction: VolumePrediction) -> int:
    """Write the objects of all slices as `NAME.json` and `NAME.csv`; return how many there are.

    Boxes in pixels are x1, y1, x2, y2 of the slice as it is looked at; in voxels they reach from i1, j1, k1 up to i2,
    j2, k2, as edges: voxel 5 covers 5 … 6. The centre is in millimetres of the world (RAS+), where that is known.

    Args:
        out: Folder of the objects.
        name: Name of the files.
        prediction: Finished.
    """
    grid, plane = prediction.volume.grid, prediction.plane
    rows = list(_placed_objects(prediction))
    spacing = grid.slice_spacing(plane)
    content = {
        "coordinates": "boxes in pixels of the slice (x right, y down) and in voxels, from edge to edge; "
        "centres in mm, RAS+",
        "plane": plane,
        "slices": prediction.shape[0],
        "slice_size": [prediction.shape[2], prediction.shape[1]],
        "slice_spacing_mm": None if spacing is None else [round(value, 6) for value in spacing],
        "classes": list(prediction.model.classes),
        "objects": rows,
    }
    write_json(out / f"{name}.json", content)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_OBJECT_COLUMNS)
    for row in rows:
        head = [row["slice"], plane, row["class"], row["score"]]
        centre, size = row["centre_mm"] or [""] * 3, row["size_mm"] or [""] * 2
        writer.writerow([*head, *row["box_px"], *row["box_voxels"], *centre, *size])
    write_text(out / f"{name}.csv", text.getvalue())
    return len(rows)


def _placed_objects(prediction: VolumePrediction) -> Iterator[dict[str, Any]]:
    grid, plane = prediction.volume.grid, prediction.plane
    spacing = grid.slice_spacing(plane)
    for number in range(prediction.shape[0]):
        for found in prediction.slice_values(number):
            x1, y1, x2, y2 = found["box_px"]
            # Edges of pixels; whole numbers are centres in the grid.
            corners_23 = np.array([[number - 0.5, y1 - 0.5, x1 - 0.5], [number + 0.5, y2 - 0.5, x2 - 0.5]])
            voxels_23 = grid.voxels_of(corners_23, plane)
            low_3, high_3 = voxels_23.min(0) + 0.5, voxels_23.max(0) + 0.5
            centre = None
            if grid.affine is not None:
                centre = [
                    round(float(value), 3) for value in grid.to_world(voxels_23.mean(0, keepdims=True))[0]
                ]
            size = None
            if spacing is not None:
                size = [round((x2 - x1) * spacing[2], 3), round((y2 - y1) * spacing[1], 3)]
            rest = {key: found[key] for key in ("quad_px", "mask") if key in found}
            yield {
                "slice": number,
                "class": found["class"],
                "score": found["score"],
                "box_px": found["box_px"],
                "box_voxels": [round(float(value), 3) for value in (*low_3, *high_3)],
                "centre_mm": centre,
                "size_mm": size,
                **rest,
            }


def volume_classes(prediction: VolumePrediction) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, K) probabilities of the slices, and (K,) those of the volume: see `aggregate_words`.

    Slices that hold nothing have NaN, and say nothing of their volume.

    Raises:
        DataError: None holds anything.
    """
    nothing = [math.nan] * len(prediction.model.classes)
    found = [prediction.slice_values(number) for number in range(prediction.shape[0])]
    slices_NK = np.array([nothing if values is None else values for values in found])
    known_NK = slices_NK[~np.isnan(slices_NK).all(1)]
    if not len(known_NK):
        what = "holds nothing but padding or nodata, so it has no class"
        raise DataError(what, where=prediction.volume.where, fix="leave it out")
    whole_K = known_NK.max(0) if _any_slice(prediction) else known_NK.mean(0)
    return slices_NK, whole_K


def aggregate_words(prediction: VolumePrediction) -> str:
    """Return how the classes of slices become those of the volume."""
    if _any_slice(prediction):
        return "of a volume the largest probability of its slices counts: one slice that shows something is enough"
    return "of a volume the mean of its slices' probabilities counts"


def _any_slice(prediction: VolumePrediction) -> bool:
    return bool(prediction.model.description.get("head", {}).get("multi_label"))


def write_slices_csv(path: Path, plane: str, slices_NK: np.ndarray, classes: Sequence[str]) -> None:
    """Write the surest class and the probabilities of each slice; neither of one that holds nothing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slice", "plane", "class", *classes])
    for number, probability_K in enumerate(slices_NK):
        if np.isnan(probability_K).all():
            writer.writerow([number, plane, "", *[""] * len(classes)])
            continue
        values = [f"{value:.5f}" for value in probability_K]
        writer.writerow([number, plane, classes[int(probability_K.argmax())], *values])
    write_text(path, text.getvalue())
