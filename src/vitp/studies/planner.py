"""Building blocks of studies: pretraining runs with tuned rates, and the downstream tests of their backbones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vitp.core.errors import ConfigError
from vitp.studies.cells import MODEL_OF_RUN, NOT_PRETRAINED
from vitp.studies.grid import Fact, StudyCell
from vitp.studies.scales import DOWNSTREAM_TASKS, Scale
from vitp.studies.sources import StudySource

_TUNING_SEED = 1000
"""Of runs that only serve to choose settings: none of the reported seeds."""


@dataclass(frozen=True)
class Arm:
    """One of the backbones that a study compares.

    Attributes:
        name: As tables show it.
        paradigm: Of `vitp.recipes.paradigms`, or "none": the backbone is left as it is.
        init: "start" or "scratch".
        images: Images seen; None: the scale's.
        changes: `key.key=value` over the run's configuration.
        language: Sizes of a new language model, or which of a package (`packaged_arm`).
        sources: Sets that it learns from; None: the study's.
        equal: Match the operations of another arm's run instead of its images.
        tuned_as: Take the rate that was chosen for this arm instead of tuning it anew.
    """

    name: str
    paradigm: str
    init: str = "start"
    images: int | None = None
    changes: tuple[str, ...] = ()
    language: tuple[tuple[str, int | str], ...] = ()
    sources: tuple[StudySource, ...] | None = None
    equal: Arm | None = None
    tuned_as: Arm | None = None

    @property
    def slug(self) -> str:
        """The name and start as part of a cell's name."""
        return f"{_dashed(self.name)}/{self.init}" + ("/equal-operations" if self.equal else "")

    @property
    def is_start(self) -> bool:
        """Whether it is the start as it is."""
        return self.paradigm == NOT_PRETRAINED and self.init == "start"


