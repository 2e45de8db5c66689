"""The studies of the paper, each a function from a planner to a grid of cells with claims.

Command: `vitp study NAME --scale micro --out studies` (resumable); with `--data FOLDER` on your own images. Studies
share their cells: pretraining runs of `paradigms` are not run again for `cost`, `data-efficiency` or `robustness`.
Hardware: two processor cores for a night; `--quick` in less than half an hour, which proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vitp.checkpoints.loading import vlm_folder
from vitp.checkpoints.tensors import WEIGHTS
from vitp.core.errors import ConfigError, did_you_mean
from vitp.core.files import sha256
from vitp.studies.arms import (
    BUDGET_GROUPS,
    CONTINUED,
    VITP_ARM,
    arms_of,
    block_parameters,
    information_of,
    packaged_arms,
    untrained_arm,
    vitp_arm,
)
from vitp.studies.cheap_study import cheap_labels_study
from vitp.studies.grid import Claim, Study
from vitp.studies.planner import StudyPlanner
from vitp.studies.scales import Scale
from vitp.studies.sources import extra_scenes, questions, study_sources, usable_shares


def paradigms_study(plan: StudyPlanner) -> Study:
    """Compare ways of pretraining at equal images seen and at equal operations (figure 2, tables 3–9)."""
    scale = plan.scale
    claims = []
    for init in scale.inits:
        by_name, untrained = arms_of(scale, init), untrained_arm(init)
        draws = scale.draws if init == "start" else None
        for budget in scale.budgets:
            group = BUDGET_GROUPS[init, budget]
            for name, tune in {**by_name, "": untrained}.items():
                # Operations are matched to ViTP's, so its own run is the same in both groups.
                matched = budget == "flops" and name not in ("vitp", "")
                arm = replace(tune, changes=(), equal=by_name["vitp"], tuned_as=tune) if matched else tune
                for seed in plan.seeds(arm, draws):
                    run, facts = plan.pretrained(arm, seed), plan.facts(arm, group, seed)
                    plan.probed(run, facts)
                    plan.finetuned(run, facts, tune=tune, draws=draws)
            others = [arm.name for arm in (*by_name.values(), untrained) if arm.name != VITP_ARM]
            claims += [Claim(f"ViTP beats {other} ({group}).", VITP_ARM, other, group) for other in others]
    if "start" in scale.inits:
        # All labels and longer: this ceiling shows what the few labels leave to gain.
        for arm in (untrained_arm("start"), *(() if scale.quick else (arms_of(scale, "start")["vitp"],))):
            for seed in plan.seeds(arm):
                facts = plan.facts(arm, "ceiling, all labels", seed)
                plan.finetuned(plan.pretrained(arm, seed), facts, labels=None, tune=arm)
    return Study(
        "paradigms",
        "Paradigms of pretraining",
        "Is ViTP better than supervised, masked-image, image-image and image-text pretraining at the same images "
        "seen, and at the same operations? (figure 2, tables 3–9)",
        tuple(plan.cells.values()),
        claims=tuple(claims),
        information=information_of(scale),
        notes=(
            "Equal images: every paradigm is shown as many images, however many crops or views it makes of each; "
            "ViTP's alignment phase counts. Equal operations: each run is as long as its ViTP run is expensive, "
            "forward and backward.",
            "ViTP continues the whole vision-language model, the others only its ViT: the language model is part of "
            "the paradigm, as in the paper.",
            "Rates: the same number of values is tried for each paradigm, on seed 1000, by frozen probes on "
            "validation images; finetuning rates likewise, by validation scores. Test images choose nothing.",
        ),
    )


def vrl_ratio_study(plan: StudyPlanner) -> Study:
    """Measure quality and cost at 0, 25, 50, 75 and 90 % dropped image tokens (figure 6)."""
    names = {ratio: f"{100 * ratio:.0f} % dropped" for ratio in (0.0, 0.25, 0.5, 0.75, 0.9)}
    for ratio, name in names.items():
        plan.tested(vitp_arm(ratio, name, tuned_as=vitp_arm(0.75)), CONTINUED, 100 * ratio)
    start = untrained_arm("start")
    plan.probed(plan.pretrained(start, 0), plan.facts(start, CONTINUED, 0))
    return Study(
        "vrl-ratio",
        "Share of dropped image tokens",
        "Does dropping image tokens help the ViT, and what does it save? (figure 6: 52.8 at 0 %, peak 54.6 at 75 %, "
        "54.3 at 90 %)",
        tuple(plan.cells.values()),
        claims=(
            Claim("75 % is better than 0 %.", names[0.75], names[0.0], CONTINUED),
            Claim("75 % is better than 25 %.", names[0.75], names[0.25], CONTINUED),
            Claim("90 % is still better than 0 %.", names[0.9], names[0.0], CONTINUED),
        ),
        ours=names[0.75],
        x_label="image tokens dropped (%)",
        information={"all": information_of(plan.scale)[VITP_ARM]},
        notes=("One learning rate for all shares: the one chosen for 75 %.",),
    )


_QUESTION_GROUPS: dict[str, tuple[str, ...]] = {
    "dense": ("grid", "grid_row", "cells", "cell", "point", "cover", "dominant"),
    "grounding": ("box", "boxes", "oriented", "position", "relation", "region_class", "region_attribute", "size"),
    "whole image": ("caption", "scene", "scene_options"),
    "counting": ("presence", "count", "count_compare"),
}  # fmt: skip
"""Group → tasks of `vitp.data.synthesis` that are left out together."""
_GENERAL_SHARE = 0.1


def vrl_tokens_study(plan: StudyPlanner) -> Study:
    """Compare dropping image tokens with averaging and merging them, at as many that are left, and how often."""
    scale, tuned = plan.scale, vitp_arm(0.75)
    ratios = {ratio: f"{100 * ratio:.0f} % dropped" for ratio in (0.0, 0.25, 0.5, 0.75, 0.9)}
    arms = [vitp_arm(ratio, name, tuned_as=tuned) for ratio, name in ratios.items()]
    for ratio in (0.5, 0.75, 0.9):
        for how, word in (("pool", "averaged away"), ("merge", "merged away")):
            arm = vitp_arm(ratio, f"{100 * ratio:.0f} % {word}", tuned_as=tuned)
            arms.append(replace(arm, changes=(*arm.changes, f"vrl.how={how}")))
    often = "75 % dropped in a quarter of the images"
    arm = vitp_arm(0.75, often, tuned_as=tuned)
    arms.append(replace(arm, changes=(*arm.changes, "vrl.probability=0.25")))
    for arm in arms:
        for seed in plan.seeds(arm):
            run, facts = plan.pretrained(arm, seed), plan.facts(arm, CONTINUED, seed)
            plan.probed(run, facts)
            for model in plan.finetuned(run, facts, tasks=("segmentation", "detection"), keep=True):
                if model.facts["task"] == "segmentation":
                    plan.robust(model, scale.severities, scale.corrupted_images)
    ours = ratios[0.75]
    claims = [Claim("Dropping 75 % is better than none.", ours, ratios[0.0], CONTINUED)]
    # The arms that average or merge: after those that drop, before the last one.
    for arm in arms[len(ratios) : -1]:
        mine = next(name for ratio, name in ratios.items() if arm.name.startswith(f"{100 * ratio:.0f} % "))
        claims.append(Claim(f"{mine} at random is better than {arm.name}.", mine, arm.name, CONTINUED))
    claims.append(Claim("Always is better than in a quarter of the images.", ours, often, CONTINUED))
    return Study(
        "vrl-tokens",
        "Dropped, averaged or merged image tokens",
        "Is dropping image tokens at random better than averaging or merging as many away, and than doing it in a "
        "quarter of the images (the published code) instead of all (the paper)? Quality, cost and robustness.",
        tuple(plan.cells.values()),
        claims=tuple(claims),
        ours=ours,
        information={"all": information_of(scale)[VITP_ARM]},
        notes=(
            "One learning rate for all arms: the one chosen for 75 % dropped. The starter has 144 tokens an image; "
            "pretrained models are finetuned and tested with all of them.",
            "Averaged: blocks of neighbours. Merged: the most similar tokens first, each mean weighted by how many "
            "tokens it stands for.",
        ),
    )


def recipe_study(plan: StudyPlanner) -> Study:
    """Leave out one group of questions at a time (table 10)."""
    general = extra_scenes(plan.scale, "general", _GENERAL_SHARE)
    tuned, full = vitp_arm(plan.scale.vrl), "full recipe"
    learned = {full: (*plan.sources, general), "without general images": plan.sources}
    for group, tasks in _QUESTION_GROUPS.items():
        asked = questions()
        # As many questions an image, of the tasks that are left.
        weights = {**asked["tasks"], **dict.fromkeys(tasks, 0.0)}
        asked |= {"tasks": weights, "grid_always": asked["grid_always"] and "grid" not in tasks}
        variant = f"without-{group.replace(' ', '-')}"
        learned[f"without {group}"] = (*(source.asking(variant, asked) for source in plan.sources), general)
    for name, sources in learned.items():
        arm = replace(tuned, name=name, sources=sources, tuned_as=tuned)
        plan.tested(arm, CONTINUED, tasks=("classification", "segmentation", "detection"))
    return Study(
        "recipe",
        "Data recipe",
        "What does each group of questions give? (table 10, RSAR: full 54.6; without diversity 52.6, SAR 52.5, "
        "grounding 53.0, general data 52.3)",
        tuple(plan.cells.values()),
        claims=tuple(
            Claim(f"The full recipe is better than the one {name}.", full, name, CONTINUED)
            for name in learned
            if name != full
        ),
        ours=full,
        information={"all": information_of(plan.scale)[VITP_ARM]},
        notes=(
            "Every arm sees the same number of images and as many questions about each; "
            f"{100 * _GENERAL_SHARE:.0f} % of the images are scenes of the general domain, but in the arm without "
            "them.",
            "Groups: " + "; ".join(f"{name}: {', '.join(t)}" for name, t in _QUESTION_GROUPS.items()) + ".",
        ),
    )


def steps_study(plan: StudyPlanner) -> Study:
    """Compare a short pretraining run with a long one (figure 5)."""
    scale, names = plan.scale, {}
    for part in (0.125, 0.25, 0.5, 1.0, 2.0):
        images = max(8, round(scale.images * part))
        names[part] = f"{images:,} images".replace(",", " ")
        arm = replace(vitp_arm(scale.vrl, names[part], tuned_as=vitp_arm(scale.vrl)), images=images)
        plan.tested(arm, CONTINUED, images)
    plan.tested(untrained_arm("start"), CONTINUED, 0)
    return Study(
        "steps",
        "Length of pretraining",
        "Does longer pretraining help, and where does it stop to? (figure 5: grows to about 8,000 steps, then flat)",
        tuple(plan.cells.values()),
        claims=(
            Claim("The full length is better than an eighth of it.", names[1.0], names[0.125], CONTINUED),
            Claim("The full length is better than half of it.", names[1.0], names[0.5], CONTINUED),
            Claim(
                "Twice the length is better still (the paper: no longer so).",
                names[2.0],
                names[1.0],
                CONTINUED,
            ),
        ),
        ours=names[1.0],
        x_label="images seen",
        information={"all": information_of(plan.scale)[VITP_ARM]},
        notes=("Each length has its own whole schedule: warm-up, and decay to the end.",),
    )


_LANGUAGE_MODELS: dict[str, dict[str, int]] = {
    "1 layer": {"width": 192, "layers": 1, "heads": 6, "kv_heads": 2, "mlp": 512},
    "3 layers": {"width": 192, "layers": 3, "heads": 6, "kv_heads": 2, "mlp": 512},
    "6 layers": {"width": 320, "layers": 6, "heads": 10, "kv_heads": 2, "mlp": 864},
}


def language_size_study(plan: StudyPlanner) -> Study:
    """Compare three sizes of the language model, all from random weights (figure 7); trained ones where asked for."""
    group = "the start's ViT, a new language model"
    for name, sizes in _LANGUAGE_MODELS.items():
        arm = replace(vitp_arm(plan.scale.vrl, name), language=tuple(sorted(sizes.items())))
        plan.tested(arm, group, block_parameters(sizes))
    packaged = packaged_arms(plan.scale)
    for arm, parameters in packaged:
        plan.tested(arm, group, parameters)
    small, middle, large = _LANGUAGE_MODELS
    # The arms alternate: trained, random.
    trained, untrained = ([arm.name for arm, _ in packaged[kind::2]] for kind in (0, 1))
    notes = (
        "No size has seen text before: in the paper all language models are trained ones, and the larger the "
        "better trained. Rates are chosen for each size on validation images.",
    )
    if packaged:
        notes = (
            "SmolLM2-135M-Instruct is cut to its first layers, with its embeddings and its last norm; random: the same "
            "shape and tokenizer, weights of another chance for each seed. The micro ones have seen no text. All have a "
            "new projector and see as many images; rates are chosen for each on validation images.",
        )
    return Study(
        "language-size",
        "Size of the language model",
        "Does a larger language model teach the ViT better? (figure 7: no, 0.5 B is best, then 1.9 B, 3.1 B)",
        tuple(plan.cells.values()),
        claims=(
            Claim("The middle size is better than the large one.", middle, large, group),
            Claim("The small size is better than the large one.", small, large, group),
            *(
                Claim(f"{one} is better than random.", one, other, group)
                for one, other in zip(trained, untrained, strict=True)
            ),
            *(Claim(f"{one} is better than {middle}, micro.", one, middle, group) for one in trained),
            *(Claim(f"{one} is better than {trained[-1]}.", one, trained[-1], group) for one in trained[:-1]),
        ),
        ours=middle,
        # A trained and a random one are of one size: arms are names then.
        x_label="" if packaged else "parameters of the language model's blocks",
        information={"all": information_of(plan.scale)[VITP_ARM]},
        notes=notes,
    )


def data_efficiency_study(plan: StudyPlanner) -> Study:
    """Finetune with 100, 20, 10, 5 and 2 % of the labels (table 12)."""
    by_name = arms_of(plan.scale, "start")
    compared = [
        *(by_name[name] for name in ("mae", "clip", "vitp") if name in by_name),
        untrained_arm("start"),
    ]
    names = [arm.name for arm in compared]
    claims = []
    shares, said = usable_shares(plan.sources, (1.0, 0.2, 0.1, 0.05, 0.02), plan.scale.most_draws)
    for share in shares:
        group = f"{100 * share:g} % of the labels"
        for arm in compared:
            for seed in plan.seeds(arm):
                plan.finetuned(
                    plan.pretrained(arm, seed),
                    plan.facts(arm, group, seed, 100 * share),
                    tasks=("segmentation", "detection"),
                    labels=None if share == 1.0 else share,
                    tune=arm,
                )
        claims += [Claim(f"ViTP beats {o} with {group}.", VITP_ARM, o, group) for o in names if o != VITP_ARM]
    return Study(
        "data-efficiency",
        "Fewer labels",
        "Does ViTP need fewer labels? (table 12, RSAR: 72.31, 67.07, 61.68, 56.42, 46.98 at 100, 20, 10, 5, 2 %, "
        "ahead of SatMAE and RemoteCLIP by more the fewer there are)",
        tuple(plan.cells.values()),
        claims=tuple(claims),
        x_label="labels (%)",
        information={name: text for name, text in information_of(plan.scale).items() if name in names},
        notes=(
            *said,
            "All labels are given more steps than a share of them; shares have the same number of steps.",
        ),
        said=said,
    )


def robustness_study(plan: StudyPlanner) -> Study:
    """Test finetuned models on corrupted images: twelve corruptions, five severities (table 13)."""
    scale, by_name = plan.scale, arms_of(plan.scale, "start")
    group, no_vrl = f"{CONTINUED}, corrupted test images", "ViTP without VRL"
    compared = [
        *(by_name[name] for name in ("supervised", "mae", "clip", "vitp") if name in by_name),
        vitp_arm(0.0, no_vrl, tuned_as=by_name["vitp"]),
        untrained_arm("start"),
    ]
    for arm in compared:
        for seed in plan.seeds(arm):
            run, facts = plan.pretrained(arm, seed), plan.facts(arm, group, seed)
            for model in plan.finetuned(run, facts, tasks=("segmentation", "detection"), keep=True):
                plan.robust(model, scale.severities, scale.corrupted_images)
    names = [arm.name for arm in compared]
    better = "ViTP is better than {} on corrupted images."
    return Study(
        "robustness",
        "Robustness",
        "How much does a finetuned model lose on corrupted images? (table 13, DIOR-R: clean 73.37, average 69.00; "
        "without VRL 71.91, 67.13; best other average 63.99)",
        tuple(plan.cells.values()),
        claims=(
            *(Claim(better.format(o), VITP_ARM, o, group, metric="average") for o in names if o != VITP_ARM),
            Claim("VRL makes the drop smaller.", VITP_ARM, no_vrl, group, lower=True, metric="drop"),
        ),
        information={name: text for name, text in information_of(scale).items() if name in names},
        notes=(
            "`average` is the mean over corruptions and severities, `drop` the clean score minus it, both of the "
            f"first {scale.corrupted_images} test images; the clean scores of the table are of all test images.",
            "Finetuning rates are the scale's, untuned; pretraining rates are those of the study of paradigms.",
        ),
    )


def cost_study(plan: StudyPlanner) -> Study:
    """Measure what each paradigm costs for what it gives (table 11)."""
    for arm in [*arms_of(plan.scale, "start").values(), untrained_arm("start")]:
        for seed in range(plan.scale.seeds):
            plan.probed(plan.pretrained(arm, seed), plan.facts(arm, BUDGET_GROUPS["start", "images"], seed))
    return Study(
        "cost",
        "Cost of pretraining",
        "What does pretraining cost? (table 11: ViTP 23 hours on eight A40, others 60 to 400 hours)",
        tuple(plan.cells.values()),
        information=information_of(plan.scale),
        notes=(
            "The paper compares runs of each paradigm's own published length; here all see the same images, so the "
            "rows tell the cost of an image, and the scores beside them what it bought.",
        ),
    )


STUDIES: dict[str, Callable[[StudyPlanner], Study]] = {
    "paradigms": paradigms_study,
    "vrl-ratio": vrl_ratio_study,
    "recipe": recipe_study,
    "steps": steps_study,
    "language-size": language_size_study,
    "data-efficiency": data_efficiency_study,
    "robustness": robustness_study,
    "cost": cost_study,
    "cheap-labels": cheap_labels_study,
    "vrl-tokens": vrl_tokens_study,
}
"""Name on the command line → study."""


def make_study(name: str, scale: Scale, data: Path | None = None) -> Study:
    """Return a study at a scale on data.

    Args:
        name: A key of `STUDIES`.
        scale: Sizes.
        data: See `vitp.studies.sources.study_sources`.

    Raises:
        ConfigError: There is no such study, the data can't be used, or nothing in them can be tested.
        CheckpointError: There is no model to start from.
    """
    if name not in STUDIES:
        hint = did_you_mean(name, STUDIES) or f"studies are {', '.join(STUDIES)}"
        raise ConfigError(f'no study "{name}"', where="vitp study", fix=hint)
    sources = study_sources(data, scale)
    if not any(source.tasks for source in sources):
        raise ConfigError("has no labels to test a backbone with", where=str(data), fix="choose another set")
    wanted = [task for source in sources for task in source.tasks if task in scale.downstream]
    unknown = [task for task in wanted if task not in scale.tasks]
    if unknown:
        raise ConfigError(f'says nothing of "{unknown[0]}"', where=f"tasks of scale {scale.name}")
    # The hash of the weights tells one starting model from another, wherever it lies.
    start = sha256(vlm_folder(scale.start) / WEIGHTS)[:16]
    return STUDIES[name](StudyPlanner(scale, sources, start))
