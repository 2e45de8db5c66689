"""Which classes of a set are findings, so that "is anything abnormal" can be answered by its labels."""

from __future__ import annotations

import re
from dataclasses import replace

from vitp.core.errors import ConfigError, did_you_mean
from vitp.core.words import listed, spoken
from vitp.data.formats.walk import comma_list
from vitp.records.labels import LabelledSet

NO_FINDING = frozenset(
    {"normal", "healthy", "no finding", "no findings", "none", "negative", "benign", "background"}
)
"""Classes that say that nothing was found."""

_EVIDENT = re.compile(
    r"\b(lesions?|tumou?rs?|nodules?|cancers?|carcinomas?|metastas[ei]s|malignan\w*|cysts?|polyps?|fractures?|"
    r"ha?emorrhages?|ischa?emia|infarcts?|pneumonia|pneumothorax|effusions?|atelectasis|consolidations?|opacit\w+|"
    r"o?edema|aneurysms?|stenos[ei]s|covid\w*|abnormal\w*|patholog\w+|findings?)\b",
    re.IGNORECASE,
)
"""Words of names that are findings beyond doubt."""


def declare_findings(labelled: LabelledSet, named: str | list[str]) -> LabelledSet:
    """Return a set that says which of its classes are findings.

    Where nothing is named, those of a medical set are that have a word for a finding in their name; it is said which.

    Args:
        labelled: The set.
        named: Classes between commas; "none" for none; "" for those with evident names.

    Raises:
        ConfigError: There is no class of that name, or it says that nothing was found.
    """
    known = [name for names in labelled.class_lists for name in names]
    chosen = comma_list(named) or ()
    if not chosen:
        if not _is_medical(labelled):
            return labelled
        chosen = tuple(name for name in dict.fromkeys(known) if _EVIDENT.search(spoken(name)))
        if not chosen:
            return labelled
        how = f"by {'their names' if len(chosen) > 1 else 'its name'}; -o abnormal=… names others, or none"
    elif [name.casefold() for name in chosen] == ["none"]:
        return labelled
    else:
        how = "as -o abnormal says"
    for name in chosen:
        if name not in known:
            fix = did_you_mean(name, known) or f"classes are {', '.join(known)}"
            raise ConfigError(f'there is no class "{name}"', where="abnormal", fix=fix)
        if spoken(name).casefold() in NO_FINDING:
            raise ConfigError(
                f'"{name}" says that nothing was found', where="abnormal", fix="name the findings"
            )
    line = f"findings: {listed([spoken(name) for name in chosen])} ({how})"
    return replace(labelled, abnormal_classes=chosen, understood=(*labelled.understood, line))


def _is_medical(labelled: LabelledSet) -> bool:
    items = labelled.items
    return isinstance(items, list | tuple) and any(
        item.spacing is not None or "modality" in (item.metadata or {}) for item in items
    )
