"""`vitp data check`: everything that can be wrong with instruction data, found before a run, not during it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path

from vitp.core.errors import DataError
from vitp.core.reading import read_json
from vitp.data.check_patients import MedicalFiles, shared_patients, torn_patients, whole_of
from vitp.data.check_report import CheckReport, Finding, Severity, SourceCount
from vitp.data.formats.places import known_geometry, neighbours, on_one_plane
from vitp.data.formats.vitp_labels import SET_FILE
from vitp.data.image_hash import HASH_DISTANCE, ImagePrint, alike_pairs, as_compared, image_print, in_threads
from vitp.data.readers.rows import row_id
from vitp.data.row_checks import (
    CONTROL_TOKENS,
    NO_IMAGE,
    NO_IMAGE_FIX,
    Neglected,
    coordinate_problems,
    text_findings,
)
from vitp.data.sources import Source, open_sources
from vitp.io.contract import Geometry
from vitp.io.images import image_size, is_scene, undeclared
from vitp.records.channels import PICTURE, Channels
from vitp.records.instructions import COORDINATE_RANGE, InstructionRecord, printable

LengthOf = Callable[[InstructionRecord, int | None], int]
"""(record, most tiles of its set or None) → tokens."""


def check_records(
    source: str | Path,
    *,
    max_tokens: int | None = None,
    length_of: LengthOf | None = None,
    control: Sequence[str] | None = None,
    against: str | Path | None = None,
    leak_distance: int = HASH_DISTANCE,
    buffer: float = 0.0,
    threads: int | None = None,
) -> CheckReport:
    """Check an annotation file, a mixture or a compiled folder, and go on after whatever is broken.

    Every row is parsed, every image decoded once (generated scenes only by their address), answers' and
    regions' coordinates are read, ids and pictures compared, and what a compilation left out is told again.
    Pictures are compared between splits, and with those of `against`; the same address or equal pixels on both
    sides are an error, a picture that is alike a warning. Repeats inside of a split are counted in one line.
    Memory: about 1.3 kB an image, 100 B a row.

    Args:
        source: Data to check.
        max_tokens: Longest row that the run takes. Needs `length_of`.
        length_of: Tokens of a record, images included, given the most tiles of its set where a mixture says so.
        control: Control tokens of the tokenizer, longest first; None: those of all chat templates.
        against: Held-out data, of any kind that `source` may be, that must not share pictures with it.
        leak_distance: Bits in which the 64-bit hashes of two images may differ, 0..15.
        buffer: Metres that georeferenced images of different splits are apart at least; 0: they share no ground.
        threads: Number of threads that decode images; twice the cores by default, 16 at most.

    Returns:
        The findings; broken data is no exception here.
    """
    if (max_tokens is None) != (length_of is None):
        raise ValueError("max_tokens and length_of go together")
    report = CheckReport()
    control = CONTROL_TOKENS if control is None else control
    checked = [_Checked(item) for item in _open(source, report)]
    other = [_Checked(item, held_out=True) for item in _open(against, report)] if against is not None else []
    facts: _Facts = {}
    for item in checked + other:
        _check_rows(item, None if item.held_out else length_of, max_tokens, control)
        new = (address for address in item.users if address not in facts)
        facts.update(in_threads(_image_facts, new, threads=threads, block=256))
        _check_images(item, facts)
    for folder in dict.fromkeys(_folder_of(item.source) for item in checked):
        _repeat_findings(folder, report)
    _find_neglected(checked)
    _find_patients(checked, other)
    _find_leaks(checked, other, facts, leak_distance)
    _find_neighbours(checked, other, facts, buffer)
    _find_repeats(checked, facts, leak_distance)
    for item in checked:
        report.findings.extend(sorted(item.findings, key=lambda finding: finding.line))
    report.sources = [item.count() for item in checked]
    return report


@dataclass(frozen=True, slots=True)
class _ImageFacts:
    """What is known of an image: size, its print unless it is generated, its bands, and where it lies.

    A picture has no bands.
    """

    size: tuple[int, int]
    print: ImagePrint | None
    bands: tuple[str, ...] | None = None
    geometry: Geometry | None = None


_Facts = dict[str, _ImageFacts | DataError]
"""Address of an image → what is known of it, or why it can't be read."""


