"""What the commands print."""

from __future__ import annotations

import pytest

from vitp.cli.output import MOST_KINDS, print_findings


def test_a_finding_that_is_made_once_does_not_hide_behind_many_of_another_kind(
    capsys: pytest.CaptureFixture[str],
) -> None:
    units = [f"images/case{k}.nii.gz: doesn't say its unit; millimetres are taken" for k in range(1200)]
    boxes = [f'a.json: row {k}: box [{k}, 2.5, 3, -1.] of "c{k}" is empty; left out' for k in range(2)]
    files = [f"set: scan {k}.png and masks/{k} ä.png differ in size; left out" for k in range(2)]
    print_findings(
        [*units, "case7.nii.gz: the mask is of another shape; left out", *boxes, *files], "findings"
    )
    assert capsys.readouterr().out.splitlines() == [
        "1,205 findings:",
        f"  {units[0]} (and 1,199 more like it)",
        "  case7.nii.gz: the mask is of another shape; left out",
        f"  {boxes[0]} (and 1 more like it)",
        f"  {files[0]} (and 1 more like it)",
    ]


def test_what_is_not_shown_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    print_findings([f"set: kind {'x' * k} of a fault" for k in range(MOST_KINDS + 3)], "rows were left out")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == MOST_KINDS + 2
    assert lines[-1] == "  and 3 more of other kinds"
    print_findings([], "findings")
    assert not capsys.readouterr().out
