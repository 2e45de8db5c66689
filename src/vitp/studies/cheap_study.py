"""The study of cheap labels for an expensive task: all images have the first, few have the second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from vitp.checkpoints.loading import load_backbone
from vitp.core.errors import ConfigError
from vitp.studies.arms import arms_of, information_of, packaged_arms, untrained_arm, vitp_arm
from vitp.studies.cheap import CHEAP_QUESTIONS
from vitp.studies.grid import Claim, Study
from vitp.studies.planner import Arm, StudyPlanner
from vitp.studies.scales import EXPENSIVE_TASKS
from vitp.studies.sources import StudySource, crop_limits, extra_scenes, questions, usable_shares

CHEAP_VITP, CEILING_VITP = "ViTP, cheap instructions", "ViTP, all instructions (ceiling)"
REHEARSED_VITP = "ViTP, cheap instructions and general scenes"
_FEW = 0.1
"""Up to this share of the labels, draws differ and arms are compared at equal operations, too."""


def cheap_labels_study(plan: StudyPlanner) -> Study:
    """Pretrain on cheap labels of all images, finetune on the expensive ones of a few."""
    scale = plan.scale
    plan.sources, said = _prepared(plan)
    arms, claims = _compared(plan), []
    ours, untrained = arms[CHEAP_VITP], untrained_arm("start")
    shares, too_few = usable_shares(plan.sources, scale.shares, scale.most_draws)
    said += too_few
    for budget in scale.budgets:
        words = {"images": "equal images", "flops": "equal operations"}[budget]
        for share in shares:
            if budget == "flops" and share > _FEW:
                continue
            group = f"{100 * share:g} % of the expensive labels, {words}"
            draws = scale.draws if share <= _FEW else scale.side_draws
            for tune in (untrained, *arms.values()):
                matched = budget == "flops" and tune not in (ours, untrained)
                arm = replace(tune, equal=ours, tuned_as=tune) if matched else tune
                for seed in plan.seeds(arm, draws):
                    run, facts = plan.pretrained(arm, seed), plan.facts(arm, group, seed, 100 * share)
                    # Probes do not depend on the share of the labels: one share has them.
                    if share == shares[0]:
                        plan.probed(run, {**facts, "group": f"frozen features, {words}"})
                    labels = None if share == 1 else share
                    plan.finetuned(run, facts, tasks=EXPENSIVE_TASKS, labels=labels, tune=tune, draws=draws)
            claims += [
                Claim(f"{words_of} beats {other} ({group}).", tested, other, group)
                for tested, words_of in _cheap_vitps(arms).items()
                for other in (untrained.name, *arms)
                if other not in (*_cheap_vitps(arms), CEILING_VITP)
            ]
    return Study(
        "cheap-labels",
        "Cheap labels, expensive task",
        "All training images have cheap labels (which objects are there, how many, one caption), few have expensive "
        "ones (boxes, masks): does pretraining on the cheap ones help, and which?",
        tuple(plan.cells.values()),
        claims=tuple(claims),
        ours=CHEAP_VITP,
        information=_told(plan, arms),
        notes=(
            *said,
            *_of_rehearsal(scale.rehearsal),
            *_of_language(scale.smollm2_layers),
            "Cheap labels are made of the expensive ones: class, tags and captions of the image, and which objects "
            "there are, how many. Where they are is taken away before anything learns from them.",
            f"Questions of the cheap instructions: {', '.join(CHEAP_QUESTIONS)}. The ceiling also knows every box and "
            "mask of all images, which nobody has in this setting: it is no rival.",
            "Equal images: every arm sees as many. Equal operations: each run is as long as that of ViTP on cheap "
            "instructions is expensive.",
            "Rates: as many values are tried for each arm, on seed 1000, on validation images. Detectors have one rate "
            "for all arms.",
        ),
        said=said,
    )


def _prepared(plan: StudyPlanner) -> tuple[tuple[StudySource, ...], tuple[str, ...]]:
    """Return the sets with the same questions for everybody, large images cut, and what is said of that."""
    found: list[StudySource] = []
    said: list[str] = []
    scale = plan.scale
    for source in plan.sources:
        if source.side is not None:
            side, whole = load_backbone(scale.start).image_size[0], source.side
            crop = side if whole >= scale.whole_up_to * side else None
            limits = crop_limits(source, side, scale.empty, scale.scored_crops) if crop else {}
            if crop:
                said.append(
                    f"{source.name}: images of about {whole} px are cut into crops of {crop} px at full resolution; "
                    "classes and captions of whole images are not those of crops and are left out."
                )
            elif whole > side:
                said.append(f"{source.name}: images of about {whole} px are seen whole, at {side} px.")
            if "empty" in limits:
                said.append(
                    f"{source.name}: more than half of the training crops hold no object; so many are left out that "
                    f"they are {scale.empty:.0%} of the training crops at most."
                )
            if "scored_crops" in limits:
                said.append(
                    f"{source.name}: of validation and of test images so many are drawn as give {scale.scored_crops:,} "
                    "crops, with and without objects."
                )
            source = source.asking(f"crops-{crop}" if crop else "all", questions(), crop, limits)
        found.append(source)
    tested = [task for source in found for task in source.tasks if task in EXPENSIVE_TASKS]
    if not any(task in scale.downstream for task in tested):
        raise ConfigError(
            "has no expensive labels (boxes or masks) of a task of `downstream`",
            where=", ".join(source.name for source in found),
            fix="choose a set with boxes or masks",
        )
    return tuple(found), tuple(said)


def _compared(plan: StudyPlanner) -> dict[str, Arm]:
    """Return name → arm at equal images, ViTP on cheap instructions first."""
    cheap = tuple(source.cheap() for source in plan.sources)
    vitp = vitp_arm(plan.scale.vrl)
    found = [replace(vitp, name=CHEAP_VITP, sources=cheap)]
    for paradigm, arm in arms_of(plan.scale, "start").items():
        if paradigm != "vitp":
            found.append(replace(arm, sources=cheap) if paradigm in ("supervised", "clip") else arm)
    if plan.scale.rehearsal:
        general = extra_scenes(plan.scale, "general", plan.scale.rehearsal)
        found.append(replace(vitp, name=REHEARSED_VITP, sources=(*cheap, general)))
    # Trained weights alone: random ones of the same shape are a question of the study of language models.
    for arm, _ in packaged_arms(plan.scale)[::2]:
        found.append(replace(arm, name=f"{CHEAP_VITP}, {arm.name}", sources=cheap))
    found.append(replace(vitp, name=CEILING_VITP))
    return {arm.name: arm for arm in found}


def _cheap_vitps(arms: Mapping[str, Arm]) -> dict[str, str]:
    """Return arm → what claims call it, of those that are ViTP on cheap instructions."""
    return {
        name: name.replace(CHEAP_VITP, "ViTP on cheap instructions")
        for name in arms
        if name.startswith(CHEAP_VITP)
    }


def _of_rehearsal(share: float) -> tuple[str, ...]:
    if not share:
        return ()
    return (
        f"General scenes: {100 * share:g} % of the images of that arm are generated scenes of the general domain, on "
        "which the starter was trained, with all their questions; it sees as many images as the others, and so fewer "
        "of the set.",
    )


def _of_language(layers: Sequence[int]) -> tuple[str, ...]:
    if not layers:
        return ()
    return (
        "SmolLM2-135M-Instruct, cut to its first layers, stands behind the start's ViT with its trained weights and a new "
        "projector; the starter's own language model has seen no text beyond its instructions.",
    )


def _told(plan: StudyPlanner, arms: dict[str, Arm]) -> dict[str, str]:
    known, cheap = (
        information_of(plan.scale),
        "class of the image, one caption, which objects are there, how many",
    )
    rehearsed = f"{cheap}; of general scenes all labels"
    return {
        **{name: rehearsed if name == REHEARSED_VITP else cheap for name in _cheap_vitps(arms)},
        **{name: known[name] for name in arms if name in known},
        CEILING_VITP: known["ViTP"],
        untrained_arm("start").name: known[untrained_arm("start").name],
    }