@dataclass
class StudyPlanner:
    """Collects the cells of one study.

    Args:
        scale: Sizes.
        sources: Sets that are learned from and tested on.
        start: Identity of the model that `scale.start` names.
    """

    scale: Scale
    sources: tuple[StudySource, ...]
    start: str
    cells: dict[str, StudyCell] = field(default_factory=dict)

    def add(self, cell: StudyCell) -> StudyCell:
        """Take a cell into the study, or return the equal one that is there.

        Raises:
            ConfigError: Another cell has its name.
        """
        known = self.cells.setdefault(cell.name, cell)
        if known != cell:
            raise ConfigError("two different cells have this name", where=cell.name)
        return known

    def pretrained(self, arm: Arm, seed: int) -> StudyCell:
        """Return the cell of an arm's run with a reported seed; its rate is tuned first."""
        chosen, lrs = self._rate(arm), self.scale.lrs
        lr = lrs[0] if lrs and chosen is None else None
        return self._run(arm, seed, f"pretrain/{arm.slug}/{seed}", lr=lr, chosen=chosen)

    def _rate(self, arm: Arm) -> str | None:
        """Return the name of the cell that chooses an arm's rate, or None where only one is tried."""
        if arm.tuned_as is not None:
            return self._rate(arm.tuned_as)
        lrs = self.scale.lrs
        if arm.paradigm == NOT_PRETRAINED or lrs is None or len(lrs) < 2:
            return None
        # Short runs at equal images: all groups of an arm share them, and so its rate.
        arm = replace(arm, equal=None, images=self.scale.tuning_images)
        tested = next((source for source in self.sources if source.tasks), None)
        if tested is None:
            raise ConfigError("no set has labels to choose settings by", where="study")
        needs: dict[str, str] = {}
        for lr in lrs:
            run = self._run(arm, _TUNING_SEED, f"tune/{arm.slug}/lr={lr:g}", lr=lr)
            needs[f"{lr:g}"] = self._probe(run, tested, f"tune-probe/{arm.slug}/lr={lr:g}", True, {}).name
        facts: dict[str, Fact] = {"arm": arm.name, "init": arm.init, "tunes": "pretraining rate"}
        return self._choice(f"choose/{arm.slug}", lrs, needs, "probes", facts)

    def _choice(
        self, name: str, lrs: Sequence[float], needs: dict[str, str], measure: str, facts: dict[str, Fact]
    ) -> str:
        """Add a cell that chooses a rate by the cells that it needs; return its name."""
        settings = {"values": {f"{lr:g}": lr for lr in lrs}, "measure": measure}
        return self.add(StudyCell(name, "choose", settings, needs=needs, facts=facts, tolerant=True)).name

    def _run(
        self, arm: Arm, seed: int, name: str, *, lr: float | None, chosen: str | None = None
    ) -> StudyCell:
        scale, sources = self.scale, arm.sources or self.sources
        settings: dict[str, Any] = {"paradigm": arm.paradigm, "init": arm.init, "start": self.start}
        needs: dict[str, str] = {}
        pace, units = "", 0.0
        # The start as it is knows no seed, so that all seeds share one cell.
        if not arm.is_start:
            settings["seed"] = seed
        if arm.paradigm != NOT_PRETRAINED:
            settings |= {
                "images": arm.images or scale.images,
                "batch": scale.batch,
                "batch_factor": scale.batch_factor,
                "lr": lr,
                "align_share": scale.align_share if arm.init == "start" else 0.0,
                "rates": [source.rate for source in sources],
                "changes": list(arm.changes),
                "language": dict(arm.language),
            }
            # Two digits, as roles are sorted by their names where the order of the sets matters.
            needs = {f"data{n:02d}": self.add(source.cell).name for n, source in enumerate(sources)}
            if chosen is not None:
                needs["lr"] = chosen
            if arm.equal is not None:
                needs["equal"] = self.pretrained(arm.equal, seed).name
            # A pace is named by what makes an image cost more or less; rate and seed do not.
            changes = ",".join((*arm.changes, *(f"{k}={v}" for k, v in arm.language)))
            batch = scale.batch or scale.batch_factor
            pace, units = f"pretrain/{arm.paradigm}/{arm.init}/{batch}/{changes}", float(settings["images"])
        facts: dict[str, Fact] = {
            "arm": arm.name,
            "init": arm.init,
            "budget": "operations" if arm.equal else "images",
        }
        cell = StudyCell(name, "pretrain", settings, needs, self._places(), facts, (MODEL_OF_RUN,))
        return self.add(replace(cell, pace=pace, units=units))

    def _places(self) -> dict[str, str]:
        places = {"start": self.scale.start, "workers": str(self.scale.workers)}
        return places | ({"threads": str(self.scale.threads)} if self.scale.threads else {})

    def _probe(
        self, run: StudyCell, source: StudySource, name: str, development: bool, facts: Mapping[str, Fact]
    ) -> StudyCell:
        scale = self.scale
        settings = {
            "labels": scale.probe_labels,
            "draws": scale.probe_draws,
            "images": scale.probe_images,
            "development": development,
        }
        needs = {"data": self.add(source.cell).name, "backbone": run.name}
        pace = f"probe/{source.name}/{scale.probe_images}/{scale.probe_draws}"
        cell = StudyCell(name, "probe", settings, needs, self._places(), facts)
        return self.add(replace(cell, pace=pace, units=1.0))

    def seeds(self, arm: Arm, draws: int | None = None) -> range:
        """Return the seeds whose finetunings of an arm differ.

        The start as it is has no pretraining seed: it has one, unless each seed has a draw of its own.

        Args:
            arm: The backbone that is finetuned.
            draws: As in `finetuned`.
        """
        alike = arm.is_start and (draws or self.scale.side_draws) > 1
        return range(1 if alike else self.scale.seeds)

    def probed(self, run: StudyCell, facts: Mapping[str, Fact]) -> None:
        """Probe a run's frozen backbone on the test images of all sets that have labels; the start as it is once."""
        settings = run.settings
        if settings["paradigm"] == NOT_PRETRAINED and settings["init"] == "start" and facts["seed"]:
            return
        for source in self.sources:
            if source.tasks:
                name = f"probe/{_place(facts)}/{source.name}"
                self._probe(run, source, name, False, {**facts, "set": source.name})

    def finetuned(
        self,
        run: StudyCell,
        facts: Mapping[str, Fact],
        *,
        tasks: Sequence[str] = DOWNSTREAM_TASKS,
        labels: int | float | str | None = "few",
        tune: Arm | None = None,
        keep: bool = False,
        draws: int | None = None,
    ) -> list[StudyCell]:
        """Finetune a run's backbone on the tasks that the sets allow, with several finetuning seeds.

        All runs have the same finetuning seeds 0, 1, …; where there is one, pretraining seed s is finetuned with
        seed s, so that chance of labels and head is among what the seeds show.

        Args:
            run: Pretraining cell.
            facts: Of the arm.
            tasks: Those that are wanted.
            labels: Number or share of labelled images; None: all; "few": the scale's.
            tune: Arm whose seed-0 run the learning rate is chosen with, on validation images; None: untuned.
            keep: Keep the models.
            draws: Finetuning seeds; None: the scale's `side_draws`.
        """
        found, count = [], draws or self.scale.side_draws
        for source in self.sources:
            for task in (task for task in source.tasks if task in tasks and task in self.scale.downstream):
                rate = self._finetune_rate(tune, source, task) if tune is not None else None
                for draw in range(count):
                    seed = draw if count > 1 else int(facts["seed"] or 0)
                    name = f"finetune/{_place(facts)}/{source.name}/{task}/{draw}"
                    cell = self._finetune(
                        run, source, task, name, seed=seed, labels=labels, chosen=rate, keep=keep
                    )
                    score = self.scale.tasks[task].score
                    more = {**facts, "set": source.name, "task": task, "draw": draw, "score": score}
                    self.cells[cell.name] = replace(cell, facts=more)
                    found.append(self.cells[cell.name])
        return found

    def _finetune_rate(self, arm: Arm, source: StudySource, task: str) -> str | None:
        lrs = self.scale.tasks[task].lrs
        if len(lrs) < 2:
            return None
        # Tuned at equal images, so that the groups of an arm share its rate.
        run = self.pretrained(replace(arm, equal=None), 0)
        base = f"{_dashed(arm.name)}/{arm.init}/{source.name}/{task}"
        needs = {}
        for lr in lrs:
            name = f"tune-finetune/{base}/lr={lr:g}"
            cell = self._finetune(run, source, task, name, seed=_TUNING_SEED, lr=lr, development=True)
            needs[f"{lr:g}"] = cell.name
        facts: dict[str, Fact] = {"arm": arm.name, "init": arm.init, "tunes": f"{task} rate"}
        facts["set"] = source.name
        return self._choice(f"choose-finetune/{base}", lrs, needs, "validation", facts)

    def _finetune(
        self,
        run: StudyCell,
        source: StudySource,
        task: str,
        name: str,
        *,
        seed: int,
        labels: int | float | str | None = "few",
        lr: float | None = None,
        chosen: str | None = None,
        development: bool = False,
        keep: bool = False,
    ) -> StudyCell:
        how = self.scale.tasks[task]
        settings: dict[str, Any] = {
            "task": task,
            "steps": how.full_steps if labels is None else how.steps,
            "batch_size": how.batch_size,
            "labels": how.labels if labels == "few" else labels,
            "lr": None if chosen else (how.lrs[-1] if lr is None else lr),
            "layer_decay": how.layer_decay,
            "head": how.head,
            "neck": how.neck,
            "seed": seed,
            "development": development,
        }
        needs = {"data": self.add(source.cell).name, "backbone": run.name}
        needs |= {"lr": chosen} if chosen else {}
        cell = StudyCell(
            name, "finetune", settings, needs, self._places(), keep=(MODEL_OF_RUN,) if keep else ()
        )
        pace = f"finetune/{source.name}/{task}/{how.batch_size}"
        return self.add(replace(cell, pace=pace, units=float(settings["steps"])))

    def robust(self, model: StudyCell, severities: Sequence[int], images: int) -> None:
        """Score a finetuned model under corruptions."""
        facts = model.facts
        cell = StudyCell(
            f"robustness/{model.name.removeprefix('finetune/')}",
            "robustness",
            {"score": facts["score"], "severities": list(severities), "max_images": images, "seed": 0},
            needs={"data": model.needs["data"], "model": model.name},
            places=self._places(),
            facts={**facts, "score": "average"},
            pace=f"robustness/{facts['set']}/{facts['task']}",
            # Clean images once, and each of the twelve corruptions at each severity.
            units=float(images * (1 + 12 * len(severities))),
        )
        self.add(cell)

    def facts(self, arm: Arm, group: str, seed: int, x: float | None = None) -> dict[str, Fact]:
        """Return what the tests of a run are evidence of."""
        return {"arm": arm.name, "group": group, "seed": seed, "x": x, "init": arm.init}

    def tested(
        self,
        arm: Arm,
        group: str,
        x: float | None = None,
        *,
        tasks: Sequence[str] = ("segmentation", "detection"),
    ) -> None:
        """Pretrain an arm with each seed, probe each backbone and finetune it on few labels, untuned."""
        for seed in self.seeds(arm):
            run, facts = self.pretrained(arm, seed), self.facts(arm, group, seed, x)
            self.probed(run, facts)
            self.finetuned(run, facts, tasks=tasks)


def _place(facts: Mapping[str, Fact]) -> str:
    group = _dashed(str(facts["group"])).replace(",", "")
    return f"{group}/{_dashed(str(facts['arm']))}/{facts['seed']}"


def _dashed(text: str) -> str:
    return text.replace(" ", "-")
