"""`LabelledImage`: what every label format is read into. Synthesis, probes and tasks start from it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from vitp.core.errors import DataError
from vitp.records.channels import Channels
from vitp.records.instructions import printable, text_problem

SPLITS = ("train", "val", "test")
"""The splits of every set, in the order in which they are listed and written."""

IGNORE = 255
"""Value of a semantic mask's pixels that count for nothing."""

NOT_LABELLED = "not labelled"
"""Category of ignored places in which nobody looked for objects."""

BACKGROUND = "background"
"""Class of pixels of no other class; where only objects are labelled, of cells and patches without any."""


@dataclass(frozen=True, slots=True)
class ObjectLabel:
    """One object in pixels of its image.

    Attributes:
        category: Class name.
        box: x1, y1, x2, y2; x right, y down, x2 and y2 exclusive.
        quad: Corners of the oriented box, x1, y1, …, x4, y4, clockwise in the image.
        polygons: Outline as one or more rings x1, y1, x2, y2, …; several rings are the parts of one object.
        difficult: Hard to see, or a crowd of several objects: there is something of the class here, but it is
            neither learned, counted nor missed.
        holes: Rings that are cut out of `polygons`, in the same form.
    """

    category: str
    box: tuple[float, float, float, float]
    quad: tuple[float, ...] | None = None
    polygons: tuple[tuple[float, ...], ...] = ()
    difficult: bool = False
    holes: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One image, or two dates of one place, with all that is known of it.

    None means "not labelled", an empty tuple means "labelled, and there is none".

    Attributes:
        id: Unique within the set.
        image: Path or `scene:` address.
        width, height: Pixels.
        split: `train`, `val` or `test`.
        group: Images of one group must not be split (frames of a video, crops of one scene).
        objects: Boxes and the like: all that there are outside of `ignored`.
        ignored: Places of labels that can't be used, such as those of a class that the set doesn't know. What lies
            there may be of any class: it is neither an object nor background, and nothing is said to be absent,
            counted or listed in full. An image that lost a label without a place has no `objects` at all.
        scene: Class of the whole image.
        tags: Classes of the whole image where it may have several: those of the set's `scene_classes` that fit, and
            no others do, but for `unknown` ones.
        captions: Texts that describe the image.
        semantic: Reads the class of each pixel: (H, W) uint8, an index into the set's
            `semantic_classes`, 255 = ignore. A callable, so that masks stay on disk.
        second_image: The later date of a pair.
        change: Reads the change mask: (H, W) bool.
        later_objects: Objects of the second image; `objects`, `scene`, `captions` and `semantic` of a pair are
            those of the first.
        change_captions: Texts that describe the change.
        transition: Reads what became what: (2, H, W) uint8, the class of each pixel at the first and at the second
            date as an index into the set's `change_classes`, 255 where it isn't known.
        ground: What a pixel is on the ground, in metres: east and north of one pixel along x, east and north of one
            along y. None: not known.
        metadata: What else is known of how the image was taken (`sensor`, `date`, `later_date`, `season`, `region`;
            `dates` of a series, between commas; of medical images `modality`, `plane`, `body_part`, `laterality`,
            `window`). Never what could tell who a patient is.
        series: Further images of the same pixels on the ground, at later dates; what is labelled holds for all.
        spacing: Millimetres of a pixel along x and along y, of medical images. None: not known.
        thickness: Millimetres from one slice of a volume to the next.
        level: Where a slice lies in its volume, from 0 (the first) to 1 (the last).
        unknown: Classes of the whole image of which nobody said whether they fit; none of them is in `tags`.
        fold: Part of the set that it belongs to in cross-validation, from 0, where the publisher says so.
        held: Reads where the image, both dates of a pair, holds something, (H, W) bool; for images whose files no
            longer tell it, such as corrupted ones. None: the files tell.
    """

    id: str
    image: str
    width: int
    height: int
    split: str = "train"
    group: str = ""
    objects: tuple[ObjectLabel, ...] | None = None
    scene: str | None = None
    captions: tuple[str, ...] = ()
    semantic: Callable[[], np.ndarray] | None = None
    second_image: str | None = None
    change: Callable[[], np.ndarray] | None = None
    later_objects: tuple[ObjectLabel, ...] | None = None
    change_captions: tuple[str, ...] = ()
    ignored: tuple[ObjectLabel, ...] = ()
    tags: tuple[str, ...] | None = None
    transition: Callable[[], np.ndarray] | None = None
    ground: tuple[float, float, float, float] | None = None
    metadata: Mapping[str, str] | None = None
    series: tuple[str, ...] = ()
    spacing: tuple[float, float] | None = None
    thickness: float | None = None
    level: float | None = None
    unknown: tuple[str, ...] = ()
    fold: int | None = None
    held: Callable[[], np.ndarray | None] | None = None


@dataclass(frozen=True)
class PlaceSplit:
    """How the splits of images that lie on the ground are drawn.

    Attributes:
        val, test: Shares of the images.
        seed: Decides which blocks the shares get.
        block: Side of the blocks in metres; None: chosen from the extent.
        buffer: Metres that images of different splits are apart at least; 0: they don't touch.
    """

    val: float
    test: float
    seed: int
    block: float | None = None
    buffer: float = 0.0


@dataclass(frozen=True)
class LabelledSet:
    """A labelled data set as read from disk or generated.

    Attributes:
        name: Name of the set.
        items: Sequence of `LabelledImage`; may be lazy.
        object_classes: Names of the object classes, in the set's order.
        scene_classes: Names of the classes of whole images.
        semantic_classes: Names of the classes of `semantic`, in the order of its values.
        licence: As its publisher states it.
        findings: Lines about labels that were left out or mended while reading, each with file and row.
        understood: Lines about how the files were understood (readings that were chosen, where the splits come
            from), which `vitp data compile` prints first.
        channels: What is seen of the bands of its files; None: they are pictures.
        change_classes: Names of the classes of `transition`, in the order of its values.
        drawn: How the splits were drawn by place, so that crops are split likewise; None: they weren't.
        abnormal_classes: Those of the classes that are findings: where one is, something is abnormal.
        band_names: What the set calls the bands of its files, in their order, where the files call them by number.

    Raises:
        DataError: The name of a class holds half a character or a NUL.
    """

    name: str
    items: Sequence[LabelledImage]
    object_classes: tuple[str, ...] = ()
    scene_classes: tuple[str, ...] = ()
    semantic_classes: tuple[str, ...] = ()
    licence: str = ""
    findings: tuple[str, ...] = field(default=())
    understood: tuple[str, ...] = ()
    channels: Channels | None = None
    change_classes: tuple[str, ...] = ()
    drawn: PlaceSplit | None = None
    abnormal_classes: tuple[str, ...] = ()
    band_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in itertools.chain(*self.class_lists):
            if (problem := text_problem(name)) is not None:
                what = f"the class {printable(str(name))!r} {problem}"
                raise DataError(what, where=self.name, fix="rename it")
        for classes in self.class_lists:
            # Labels name their class: two of one name could not be told apart.
            if len(set(classes)) < len(classes):
                twice = next(name for number, name in enumerate(classes) if name in classes[:number])
                raise DataError(f'the class "{twice}" is named twice', where=self.name, fix="rename one")

    @property
    def class_lists(self) -> tuple[tuple[str, ...], ...]:
        """The names of all kinds of classes."""
        return self.object_classes, self.scene_classes, self.semantic_classes, self.change_classes

    def __len__(self) -> int:
        return len(self.items)

    def split(self, name: str) -> LabelledSet:
        """Return the items of one split."""
        return replace(self, items=[item for item in self.items if item.split == name])
