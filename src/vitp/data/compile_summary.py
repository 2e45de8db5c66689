"""What was compiled, in counts and words: `summary.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vitp.core.files import write_json
from vitp.core.version import __version__
from vitp.data.synthesis.constant import ConstantTask
from vitp.records.labels import LabelledImage

COMPILED_FORMAT = "vitp-compiled"
_LABELS = ("objects", "scene", "tags", "semantic", "change", "transition")
"""Fields of an image that are None where nobody labelled it; empty ones say that there is nothing."""


@dataclass
class SplitCounts:
    """What one split holds.

    Attributes:
        images: Labelled images.
        records: Instruction records; fewer than images when there was nothing to ask of some.
        unlabelled: Images without a record of which no label is known.
        turns: Questions.
        tasks: Questions of each task.
        objects: Objects of each class, difficult ones left out.
        scenes: Images of each scene class.
        unasked: Images of which there was nothing to ask.
    """

    images: int = 0
    records: int = 0
    unlabelled: int = 0
    turns: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    objects: Counter[str] = field(default_factory=Counter)
    scenes: Counter[str] = field(default_factory=Counter)
    unasked: int = 0

    def count(self, item: LabelledImage, records: Sequence[tuple[str, ...]]) -> None:
        """Add one image and the tasks that each of its records asks (none: nothing could be asked)."""
        self.images += 1
        self.objects.update(label.category for label in item.objects or () if not label.difficult)
        self.scenes.update(item.tags or () if item.scene is None else (item.scene,))
        for tasks in records:
            self.records += 1
            self.turns += len(tasks)
            self.tasks.update(tasks)
        if not records:
            self.unasked += 1
            told = any(getattr(item, name) is not None for name in _LABELS)
            self.unlabelled += not (told or item.captions or item.change_captions)


@dataclass(frozen=True)
class CompileSummary:
    """What was compiled.

    Attributes:
        name: Name of the set.
        out: Where it lies.
        fmt: Format that was read.
        licence: Licence of the data.
        seed: Seed of splits and questions.
        splits: Split → counts.
        findings: Lines about labels that were left out or mended, each with file and row.
        unasked: Images of which there was nothing to ask.
        constant: Tasks that were not asked, as nearly all images would give the same answer.
        content_hash: SHA-256 over the record and label lines of all splits, and the channels where there are any.
        understood: Lines about how the files were understood: classes, splits, what became of the labels.
    """

    name: str
    out: Path
    fmt: str
    licence: str
    seed: int
    splits: dict[str, SplitCounts]
    findings: tuple[str, ...]
    unasked: int
    content_hash: str
    constant: dict[str, ConstantTask] = field(default_factory=dict)
    understood: tuple[str, ...] = ()

    def write(self, out: Path, options: dict[str, Any]) -> None:
        """Write `self.json` into a compiled set, with the options that it was compiled with."""
        write_json(
            out / "summary.json",
            {
                "format": COMPILED_FORMAT,
                "vitp": __version__,
                "name": self.name,
                "label_format": self.fmt,
                "licence": self.licence,
                "seed": self.seed,
                "content_hash": self.content_hash,
                "unasked": self.unasked,
                "constant_tasks": {name: asdict(task) for name, task in self.constant.items()},
                "splits": {
                    split: {
                        key: dict(sorted(own.items())) if isinstance(own, Counter) else own
                        for key, own in vars(counts).items()
                        if key != "unasked"
                    }
                    for split, counts in self.splits.items()
                },
                "options": {name: str(v) if isinstance(v, Path) else v for name, v in options.items()},
                "understood": list(self.understood),
                "findings": list(self.findings),
            },
        )
