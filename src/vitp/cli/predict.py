"""`vitp predict`: a finetuned model on images, rasters and volumes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from vitp.cli.options import TaskRun, TestOverride
from vitp.cli.output import make_console, print_lines
from vitp.cli.panels import USE
from vitp.core.errors import ConfigError

if TYPE_CHECKING:
    pass


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("predict", rich_help_panel=USE)(predict_command)


_Later: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--later", help="Change: images of the later date, in the same order. Repeatable."),
]
_Vector: TypeAlias = Annotated[
    Literal["gpkg", "parquet", "geojson", "none"],
    typer.Option("--vector", help="Rasters: file of polygons; geojson is in longitude and latitude."),
]
_Probabilities: TypeAlias = Annotated[
    bool,
    typer.Option("--probabilities", help="Rasters and volumes: also write the probability of each class."),
]
_Format: TypeAlias = Annotated[
    Literal["nifti", "dicom-seg"],
    typer.Option(
        "--format",
        help="Volumes: label maps are NIfTI; dicom-seg also writes DICOM-SEG of DICOM series, with the patient's name "
        "and the study as the standard demands.",
    ),
]
_Resolution: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--resolution", min=1e-4, max=1e6, help="Rasters: side in metres of a pixel that the model sees."
    ),
]
_Mpp: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--mpp",
        min=0,
        max=1000,
        help="Slides: side in micrometres of a pixel that the model sees; 0: the slide's own.",
    ),
]
_AllTiles: TypeAlias = Annotated[
    bool, typer.Option("--all-tiles", help="Slides: also look where there is no tissue.")
]
_Resume: TypeAlias = Annotated[
    bool, typer.Option("--resume", help="Continue where the same command was stopped.")
]
_Positions: TypeAlias = Annotated[
    Literal["none", "d4"] | None,
    typer.Option("--tta", help="d4: look at every window in all eight positions of a square."),
]
_Pictures: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--pictures",
        help="Also draw large inputs: rasters of more than 4, pictures of more than 32 million pixels.",
    ),
]


_Tool: TypeAlias = Annotated[
    Literal["label-studio", "cvat", "coco"] | None,
    typer.Option(
        "--for", help="Also write tasks of an annotation tool with what was found, the most uncertain first."
    ),
]
_Url: TypeAlias = Annotated[
    str,
    typer.Option(
        "--image-url",
        help="With --for label-studio: address to put before the images' names, as in s3://bucket/.",
    ),
]


def _url(url: str, tool: str | None) -> str:
    if url and tool != "label-studio":
        raise ConfigError("is for Label Studio alone", where="--image-url", fix="add --for label-studio")
    return url


def predict_command(
    run: TaskRun,
    images: Annotated[list[str], typer.Argument(help="Images, rasters, volumes, or folders of them.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the predictions.")],
    later: _Later = None,
    vector: _Vector = "gpkg",
    probabilities: _Probabilities = False,
    fmt: _Format = "nifti",
    resolution: _Resolution = None,
    mpp: _Mpp = None,
    all_tiles: _AllTiles = False,
    tta: _Positions = None,
    pictures: _Pictures = False,
    tool: _Tool = None,
    image_url: _Url = "",
    override: TestOverride = None,
    resume: _Resume = False,
    force: Annotated[bool, typer.Option("--force", help="Replace earlier predictions in --out.")] = False,
) -> None:
    """Apply a finetuned model to images, rasters, slides and volumes; write maps, polygons, masks, boxes, pictures.

    Images that can't be read are named first and left out; the exit code is then 1.
    """
    from vitp.core import distributed
    from vitp.core.targets import check_folder
    from vitp.evaluation.robustness_comparison import open_model
    from vitp.inference.prediction_files import check_complete, is_predictions, predict_files
    from vitp.inference.raster_files import MapOptions
    from vitp.inference.unfinished import is_unfinished

    complete = resume and not force and is_predictions(out) and not is_unfinished(out)
    if not complete:
        check_folder(out, is_predictions, what="predictions", overwrite=force)

    model, settings = open_model(run, [*(override or []), *([f"tta={tta}"] if tta else [])])
    seen = (resolution, mpp, not all_tiles, fmt)
    options = MapOptions(vector, probabilities, pictures, *seen, tool or "", _url(image_url, tool))
    if complete:
        check_complete(model, images, out, settings, later=later, options=options)
        print_lines([f"{out} is complete, there is nothing to resume"])
        return
    count, unusable = predict_files(
        model,
        images,
        out,
        settings,
        later=later,
        overwrite=force,
        resume=resume,
        options=options,
        tell=lambda one: print_lines([f"can't be used: {one.image}: {one.reason}"]),
        say=lambda note: print_lines([note]),
    )
    if distributed.rank() == 0:
        left = f"; {len(unusable)} of {count + len(unusable)} images left out" if unusable else ""
        make_console().print(f"wrote predictions of {count} images to {out}{left}")
    if unusable:
        raise typer.Exit(1)
