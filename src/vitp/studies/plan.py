"""Building blocks of studies: pretraining runs with tuned rates, and the downstream tests of what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vitp.core.errors import ConfigError
from vitp.studies.evaluations import FINETUNED
from vitp.studies.grid import Cell, Fact
from vitp.studies.pretraining import MODEL, NONE
from vitp.studies.scales import TASKS, Scale
from vitp.studies.sources import Source

TUNING_SEED = 1000
"""Of runs that only serve to choose settings: none of the reported seeds."""


@dataclass(frozen=True)
class Arm:
    """One of the things that a study compares.

    Attributes:
        name: As tables show it.
        paradigm: Of `vitp.recipes.paradigms`, or "none": the backbone is left as it is.
        init: "start" or "scratch".
        images: Images seen; None: the scale's.
        changes: `key.key=value` over the run's configuration.
        language: Sizes of a new language model.
        sources: What it learns from; None: the study's.
        equal: Match the operations of another arm's run instead of its images.
        tuned_as: Take the rate that was chosen for this arm instead of tuning it anew.
    """

    name: str
    paradigm: str
    init: str = "start"
    images: int | None = None
    changes: tuple[str, ...] = ()
    language: tuple[tuple[str, int], ...] = ()
    sources: tuple[Source, ...] | None = None
    equal: Arm | None = None
    tuned_as: Arm | None = None

    @property
    def slug(self) -> str:
        """The name and start as part of a cell's name."""
        return f"{self.name.replace(' ', '-')}/{self.init}" + ("/equal-operations" if self.equal else "")


