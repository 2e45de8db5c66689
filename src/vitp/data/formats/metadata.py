"""How images were taken: sensor, date, season, region and ground resolution, from a table beside them or their tags.

`metadata.csv`, `.tsv`, `.json` or `.jsonl` in the set's folder has a column of the images and any of these:

| known as | columns and tags, in any case |
|---|---|
| sensor | sensor, satellite, platform, instrument, camera, mission |
| date | date, datetime, acquired, acquisition_date, capture_date, timestamp, … |
| later_date | later_date, date_2, date2, second_date (of pairs) |
| season | season |
| region | region, country, city, location, place |
| ground resolution | ground_resolution, gsd, metres_per_pixel |

A season follows from date and latitude outside of the tropics.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vitp.core.errors import DataError
from vitp.data.formats.places import known_geometry
from vitp.data.formats.tables import IMAGE_KEYS, find_key, first_table_rows, raw_rows, refuse_doubles
from vitp.data.formats.walk import within
from vitp.io.ground import centre_lonlat, file_tags
from vitp.io.parts import base_address
from vitp.records.labels import LabelledImage, LabelledSet

_FILES = ("metadata.csv", "metadata.tsv", "metadata.json", "metadata.jsonl")
_COLUMNS = {
    "sensor": ("sensor", "satellite", "platform", "instrument", "camera", "mission"),
    "date": (
        *(
            "date",
            "datetime",
            "acquired",
            "acquisition_date",
            "acquisitiondate",
            "acquisition_time",
            "date_acquired",
        ),
        *("acquisitiondatetime", "capture_date", "capture_time", "sensing_time", "timestamp"),
    ),
    "later_date": ("later_date", "date_2", "date2", "second_date", "date_after"),
    "season": ("season",),
    "region": ("region", "country", "city", "location", "place"),
    "resolution": ("ground_resolution", "gsd", "metres_per_pixel", "meters_per_pixel"),
}
_DATE = re.compile(r"(\d{4})[-:/.]?(\d{2})[-:/.]?(\d{2})(?![\d.])")
_TROPICS = 23.5
_LONGEST = 100
"""Characters of a value that is told in a question."""


def with_metadata(labelled: LabelledSet, root: Path) -> LabelledSet:
    """Return a set whose images have what tables and tags say of how they were taken; a line says what that is.

    Args:
        labelled: As it was read.
        root: Its folder or file.

    Raises:
        DataError: The table can't be read.
    """
    if not isinstance(labelled.items, list | tuple):  # generated ones
        return labelled
    base = root if root.is_dir() else root.parent
    reading = _Reading(base)
    items = [reading.completed(item) for item in labelled.items]
    if not reading.found:
        return labelled
    said = ", ".join(f"{key} of {count:,} images" for key, count in sorted(reading.found.items()))
    where = f" ({reading.table.name})" if reading.table is not None else ""
    findings = [f"metadata: {line}" for line in reading.findings]
    return replace(
        labelled,
        items=items,
        understood=(*labelled.understood, f"known{where}: {said}"),
        findings=(*labelled.findings, *findings),
    )


@dataclass
class _Reading:
    """The table of a set while its images are completed from it.

    Attributes:
        base: Folder of the set.
        table: The file, where there is one.
        rows: Name of an image, with or without suffix or folders → its row.
        found: Key → images that got a value.
        findings: What can't be used.
    """

    base: Path
    table: Path | None = None
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.table = next((self.base / name for name in _FILES if (self.base / name).is_file()), None)
        head = first_table_rows(self.table, 1) if self.table is not None else []
        key = find_key(head[0], IMAGE_KEYS) if head else None
        if self.table is None or key is None:
            self.table = None
            return
        for _, row in raw_rows(self.table):
            refuse_doubles(row, (key,))
            name = str(row.get(key) or "").strip()
            for known in (name, Path(name).stem):
                self.rows.setdefault(known, row)

    def completed(self, item: LabelledImage) -> LabelledImage:
        """Return an image with what is known of it."""
        path = Path(base_address(item.image))
        row = next(
            (self.rows[n] for n in (within(path, self.base), path.name, path.stem) if n in self.rows), {}
        )
        values = _values(file_tags(path)) | _values(row)
        for key in ("date", "later_date"):
            if key in values:
                date = _date(values.pop(key))
                if date is None:
                    self._note(f"{path.name}: its {key} has no one reading; write it as 2024-05-31")
                else:
                    values[key] = date
        known = {**values, **(item.metadata or {})}
        ground = self._ground(item, known.pop("resolution", None), path.name)
        if "season" not in known and "date" in known and (season := _season(item.image, known["date"])):
            known["season"] = season
        for key in (*known, *(("ground resolution",) if ground != item.ground else ())):
            self.found[key] = self.found.get(key, 0) + 1
        return replace(item, metadata=known, ground=ground) if known or ground != item.ground else item

    def _ground(
        self, item: LabelledImage, told: str | None, name: str
    ) -> tuple[float, float, float, float] | None:
        """Return the size of a pixel; that of the file itself goes before what a table says."""
        if told is None or item.ground is not None:
            return item.ground
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:m|metres?|meters?)?", told.strip())
        metres = float(match[1]) if match else 0.0
        if not 0 < metres < 1e6:
            self._note(f'{name}: the ground resolution "{told[:40]}" is no number of metres; not used')
            return None
        return metres, 0.0, 0.0, -metres

    def _note(self, line: str) -> None:
        self.findings.append(line)


def _values(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the values of a row or of tags under the names that are known."""
    found = {}
    for name, columns in _COLUMNS.items():
        key = find_key(dict(row), columns)
        refuse_doubles(row, filter(None, (key,)))
        text = " ".join(str(row[key]).split()) if key is not None and row[key] is not None else ""
        if (
            text
            and len(text) <= _LONGEST
            and text.lower() not in ("nan", "none", "null", "n/a", "unknown", "-")
        ):
            found[name] = text
    return found


def _date(text: str) -> str | None:
    """Return a date as 2024-05-31, None where it has no one reading."""
    match = _DATE.match(text)
    if match is None:
        return None
    year, month, day = (int(part) for part in match.groups())
    return f"{year:04}-{month:02}-{day:02}" if 1 <= month <= 12 and 1 <= day <= 31 and year > 1800 else None


def _season(address: str, date: str) -> str | None:
    """Return the meteorological season of a date at an image's latitude, None in the tropics or without a place."""
    geometry = known_geometry(address)
    if geometry is None:
        return None
    try:
        latitude = centre_lonlat(geometry, (1, 1))[1]
    except DataError:
        return None
    if not abs(latitude) >= _TROPICS:
        return None
    quarter = (int(date[5:7]) % 12) // 3 + (2 if latitude < 0 else 0)
    return ("winter", "spring", "summer", "autumn")[quarter % 4]