@dataclass
class _Checked:
    """A source while it is checked.

    Attributes:
        source: The source.
        held_out: It is only compared with; its rows are not judged.
        findings: Findings so far.
        bad_rows: Rows that have an error.
        users: Address of an image → each row that names it, and the size that the row states.
        neglected: Usable rows without an image, and with a system text that is dropped.
    """

    source: Source
    held_out: bool = False
    findings: list[Finding] = field(default_factory=list)
    bad_rows: set[int] = field(default_factory=set)
    users: dict[str, list[tuple[int, tuple[int, int] | None]]] = field(default_factory=dict)
    neglected: Neglected = field(init=False)

    def __post_init__(self) -> None:
        self.neglected = Neglected(self.source.name, len(self.source.records))

    def add(self, severity: Severity, kind: str, row: int, what: str, fix: str | None) -> None:
        """Note a finding about a row."""
        records = self.source.records
        if severity == "error":
            self.bad_rows.add(row)
        if not self.held_out:
            place = records.place(row)
            try:
                name = printable(row_id(records.row(row), place))
            except DataError:
                name = ""
            self.findings.append(Finding(severity, kind, place.file, place.line, name, what, fix or ""))

    def add_for_file(self, severity: Severity, kind: str, what: str, fix: str) -> None:
        """Note a finding about the whole source."""
        self.findings.append(Finding(severity, kind, str(self.source.records.annotation), 0, "", what, fix))

    def add_for_image(self, severity: Severity, kind: str, address: str, what: str, fix: str | None) -> None:
        """Note a finding about an image: shown at the first row that names it, counted for all of them."""
        rows = [row for row, _ in self.users[address]]
        others = f" (and in {_number(len(set(rows)) - 1, 'other row')})" if len(set(rows)) > 1 else ""
        self.add(severity, kind, rows[0], what + others, fix)
        if severity == "error":
            self.bad_rows.update(rows)

    def place(self, address: str) -> str:
        """Return file and line of the first row that names an image."""
        return str(self.source.records.place(self.users[address][0][0]))

    def count(self) -> SourceCount:
        """Return the numbers of the report's table."""
        source, rows = self.source, len(self.source.records)
        return SourceCount(source.name, source.split, rows, rows - len(self.bad_rows), len(self.users))


def _open(path: str | Path, report: CheckReport) -> list[Source]:
    sources, errors = open_sources(path)
    for error in errors:
        report.findings.append(
            Finding("error", "file", error.where or str(path), 0, "", error.what, error.fix or "")
        )
    for source in sources:
        if not len(source.records) and source.split == "train":  # a compiled set may lack val and test
            file = str(source.records.annotation)
            report.findings.append(
                Finding("error", "file", file, 0, "", "holds no rows", "fill it or leave it out")
            )
    return sources


def _folder_of(source: Source) -> Path | None:
    """Return the folder of a source's file where `vitp data compile` made it."""
    folder = Path(source.records.annotation).parent
    return folder if (folder / SET_FILE).is_file() else None


def _repeat_findings(folder: Path | None, report: CheckReport) -> None:
    """Add what the compilation left out, ignored or mended: whoever checks a set may not have compiled it."""
    if folder is None:
        return
    try:
        found = read_json(folder / SET_FILE).get("findings", [])
    except (OSError, ValueError, AttributeError) as error:
        what = f"can't be read ({error})"
        report.findings.append(
            Finding("error", "file", str(folder / SET_FILE), 0, "", what, "compile the labels again")
        )
        return
    for line in found:
        where, _, what = str(line).partition(": ")
        fix = "mend the labels and compile again, unless it is meant"
        report.findings.append(Finding("warning", "labels", where, 0, "", what or where, fix))


def _check_rows(
    item: _Checked, length_of: LengthOf | None, max_tokens: int | None, control: Sequence[str]
) -> None:
    """Read every row: form, id, coordinates, length; and remember which images it names."""
    records, first_of_id = item.source.records, dict[str, int]()
    for row in range(len(records)):
        try:
            record = records[row]
            length = length_of(record, item.source.max_tiles) if length_of is not None else 0
        except DataError as error:
            item.add("error", "row", row, error.what, error.fix)
            continue
        earlier = first_of_id.setdefault(record.id, row)
        if earlier != row:
            line = records.place(earlier).line
            item.add("warning", "duplicate id", row, f"line {line} has the same id", "give each row its own")
        item.neglected.add(record, records.row(row))
        for kind, what, fix in text_findings(record, control):
            item.add("warning", kind, row, what, fix)
        for severity, what in coordinate_problems(record):
            fix = f"write whole numbers on 0..{COORDINATE_RANGE} of the image, x1 < x2 and y1 < y2"
            item.add(severity, "coordinates", row, what, fix)
        if max_tokens is not None and length > max_tokens:
            what = f"{length:,} tokens, {max_tokens:,} fit"
            item.add(
                "error", "length", row, what, "shorten or split the row, or use fewer tiles or a longer pack"
            )
        for number, address in enumerate(record.images):
            size = record.sizes[number] if record.sizes else None
            item.users.setdefault(address, []).append((row, size))