@dataclass
class Planner:
    """Collects the cells of one study.

    Args:
        scale: Sizes.
        sources: What is learned from and tested on.
        start: Identity of the model that `scale.start` names.
    """

    scale: Scale
    sources: tuple[Source, ...]
    start: str
    cells: dict[str, Cell] = field(default_factory=dict)

    def add(self, cell: Cell) -> Cell:
        """Take a cell into the study, or return the equal one that is there.

        Raises:
            ConfigError: Another cell has its name.
        """
        known = self.cells.setdefault(cell.name, cell)
        if known != cell:
            raise ConfigError("two different cells have this name", where=cell.name)
        return known

    def pretrained(self, arm: Arm, seed: int) -> Cell:
        """Return the cell of an arm's run with a reported seed; its rate is tuned first."""
        rate = self._rate(arm)
        if rate is not None:
            return self._run(arm, seed, f"pretrain/{arm.slug}/{seed}", lr=None, chosen=rate)
        lrs = self.scale.lrs
        return self._run(arm, seed, f"pretrain/{arm.slug}/{seed}", lr=lrs[0] if lrs else None)

    def _rate(self, arm: Arm) -> str | None:
        """Return the name of the cell that chooses an arm's rate, or None where only one is tried."""
        if arm.tuned_as is not None:
            return self._rate(arm.tuned_as)
        lrs = self.scale.lrs
        if arm.paradigm == NONE or lrs is None or len(lrs) < 2:
            return None
        arm = replace(arm, equal=None, images=self.scale.tuning_images)
        values: dict[str, float] = {}
        needs: dict[str, str] = {}
        tested = next((source for source in self.sources if source.tasks), None)
        if tested is None:
            raise ConfigError("no set has labels to choose settings by", where="study")
        for lr in lrs:
            run = self._run(arm, TUNING_SEED, f"tune/{arm.slug}/lr={lr:g}", lr=lr)
            score = self._probe(run, tested, f"tune-probe/{arm.slug}/lr={lr:g}", development=True)
            values[f"{lr:g}"], needs[f"{lr:g}"] = lr, score.name
        facts: dict[str, Fact] = {"arm": arm.name, "init": arm.init, "tunes": "pretraining rate"}
        cell = Cell(
            f"choose/{arm.slug}",
            "choose",
            {"values": values, "measure": "probes"},
            needs=needs,
            facts=facts,
            tolerant=True,
        )
        return self.add(cell).name

    def _run(self, arm: Arm, seed: int, name: str, *, lr: float | None, chosen: str | None = None) -> Cell:
        scale = self.scale
        sources = arm.sources or self.sources
        none = arm.paradigm == NONE
        settings: dict[str, Any] = {"paradigm": arm.paradigm, "init": arm.init, "start": self.start}
        needs: dict[str, str] = {}
        if not none or arm.init == "scratch":
            settings["seed"] = seed
        if not none:
            images = arm.images or scale.images
            settings |= {
                "images": images,
                "batch": scale.batch,
                "batch_factor": scale.batch_factor,
                "lr": lr,
                "align_share": scale.align_share if arm.init == "start" else 0.0,
                "rates": [source.rate for source in sources],
                "changes": list(arm.changes),
                "language": dict(arm.language),
            }
            for number, source in enumerate(sources):
                needs[f"data{number:02d}"] = self.add(source.cell).name
            if chosen is not None:
                needs["lr"] = chosen
            if arm.equal is not None:
                needs["equal"] = self.pretrained(arm.equal, seed).name
        changes = ",".join((*arm.changes, *(f"{k}={v}" for k, v in arm.language)))
        return self.add(
            Cell(
                name,
                "pretrain",
                settings,
                needs=needs,
                places=self._places(),
                facts={"arm": arm.name, "init": arm.init, "budget": "operations" if arm.equal else "images"},
                keep=(MODEL,),
                pace=""
                if none
                else f"pretrain/{arm.paradigm}/{arm.init}/{scale.batch or scale.batch_factor}/{changes}",
                units=0.0 if none else float(settings["images"]),
            )
        )

    def _places(self) -> dict[str, str]:
        places = {"start": self.scale.start, "workers": str(self.scale.workers)}
        return places | ({"threads": str(self.scale.threads)} if self.scale.threads else {})

    def _probe(
        self,
        run: Cell,
        source: Source,
        name: str,
        *,
        development: bool,
        facts: Mapping[str, Fact] | None = None,
    ) -> Cell:
        scale = self.scale
        settings = {
            "labels": scale.probe_labels,
            "draws": scale.probe_draws,
            "images": scale.probe_images,
            "development": development,
        }
        return self.add(
            Cell(
                name,
                "probe",
                settings,
                needs={"data": self.add(source.cell).name, "backbone": run.name},
                places=self._places(),
                facts=facts or {},
                pace=f"probe/{source.name}/{scale.probe_images}/{scale.probe_draws}",
                units=1.0,
            )
        )

    def seeds(self, arm: Arm, draws: int | None = None) -> range:
        """Return the seeds whose finetunings of an arm differ.

        The start as it is has no pretraining seed: it has one, unless each seed has a draw of its own.

        Args:
            arm: What is finetuned.
            draws: As in `finetuned`.
        """
        alike = _is_start(arm.paradigm, arm.init) and (draws or self.scale.side_draws) > 1
        return range(1 if alike else self.scale.seeds)

    def probed(self, run: Cell, facts: Mapping[str, Fact]) -> None:
        """Probe a run's frozen backbone on the test images of all sets that have labels; the start as it is once."""
        if _is_start(run.settings["paradigm"], run.settings["init"]) and facts["seed"]:
            return
        for source in self.sources:
            if source.tasks:
                name = f"probe/{_place(facts)}/{source.name}"
                self._probe(run, source, name, development=False, facts={**facts, "set": source.name})

    def finetuned(
        self,
        run: Cell,
        facts: Mapping[str, Fact],
        *,
        tasks: Sequence[str] = TASKS,
        labels: int | float | str | None = "few",
        tune: Arm | None = None,
        keep: bool = False,
        draws: int | None = None,
    ) -> list[Cell]:
        """Finetune a run's backbone on the tasks that the sets allow, with several finetuning seeds.

        All runs have the same finetuning seeds 0, 1, …; where there is one, pretraining seed s is finetuned with seed s, so
        that chance of labels and head is among what the seeds show.

        Args:
            run: Pretraining cell.
            facts: Of the arm.
            tasks: Those that are wanted.
            labels: Number or share of labelled images; None: all; "few": the scale's.
            tune: Arm whose seed-0 run the learning rate is chosen with, on validation images; None: untuned.
            keep: Keep the models.
            draws: Finetuning seeds; None: the scale's `side_draws`.
        """
        found = []
        for source in self.sources:
            for task in (task for task in source.tasks if task in tasks and task in self.scale.downstream):
                rate = self._finetune_rate(tune, source, task) if tune is not None else None
                count = draws or self.scale.side_draws
                for draw in range(count):
                    seed = draw if count > 1 else int(facts["seed"] or 0)
                    name = f"finetune/{_place(facts)}/{source.name}/{task}/{draw}"
                    cell = self._finetune(
                        run, source, task, name, seed=seed, labels=labels, chosen=rate, keep=keep
                    )
                    more: dict[str, Fact] = {
                        "set": source.name,
                        "task": task,
                        "draw": draw,
                        "score": self.scale.tasks[task].score,
                    }
                    found.append(self._with_facts(cell, {**facts, **more}))
        return found

    def _finetune_rate(self, arm: Arm, source: Source, task: str) -> str | None:
        settings = self.scale.tasks[task]
        if len(settings.lrs) < 2:
            return None
        run = self.pretrained(replace(arm, equal=None), 0)
        base = f"{arm.name.replace(' ', '-')}/{arm.init}/{source.name}/{task}"
        values, needs = {}, {}
        for lr in settings.lrs:
            name = f"tune-finetune/{base}/lr={lr:g}"
            cell = self._finetune(run, source, task, name, seed=TUNING_SEED, lr=lr, development=True)
            values[f"{lr:g}"], needs[f"{lr:g}"] = lr, cell.name
        facts: dict[str, Fact] = {
            "arm": arm.name,
            "init": arm.init,
            "tunes": f"{task} rate",
            "set": source.name,
        }
        settings_ = {"values": values, "measure": "validation"}
        name = f"choose-finetune/{base}"
        return self.add(Cell(name, "choose", settings_, needs=needs, facts=facts, tolerant=True)).name

    def _finetune(
        self,
        run: Cell,
        source: Source,
        task: str,
        name: str,
        *,
        seed: int,
        labels: int | float | str | None = "few",
        lr: float | None = None,
        chosen: str | None = None,
        development: bool = False,
        keep: bool = False,
    ) -> Cell:
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
        return self.add(
            Cell(
                name,
                "finetune",
                settings,
                needs=needs | ({"lr": chosen} if chosen else {}),
                places=self._places(),
                keep=(FINETUNED,) if keep else (),
                pace=f"finetune/{source.name}/{task}/{how.batch_size}",
                units=float(settings["steps"]),
            )
        )

    def _with_facts(self, cell: Cell, facts: Mapping[str, Fact]) -> Cell:
        self.cells[cell.name] = replace(cell, facts=dict(facts))
        return self.cells[cell.name]

    def robust(self, model: Cell, severities: Sequence[int], images: int) -> None:
        """Score a finetuned model under corruptions."""
        facts = model.facts
        self.add(
            Cell(
                f"robustness/{model.name.removeprefix('finetune/')}",
                "robustness",
                {"score": facts["score"], "severities": list(severities), "max_images": images, "seed": 0},
                needs={"data": model.needs["data"], "model": model.name},
                places=self._places(),
                facts={**facts, "score": "average"},
                pace=f"robustness/{facts['set']}/{facts['task']}",
                units=float(images * (1 + 12 * len(severities))),
            )
        )

    def facts(self, arm: Arm, group: str, seed: int, x: float | None = None) -> dict[str, Fact]:
        """Return what the tests of a run are evidence of."""
        return {"arm": arm.name, "group": group, "seed": seed, "x": x, "init": arm.init}


def _is_start(paradigm: str, init: str) -> bool:
    return paradigm == NONE and init == "start"


def _place(facts: Mapping[str, Fact]) -> str:
    group = str(facts["group"]).replace(" ", "-").replace(",", "")
    return f"{group}/{str(facts['arm']).replace(' ', '-')}/{facts['seed']}"
