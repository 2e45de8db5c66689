"""The train, val and test images of one run of a cross-validation; see `vitp.data.folds`."""

from __future__ import annotations

from dataclasses import replace

from vitp.data.folds import as_fold
from vitp.records.labels import LabelledSet
from vitp.tasks.base import LabelKind
from vitp.tasks.data import is_labelled, labelled_only, task_splits


def fold_splits(
    labelled: LabelledSet, kind: LabelKind, fold: tuple[int, int], *, choose: bool = False
) -> tuple[dict[str, LabelledSet], str]:
    """Return train, val and test of a fold, and a line that says what they are.

    Images without labels of the kind are in no fold.

    Args:
        labelled: The set.
        kind: Kind of the labels.
        fold: How many there are, and which one is the test, from 0.
        choose: The best weights are chosen on val, which then is a fifth of the other groups; else val is the test.

    Raises:
        ConfigError: There is no such fold, or there are too few groups.
        DataError: No image has such labels.
    """
    pool = replace(labelled, items=[item for item in labelled.items if is_labelled(item, kind)])
    folded, line = as_fold(pool if len(pool) else labelled_only(labelled, kind), *fold)
    if choose:
        line += "; the best weights are chosen on a fifth of the other groups"
        return task_splits(folded, kind), line
    parts = {"train": folded.split("train"), "val": folded.split("test"), "test": folded.split("test")}
    return task_splits(parts, kind), line
