"""What a study is: cells that depend on each other, and what is to be read from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Any

from vitp.core.errors import ConfigError

Fact = str | int | float | None


@dataclass(frozen=True)
class Cell:
    """One piece of work.

    Attributes:
        name: Unique within the study, such as `pretrain/ViTP/starter/images/0`.
        kind: Which work: a key of `vitp.studies.work.WORK`.
        settings: All that decides the result, as JSON values; what it is cached by.
        needs: Role → name of the cell whose result is needed.
        places: Folders of this machine. They don't decide the result.
        facts: What the result is evidence of (`arm`, `group`, `x`, `seed`, `draw`, `set`, `task`): for tables only.
        keep: Files or folders (in the cell's own) that must be there when it counts as done.
        tolerant: Runs with those needs that did not fail, as long as there is one.
        pace: Name of the work whose seconds a unit are about the same; empty: it takes no time worth telling.
        units: Of that work.
    """

    name: str
    kind: str
    settings: Mapping[str, Any]
    needs: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Fact] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    tolerant: bool = False
    pace: str = ""
    units: float = 0.0


@dataclass(frozen=True)
class Claim:
    """Something that the paper says and the study can test.

    Attributes:
        text: The claim, in one sentence.
        ours: Arm that is said to be better,
        theirs: than this one.
        group: Within which group of arms.
        lower: True when it is said to be lower (a drop, a cost).
        metric: The one that it is about; none: all main ones.
    """

    text: str
    ours: str
    theirs: str
    group: str
    lower: bool = False
    metric: str = ""


@dataclass(frozen=True)
class Study:
    """A grid of cells with its question.

    Attributes:
        name: As the command line takes it.
        title: As the page shows it.
        question: What it is to answer, and where the paper does.
        cells: In any order.
        claims: What the paper says.
        ours: The arm that is compared with the others.
        x_label: What `facts["x"]` is, for studies of one number; empty: arms are names.
        information: Arm → the label information it used.
        notes: Sentences that belong beside the results (what is equal, what is not).
    """

    name: str
    title: str
    question: str
    cells: tuple[Cell, ...]
    claims: tuple[Claim, ...] = ()
    ours: str = "ViTP"
    x_label: str = ""
    information: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ordered(self.cells)

    def __getitem__(self, name: str) -> Cell:
        """Return the cell of a name."""
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Cell]:
        return {cell.name: cell for cell in self.cells}


def ordered(cells: Iterable[Cell]) -> list[Cell]:
    """Return the cells so that each comes after those it needs; cells given first come first where they may.

    Raises:
        ConfigError: Two have the same name, one needs an unknown one, or they need each other in a circle.
    """
    by_name: dict[str, Cell] = {}
    for cell in cells:
        if cell.name in by_name:
            raise ConfigError("two cells have this name", where=cell.name, fix="give each its own")
        by_name[cell.name] = cell
    for cell in by_name.values():
        for need in cell.needs.values():
            if need not in by_name:
                raise ConfigError(f'needs "{need}", which is not in the study', where=cell.name)
    sorter = TopologicalSorter({name: list(cell.needs.values()) for name, cell in by_name.items()})
    try:
        sorter.prepare()
    except CycleError as error:
        raise ConfigError(f"cells need each other: {' → '.join(error.args[1])}", where="study") from None
    place = {name: number for number, name in enumerate(by_name)}
    result: list[Cell] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=place.__getitem__)
        result += [by_name[name] for name in ready]
        sorter.done(*ready)
    return result
