"""What the page of a study says that deciding would take: repeats and hours, also of a study that is not finished."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vitp.studies.effort import effort_of, undecided_claims
from vitp.studies.grid import Claim
from vitp.studies.results import Row, compared, read_claim

GROUP, MEASURE = "equal images", ("port", "segmentation", "miou")
CLAIM = Claim("ViTP beats MAE.", "ViTP", "MAE", GROUP)


def row(arm: str, seed: int, draw: int, value: float | None, images: int = 100) -> Row:
    """A finetuning of 60 seconds of a run of 600."""
    return Row(
        study="toy",
        scale="micro",
        group=GROUP,
        arm=arm,
        x=None,
        init="start",
        set="port",
        task="segmentation",
        metric="" if value is None else "miou",
        main=True,
        seed=seed,
        draw=draw,
        value=value,
        images=images,
        flops=1.0,
        seconds=600.0 if images else 1.0,
        evaluation_seconds=None if value is None else 60.0,
        status="open" if value is None else "done",
        message="",
        cell="",
    )


def arm_rows(arm: str, values: np.ndarray, images: int = 100) -> list[Row]:
    return [row(arm, seed, draw, float(value), images) for (seed, draw), value in np.ndenumerate(values)]


def table(lead: float, shape: tuple[int, int] = (3, 3), seed: int = 0) -> list[Row]:
    """Rows of two arms whose difference has this mean and a spread of about one point."""
    noise = np.random.default_rng(seed).normal(0, 0.01, shape)
    return arm_rows("ViTP", 0.3 + lead + noise - noise.mean()) + arm_rows("MAE", np.full(shape, 0.3))


def test_an_undecided_claim_says_repeats_and_hours() -> None:
    rows = table(0.004)
    found = compared(rows, GROUP, "ViTP", "MAE", MEASURE)
    assert found is not None and found.verdict == "no evidence"
    effort = effort_of(rows, GROUP, "ViTP", "MAE", MEASURE)
    assert effort is not None and effort.needed is not None and effort.seen is not None
    seeds, draws = effort.needed
    assert (effort.seeds, effort.draws) == (3, 3) and seeds >= 3 and draws >= 3 and seeds * draws > 9
    assert effort.difference == pytest.approx(0.004) and effort.seen > 0.004
    # Two arms: the runs of further seeds, and all finetunings but the nine of each that are there.
    assert effort.seconds == pytest.approx(2 * (600 * (seeds - 3) + 60 * (seeds * draws - 9)))
    assert effort.repeats == f"{seeds} seeds × {draws} draws" and effort.time is not None
    text, shown = undecided_claims(rows, [read_claim(rows, CLAIM)])
    assert "Undecided are 1 of 1 claims; 1 of them would be decided within a day" in text.markdown()
    assert (
        f"| ViTP beats MAE. | port: segmentation mIoU | +0.4 | {100 * effort.seen:.1f} (3 seeds × 3 draws) |"
        in (shown.markdown())
    )


def test_with_a_margin_a_claim_is_level_or_says_what_would_make_it_so() -> None:
    near = table(0.0005)
    claimed = read_claim(near, CLAIM, 0.02)
    assert (claimed.answer, claimed.level, claimed.undecided) == ("level", (MEASURE,), ())
    assert undecided_claims(near, [claimed], 0.02) == []
    # Within a narrower margin it isn't yet; a few draws would do, where showing the difference takes months.
    open_still = read_claim(near, CLAIM, 0.005)
    assert open_still.answer == "cannot tell" and open_still.deciding == (MEASURE,)
    shown, level = (effort_of(near, GROUP, "ViTP", "MAE", MEASURE, margin) for margin in (0.0, 0.005))
    assert shown is not None and level is not None and shown.seconds is not None and level.seconds is not None
    assert level.seconds < 0.1 * shown.seconds and level.needed is not None
    text = undecided_claims(near, [open_still], 0.005)[1].markdown()
    assert f"| {level.needed[0]} seeds × {level.needed[1]} draws |" in text


def test_frozen_features_show_a_difference_and_do_not_hold_up_a_level_claim() -> None:
    near = table(0.0005)
    frozen = [replace(one, task="frozen: patches linear") for one in table(0.012, seed=5)]
    both = read_claim([*near, *frozen], CLAIM, 0.02)
    assert both.answer == "level" and len(both.undecided) == 1 and both.deciding == ()
    shown = [replace(one, task="frozen: patches linear") for one in table(0.2)]
    assert read_claim([*near, *shown], CLAIM, 0.02).answer == "agrees"
    # Without a finetuned task the frozen ones decide, all of them.
    assert read_claim(frozen, CLAIM, 0.02).answer == "cannot tell"
    # Two finetuned tasks are level together or not at all, and the dearer one says what it takes.
    other = [replace(one, task="detection", metric="AP50") for one in table(0.004, seed=5)]
    waiting = read_claim([*near, *other], CLAIM, 0.005)
    assert waiting.answer == "cannot tell" and len(waiting.deciding) == 2
    efforts = [effort_of([*near, *other], GROUP, "ViTP", "MAE", one, 0.005) for one in waiting.deciding]
    dearer = max(one.seconds or 0 for one in efforts if one is not None)
    assert efforts[1] is not None and dearer == efforts[1].seconds
    said = undecided_claims([*near, *other], [waiting], 0.005)[1].markdown()
    assert "| port: detection AP50 | +0.4 |" in said and efforts[1].repeats in said


def test_more_than_a_day_is_said() -> None:
    small = effort_of(table(0.0005), GROUP, "ViTP", "MAE", MEASURE)
    assert small is not None and small.needed is not None and small.seconds is not None
    assert small.seconds > 86_400 and str(small.time).endswith(", more than a day of this machine")
    tiny = effort_of(table(1e-6), GROUP, "ViTP", "MAE", MEASURE)
    assert tiny is not None and tiny.needed is None and tiny.repeats == "> 1000 seeds or draws"
    assert str(tiny.time).startswith("> ") and "more than a day of this machine" in str(tiny.time)
    rows = table(1e-6)
    text, _ = undecided_claims(rows, [read_claim(rows, CLAIM)])
    assert "Undecided are 1 of 1 claims; 0 of them" in text.markdown()


def test_what_was_not_pretrained_costs_its_finetunings_alone() -> None:
    noise = np.random.default_rng(1).normal(0, 0.01, (3, 3))
    rows = arm_rows("ViTP", 0.305 + noise - noise.mean()) + arm_rows("MAE", np.full((1, 3), 0.3), images=0)
    effort = effort_of(rows, GROUP, "ViTP", "MAE", MEASURE)
    assert effort is not None and effort.needed is not None
    seeds, draws = effort.needed
    trained = 600 * (seeds - 3) + 60 * (seeds * draws - 9)
    assert effort.seconds == pytest.approx(trained + 60 * (draws - 3))


def test_seeds_with_a_draw_of_their_own_need_seeds() -> None:
    effort = effort_of(table(0.005, (3, 1)), GROUP, "ViTP", "MAE", MEASURE)
    assert effort is not None and effort.needed is not None and effort.needed[1] == 1
    assert effort.repeats == f"{effort.needed[0]} seeds"
    assert effort.seconds == pytest.approx(2 * 660 * (effort.needed[0] - 3))


def test_a_study_that_is_not_finished_says_what_is_known() -> None:
    rows = table(0.004)
    later = [one for one in rows if (one.seed, one.draw) not in ((2, 1), (2, 2))]
    effort, whole = (effort_of(some, GROUP, "ViTP", "MAE", MEASURE) for some in (later, rows))
    assert effort is not None and whole is not None and effort.seen is not None and whole.seen is not None
    seeds, draws = effort.needed or (0, 0)
    assert effort.seconds == pytest.approx(2 * (600 * (seeds - 3) + 60 * (seeds * draws - 7)))
    # A run whose finetunings are open is paid for already.
    opened = [*(one for one in rows if one.seed < 2), *(row(arm, 2, 0, None) for arm in ("ViTP", "MAE"))]
    two = effort_of(opened, GROUP, "ViTP", "MAE", MEASURE)
    assert two is not None and two.seen is None and two.needed is not None
    assert two.seconds == pytest.approx(2 * (600 * (two.needed[0] - 3) + 60 * (np.prod(two.needed) - 6)))
    # One seed knows no spread: the fewest that decide, and what is missing of them.
    one = effort_of([r for r in rows if r.seed == 0], GROUP, "ViTP", "MAE", MEASURE)
    assert one is not None and one.needed is None and one.seen is None
    assert one.repeats.startswith("3 seeds or more") and one.seconds == pytest.approx(2 * (2 * 600 + 6 * 60))
    # One arm alone: there is nothing to compare yet, which is said.
    alone = [r for r in rows if r.arm == "ViTP"]
    assert effort_of(alone, GROUP, "ViTP", "MAE", MEASURE) is None
    text, shown = undecided_claims(alone, [read_claim(alone, CLAIM)])
    assert "1 have too few seeds to tell." in text.markdown()
    assert "no seed of both arms is there yet" in shown.markdown()


def test_the_measure_that_is_nearest_to_a_verdict_stands_for_a_claim() -> None:
    far, near = table(0.0005), [replace(one, task="detection") for one in table(0.006)]
    rows = [*far, *near]
    _, shown = undecided_claims(rows, [read_claim(rows, CLAIM)])
    assert "| ViTP beats MAE. | port: detection mIoU | +0.6 |" in shown.markdown()
    decided = table(0.05)
    assert undecided_claims(decided, [read_claim(decided, CLAIM)]) == []
