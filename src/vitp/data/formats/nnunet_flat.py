"""nnU-Net's sets of 2-D images (`imagesTr/a_0000.png`, `labelsTr/a.png`): what their `dataset.json` says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats.builder import SetBuilder
from vitp.data.formats.mask_layouts import MaskLayout
from vitp.data.formats.nnunet import DATASET_FILE, FOLDS_FILE, DatasetHead, dataset_head, published_folds
from vitp.io.open_pixels import open_pixels
from vitp.records.labels import IGNORE

_FOLDER = "imagestr"
_RASTERS = (".tif", ".tiff")


def apply_dataset_file(builder: SetBuilder, layout: MaskLayout, fold: int) -> str | None:
    """Take what `dataset.json` says of masks in nnU-Net's folders; return its classes as "name=value,…".

    The splits become those of `splits_final.json`; without it, and without masks of another split, they are drawn.

    Args:
        builder: Takes lines, findings and names of bands.
        layout: The images with their masks; its entries get their splits.
        fold: Fold of `splits_final.json` whose val cases are the split val.

    Returns:
        The classes, or None where the set isn't nnU-Net's.

    Raises:
        DataError: The file can't be understood.
        ConfigError: There is no such fold.
    """
    entries = layout.entries
    if not entries or any(
        entry.image.parent.name.lower() != _FOLDER for entry in entries if entry.split == "train"
    ):
        return None
    head = dataset_head(builder.root)
    if head is None:
        return None
    builder.understand(f"{DATASET_FILE}: names of the values")
    for text in head.doubts([entry.masks[0].name for entry in entries]):
        builder.note(DATASET_FILE, text)
    _tell_channels(builder, head, entries[0].image)
    _take_splits(builder, layout, fold)
    names, pairs, said = head.painted()
    for line in said:
        builder.understand(line)
    if odd := [name for name in names if "," in name or "=" in name]:
        fix = "rename it, or name the classes with -o classes=NAME=VALUE,…"
        raise DataError(f'has a label with "," or "=" in its name ({odd[0]})', where=str(head.path), fix=fix)
    return ",".join(f"{'ignore' if place == IGNORE else names[place]}={value}" for value, place in pairs)


def _tell_channels(builder: SetBuilder, head: DatasetHead, image: Path) -> None:
    if not head.channels:
        return
    with open_pixels(str(image)) as pixels:
        count = len(pixels.bands)
    listed = ", ".join(head.channels)
    if count != len(head.channels):
        text = f"names {len(head.channels)} channels ({listed}), but {builder.place(image)} has {count}"
        builder.note(DATASET_FILE, f"{text}; the names aren't used")
        return
    builder.understand(f"channels: {listed}")
    if image.suffix.lower() in _RASTERS:
        builder.band_names = head.band_names


def _take_splits(builder: SetBuilder, layout: MaskLayout, fold: int) -> None:
    entries = layout.entries
    if not any(entry.split in ("val", "test") for entry in entries):
        entries = [replace(entry, split=None) for entry in entries]
    lists = published_folds(builder.root)
    if lists and not builder.options.splits:
        if not 0 <= fold < len(lists):
            fix = f"folds count from 0 to {len(lists) - 1}"
            raise ConfigError(f"there is no fold {fold}", where="fold", fix=fix)
        cases = {entry.masks[0].stem for entry in entries}
        if unknown := sorted({name for own in lists for name in own} - cases):
            builder.lose(FOLDS_FILE, f"{unknown[0]} is no case of the set", absent=True)
        entries = [replace(one, split=lists[fold].get(one.masks[0].stem, one.split)) for one in entries]
        builder.splits_from = f"{FOLDS_FILE}, fold {fold} of 0–{len(lists) - 1} (-o fold=…)"
    layout.entries = entries