def _image_facts(address: str) -> _ImageFacts | DataError:
    try:
        if is_scene(address):
            return _ImageFacts(image_size(address), None)
        image, digest, bands = as_compared(address)
        return _ImageFacts(image.size, image_print(image, digest), bands, known_geometry(address))
    except DataError as error:
        return error


def _check_images(item: _Checked, facts: _Facts) -> None:
    for address, users in item.users.items():
        found = facts[address]
        if isinstance(found, DataError):
            what = found.what if (found.where or "") == "" else f"{found.where}: {found.what}"
            item.add_for_image("error", "image", address, what, found.fix)
            continue
        if (unseen := _unseen(found.bands, item.source.channels, address)) is not None:
            item.add_for_image("error", "bands", address, unseen.what, unseen.fix)
        wrong = [(row, stated) for row, stated in users if stated is not None and stated != found.size]
        if wrong:
            row, (width, height) = wrong[0]
            more = f" (and in {_number(len(wrong) - 1, 'other row')})" if len(wrong) > 1 else ""
            what = f"the row says {width}×{height}, the image is {found.size[0]}×{found.size[1]}{more}"
            item.add("warning", "size", row, what, "correct width and height, or leave them out")


def _unseen(bands: tuple[str, ...] | None, channels: Channels | None, where: str) -> DataError | None:
    """Return why the bands of a file can't be seen by what its set declares; None: they can."""
    if channels is None:
        return None if bands is None else undeclared(where)
    try:
        channels.check_bands(PICTURE.bands if bands is None else bands, where=where)
    except DataError as error:
        return error
    return None


def _find_neglected(checked: Sequence[_Checked]) -> None:
    """Count the rows without an image and those whose system text is dropped, once for each source."""
    trained = [item for item in checked if item.source.split == "train" and item.neglected.looked_at]
    blind = bool(trained) and all(item.neglected.has_no_image for item in trained)
    for item in checked:
        for kind, what, fix in item.neglected.lines():
            if kind == "no image" and item.source.split != "train":
                continue
            if kind == "no image" and blind:
                item.add_for_file("error", kind, NO_IMAGE, NO_IMAGE_FIX)
            else:
                item.add_for_file("warning", kind, what, fix)


def _find_leaks(checked: Sequence[_Checked], other: Sequence[_Checked], facts: _Facts, distance: int) -> None:
    """Compare the pictures of each two splits; findings stand at the split that comes first."""
    between = [(a, b) for a, b in combinations(checked, 2) if a.source.split != b.source.split]
    for left, right in [*between, *product(checked, other)]:
        side = right.source.split if not right.held_out else "held-out data"
        slices: Counter[tuple[str, str]] = Counter()
        for mine, its, same in _common_pictures(left, right, facts, distance):
            volumes = whole_of(mine), whole_of(its)
            if volumes[0] is not None and volumes[1] is not None and mine != its:
                slices[volumes[0], volumes[1]] += 1
                continue
            twin = f"{right.place(its)}, {Path(its).name}"
            severity: Severity = "error" if same else "warning"
            what = f"{Path(mine).name} is {'the same as' if same else 'nearly the same as'} a picture of {side} ({twin})"
            left.add_for_image(severity, "leak", mine, what, "keep a picture and its like in one split")
        blanks = [{f.digest: a for a, f in _prints(one.users, facts) if f.blank} for one in (left, right)]
        if common := sorted(blanks[0].keys() & blanks[1].keys()):
            example = Path(blanks[0][common[0]]).name
            what = f"images of one colour are in {left.source.split} and in {side}, {example} for example"
            left.add_for_file("info", "blank", what, "nothing, if they are empty crops or slices")
        _find_alike_volumes(left, slices, side)


def _find_alike_volumes(left: _Checked, slices: Counter[tuple[str, str]], side: str) -> None:
    """Note volumes of which half of the slices look like slices of one volume of the other side: few always do."""
    own = Counter(whole for address in left.users if (whole := whole_of(address)) is not None)
    for (mine, its), count in slices.items():
        if 2 * count >= own[mine] > 1:
            address = next(address for address in left.users if whole_of(address) == mine)
            what = f"{count} of {own[mine]} slices of {Path(mine).name} look like those of {Path(its).name} in {side}"
            left.add_for_image("warning", "leak", address, what, "keep a volume and its like in one split")


def _find_patients(checked: Sequence[_Checked], other: Sequence[_Checked]) -> None:
    """Find patients, studies, volumes and slides in two splits, or on both sides of held-out data."""
    files = {id(item): MedicalFiles(item.users) for item in (*checked, *other)}
    fix = (
        "compile again by patient (the default, or -o patient=…), and keep all sets of a patient in one split"
    )
    between = [(a, b) for a, b in combinations(checked, 2) if a.source.split != b.source.split]
    for left, right in [*between, *product(checked, other)]:
        side = right.source.split if not right.held_out else "held-out data"
        name = f"{side} of {right.source.name}" if right.source.name not in (side, left.source.name) else side
        for found in shared_patients(files[id(left)], files[id(right)], name):
            left.add_for_image("error", found.kind, found.address, found.what, fix)
    for folder in dict.fromkeys(_folder_of(item.source) for item in checked):
        for patient, sides in () if folder is None else torn_patients(folder):
            item = next(item for item in checked if item.source.split == sides[0])
            item.add_for_file("error", "patient", f"{patient} is in {' and '.join(sides)}", fix)


def _find_neighbours(
    checked: Sequence[_Checked], other: Sequence[_Checked], facts: _Facts, buffer: float
) -> None:
    """Count the images on the ground that come too near to one of another split; one line for each two splits."""
    placed = [
        (item, address, (found.geometry, found.size))
        for item in (*checked, *other)
        for address in item.users
        if isinstance(found := facts[address], _ImageFacts) and found.geometry is not None
    ]
    if len({id(item) for item, _, _ in placed}) < 2:
        return
    sides = [item.source.name + ("against" if item.held_out else item.source.split) for item, _, _ in placed]
    near: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for pair in neighbours(on_one_plane([place for _, _, place in placed]), sides, buffer):
        one, two = sorted(pair, key=lambda number: (placed[number][0].held_out, number))
        left, right = placed[one][0], placed[two][0]
        if right.held_out or left.source.split != right.source.split:
            near.setdefault((id(left), id(right)), []).append((one, two))
    for pairs in near.values():
        left, right = placed[pairs[0][0]][0], placed[pairs[0][1]][0]
        side = "held-out data" if right.held_out else right.source.split
        images = len({one for one, _ in pairs})
        verb, end = ("lie", " nearer than {buffer:g} m to") if buffer else ("share", " ground with")
        how = f"{verb}{'s' * (images == 1)}{end.format(buffer=buffer)}"
        count = _number(images, "image")
        first, second = (Path(placed[number][1]).name for number in pairs[0])
        what = f"{count} of {left.source.split} {how} images of {side}, {first} with {second} for example"
        fix = (
            "compile again without given splits: they are drawn by place (-o buffer=METRES keeps them apart)"
        )
        left.add_for_file("warning", "neighbour", what, fix)


def _common_pictures(
    left: _Checked, right: _Checked, facts: _Facts, distance: int
) -> Iterator[tuple[str, str, bool]]:
    """Yield (address on the left, its twin on the right, they are exactly equal), once for each on the left."""
    shared = left.users.keys() & right.users.keys()
    yield from ((address, address, True) for address in left.users if address in shared)
    mine = [(a, p) for a, p in _prints(left.users, facts) if a not in shared and not p.blank]
    its = [(a, p) for a, p in _prints(right.users, facts) if not p.blank]
    twins: dict[int, int] = {}
    for i, j in alike_pairs([p for _, p in mine], [p for _, p in its], distance):
        # An equal twin says more than an earlier one that is only alike.
        if i not in twins or mine[i][1].digest == its[j][1].digest != its[twins[i]][1].digest:
            twins[i] = j
    for i, j in sorted(twins.items()):
        yield mine[i][0], its[j][0], mine[i][1].digest == its[j][1].digest


def _prints(addresses: Iterable[str], facts: _Facts) -> list[tuple[str, ImagePrint]]:
    found = ((address, facts[address]) for address in addresses)
    return [(a, f.print) for a, f in found if isinstance(f, _ImageFacts) and f.print is not None]


def _find_repeats(checked: Sequence[_Checked], facts: _Facts, distance: int) -> None:
    """Count the pictures that come again under another name in the same source."""
    for item in checked:
        prints = _prints(item.users, facts)
        values = [p for _, p in prints]
        pairs = [(i, j) for i, j in alike_pairs(values, values, distance) if i < j]
        if pairs:
            first, second = (Path(prints[i][0]).name for i in pairs[0])
            again = _number(len({j for _, j in pairs}), "image")
            repeat = "repeats" if again.startswith("1 ") else "repeat"
            what = f"{again} nearly {repeat} another one of the same file, {second} for example {first}"
            fix = "nothing, if they are frames of a video, slices of a volume, overlapping crops or pairs of dates"
            item.add_for_file("info", "repeat", what, fix)


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
