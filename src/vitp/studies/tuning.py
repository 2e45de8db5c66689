"""`vitp tune`: a search for the settings that matter, in one SQLite file that any number of processes may share.

OUT/tune.db            all trials (Optuna); more processes on the same folder share them
OUT/tune.yaml          what is tuned: the configuration, its ranges, the seed
OUT/trials/0007/       the run of a trial, resumed where it was killed
OUT/best.yaml          the best configuration, for `vitp pretrain` or `vitp finetune`
OUT/report.html        table, charts, importance

A trial is a run of the very functions behind `vitp pretrain` and `vitp finetune`. Its score is that of the validation
images, or of probes of the frozen features on them: the images of the test are never looked at.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from vitp.core import distributed
from vitp.core.config import save_config
from vitp.core.errors import ConfigError, DataError, VitpError
from vitp.core.extras import need
from vitp.core.files import write_text
from vitp.core.reading import parse_yaml, read_text
from vitp.engine.config import LogSettings
from vitp.engine.hooks import Hook, StepMetrics
from vitp.engine.loop import Trainer
from vitp.evaluation.online import OnlineProbes
from vitp.runs.finetune import run_validated
from vitp.runs.folder import exclusive, started
from vitp.runs.pretrain import run_pretraining
from vitp.studies.space import Space, TunedConfig, is_finetuning, of_each_set, own_values, with_values

DATABASE, ORDER_FILE, BEST_FILE = "tune.db", "tune.yaml", "best.yaml"
_STUDY = "vitp"
_HEAVY = ("checkpoints", "best", "model", "start_vision.safetensors", "align")
"""What a trial that is done needs no more."""


class Pruned(Exception):
    """A trial does worse than half of the others did at this step."""


@dataclass(frozen=True)
class TuneOrder:
    """What is tuned, and how much of it.

    Attributes:
        config: A short run, whose settings are varied.
        space: Key → values; see `vitp.studies.space`.
        out: Folder.
        trials: Trials in all, those of earlier calls and of other processes included.
        minutes: Start no new trial after so many minutes.
        seed: Of the search. One process with the same seed makes the same trials.
        prune: End trials early that do worse than the median of the others.
    """

    config: TunedConfig
    space: Space
    out: Path
    trials: int = 20
    minutes: float | None = None
    seed: int = 0
    prune: bool = True


@dataclass(frozen=True)
class TrialRow:
    """One trial.

    Attributes:
        number: From 0.
        state: "complete", "pruned", "failed" or "running".
        score: The newest one; None before any.
        values: Key → value.
        seconds: How long it took; None while it runs.
        why: Of a failed one.
    """

    number: int
    state: str
    score: float | None
    values: Mapping[str, Any]
    seconds: float | None
    why: str = ""


@dataclass(frozen=True)
class Tuned:
    """What a search has found.

    Attributes:
        rows: All trials.
        best: The best complete one, None before any.
        importance: Key → share of the score's spread that it explains; empty where too few trials say.
        measure: What the score is, in words.
    """

    rows: Sequence[TrialRow]
    best: TrialRow | None
    importance: Mapping[str, float]
    measure: str


class _Reported(Hook):
    """Tells a trial the scores of the hooks before it, and ends the run where the others did better."""

    def __init__(self, trial: Any, *, prune: bool) -> None:
        self.trial, self.prune, self.every = trial, prune, None

    def on_step_end(self, trainer: Trainer, step: int, metrics: StepMetrics) -> None:
        """Report the score of this step, where there is one."""
        newest = [hook.score for hook in trainer.hooks if hook.score is not None and hook.score[0] == step]
        told = self.trial.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values
        if not newest or step in told:  # a resumed run makes some steps again
            return
        self.trial.report(newest[0][1], step)
        if self.prune and step < trainer.config.steps and self.trial.should_prune():
            raise Pruned


def tune(order: TuneOrder, console: Console) -> Tuned:
    """Make trials until there are as many as wanted, and return what is known of all.

    What an earlier call has begun goes on: finished trials stay, and one that was interrupted is resumed.

    Raises:
        ConfigError: The folder holds another search, a key can't be tuned, or nothing scores the runs.
        VitpError: A run can't even begin.
    """
    optuna = need("tune", "optuna", "vitp tune", ConfigError)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    order = _checked(order)
    _claim(order)
    study = _open(optuna, order)
    console.print(f"score: {measure_of(order.config)}; the test images are never looked at", highlight=False)
    began = time.monotonic()
    while order.minutes is None or time.monotonic() - began < 60 * order.minutes:
        with contextlib.ExitStack() as held:
            trial = _next_trial(optuna, study, order, held)
            if trial is None:
                break
            _run_trial(optuna, study, trial, order, console)
    return found(study, order)


def _checked(order: TuneOrder) -> TuneOrder:
    """Return the order with a range for each set, after a look at every key."""
    config = order.config
    if distributed.world_size() > 1:
        fix = "start `vitp tune` on the same folder several times instead of with torchrun"
        raise ConfigError("a trial is a run of one process", where="vitp tune", fix=fix)
    if is_finetuning(config):
        if config.train.val_every == 0:
            raise ConfigError("scores no validation image", where="train.val_every", fix="give another value")
    elif config.probe.data is None:
        fix = "name a labelled folder of `vitp data compile` with --probe"
        raise ConfigError("nothing scores the runs", where="probe.data", fix=fix)
    space = of_each_set(order.space, config)
    with_values(config, {key: one.example for key, one in space.items()})
    quiet = config.model_copy(update={"log": LogSettings(trackers=())})
    return TuneOrder(quiet, space, order.out, order.trials, order.minutes, order.seed, order.prune)


def measure_of(config: TunedConfig) -> str:
    """Return in words what a trial is scored by."""
    if is_finetuning(config):
        return f"{config.task} on the validation images after {config.train.steps} steps at most"
    return f"probes of the frozen features on validation images, after {config.train.steps} steps at most"


def _claim(order: TuneOrder) -> None:
    """Write what is tuned, or compare it with what the folder's search does.

    Raises:
        ConfigError: They differ, or the folder holds something else.
    """
    wanted = {
        "seed": order.seed,
        "prune": order.prune,
        "space": {key: one.model_dump(mode="json", exclude_none=True) for key, one in order.space.items()},
        "config": order.config.model_dump(mode="json"),
    }
    file = order.out / ORDER_FILE
    order.out.mkdir(parents=True, exist_ok=True)
    # Of two processes that begin together, one writes the file and the other compares itself with it.
    with exclusive(order.out / "tune.lock"):
        if not file.is_file():
            if any(path.name not in ("tune.lock",) for path in order.out.iterdir()):
                fix = "choose another folder with --out"
                raise ConfigError("holds something else", where=str(order.out), fix=fix)
            write_text(file, _yaml(wanted))
    before = parse_yaml(read_text(file))
    if before != parse_yaml(_yaml(wanted)):
        changed = [key for key in wanted if not isinstance(before, dict) or before.get(key) != wanted[key]]
        raise ConfigError(
            f"holds a search with another {' and '.join(changed)}",
            where=str(file),
            fix="call it as it was begun, or choose another folder with --out",
        )


def _yaml(values: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    return text


def _open(optuna: Any, order: TuneOrder) -> Any:
    """Return the study in the folder's file."""
    # Processes wait for each other's writes to the one file; SQLite's own 5 seconds are short for many of them.
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{order.out / DATABASE}", engine_kwargs={"connect_args": {"timeout": 120}}
    )
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4) if order.prune else optuna.pruners.NopPruner()
    with exclusive(order.out / "tune.lock"):
        study = optuna.create_study(
            storage=storage, study_name=_STUDY, direction="maximize", load_if_exists=True, pruner=pruner
        )
        own = own_values(order.config, order.space)
        if own is not None and not study.trials:
            study.enqueue_trial(own)  # the search is never worse than the settings that it begins with
    return study


def _next_trial(optuna: Any, study: Any, order: TuneOrder, held: contextlib.ExitStack) -> Any:
    """Return a trial that nobody is at: an interrupted one, or a new one; None when there are enough.

    Whoever has a trial holds the lock of its folder until `held` is closed.
    """
    with exclusive(order.out / "tune.lock"):
        trials = study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state.name == "RUNNING" and _take(order, trial.number, held):
                if study.get_trials(deepcopy=False)[trial.number].state.name != "RUNNING":
                    continue  # it was done between the two looks
                study.sampler = _sampler(optuna, order.seed, trial.number)
                # Optuna gives a trial out once, by `ask`, which would begin another one.
                return optuna.trial.Trial(study, trial._trial_id)
        waiting = [trial.number for trial in trials if trial.state.name == "WAITING"]
        if len(trials) - len(waiting) >= order.trials:
            return None
        study.sampler = _sampler(optuna, order.seed, min(waiting, default=len(trials)))
        trial = study.ask()
        _take(order, trial.number, held)
        return trial


def _sampler(optuna: Any, seed: int, number: int) -> Any:
    """Return what draws a trial: a function of seed and number, whatever was restarted before, and in which process."""
    digest = hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=4).digest()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # options that Optuna calls experimental
        own = int.from_bytes(digest, "little")
        # The liar counts trials that are running as bad ones, so that processes keep away from each other's settings.
        return optuna.samplers.TPESampler(seed=own, multivariate=False, constant_liar=True)


def _folder(order: TuneOrder, number: int) -> Path:
    return order.out / "trials" / f"{number:04d}"


def _take(order: TuneOrder, number: int, held: contextlib.ExitStack) -> bool:
    folder = _folder(order, number)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        held.enter_context(exclusive(folder.with_suffix(".lock"), wait=False))
    except BlockingIOError:
        return False
    return True


def _run_trial(optuna: Any, study: Any, trial: Any, order: TuneOrder, console: Console) -> None:
    """Run a trial and tell the study how it ended. One that is interrupted stays open."""
    values = {key: one.suggest(trial, key) for key, one in order.space.items()}
    shown = ", ".join(f"{key} {short_value(value)}" for key, value in values.items())
    folder, state = _folder(order, trial.number), optuna.trial.TrialState
    done = any(one.state.name in ("COMPLETE", "PRUNED") for one in study.get_trials(deepcopy=False))
    try:
        score = _score(with_values(order.config, values), folder, _Reported(trial, prune=order.prune))
        said, ended, told = f"{100 * score:.1f}", state.COMPLETE, score
    except Pruned:
        said, ended, told = "pruned", state.PRUNED, None
    except VitpError as error:
        if isinstance(error, ConfigError | DataError) and not done:
            study.tell(trial, state=state.FAIL)
            if len(study.get_trials(deepcopy=False)) == 1:
                _forget(order)
            raise  # no trial would fare better
        trial.set_user_attr("why", str(error))
        said, ended, told = f"failed: {error}", state.FAIL, None
    study.tell(trial, told, state=ended)
    for name in _HEAVY:
        path = folder / name
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    # Still held, but nobody asks for it any more: the study has been told how the trial ended.
    folder.with_suffix(".lock").unlink(missing_ok=True)
    console.print(f"trial {trial.number}: {said}  ({shown})", highlight=False, markup=False, soft_wrap=True)


def _forget(order: TuneOrder) -> None:
    """Remove a search whose first trial could not begin, so that the next call may be another one."""
    shutil.rmtree(order.out / "trials", ignore_errors=True)
    for name in (DATABASE, ORDER_FILE, "tune.lock"):
        (order.out / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it was there before
        order.out.rmdir()


def _score(config: TunedConfig, folder: Path, reported: Hook) -> float:
    """Return the score of a run, made or resumed in its folder.

    Raises:
        DataError: Nothing could be scored.
    """
    quiet, resume = Console(quiet=True), started(folder)
    if is_finetuning(config):
        curve = run_validated(config, folder, [reported], resume=resume, console=quiet)
        # NaN is unequal to itself: a score that is no number is left out.
        scores = [score for _, score in curve if score == score]
        chosen = max(scores, default=None)
        if scores and config.train.choose == "last":
            chosen = scores[-1]
    else:
        last = _LastProbe()
        run_pretraining(config, folder, resume=resume, console=quiet, hooks=[reported, last])
        chosen = last.value
    if chosen is None:
        raise DataError("no validation image could be scored", where=str(folder), fix="choose other data")
    return float(chosen)


class _LastProbe(Hook):
    """Keeps what the online probes say of the last weights."""

    every = None
    value: float | None = None

    def on_end(self, trainer: Trainer) -> None:
        """Look at the newest score; probes come before."""
        for hook in trainer.hooks:
            if isinstance(hook, OnlineProbes) and hook.score is not None and hook.score[1] == hook.score[1]:
                self.value = hook.score[1]


def short_value(value: Any) -> str:
    """Return the value of a key as a line or a cell of a table shows it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def found(study: Any, order: TuneOrder) -> Tuned:
    """Return what a study holds."""
    rows = []
    names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name in names:
            newest = max(trial.intermediate_values.items(), default=(0, None))[1]
            score = trial.value if trial.state.name == "COMPLETE" else newest
            seconds = None if trial.duration is None else trial.duration.total_seconds()
            why = str(trial.user_attrs.get("why", ""))
            rows.append(TrialRow(trial.number, names[trial.state.name], score, trial.params, seconds, why))
    complete = [row for row in rows if row.state == "complete"]
    # Of equal scores the earlier one, so that a later trial that is no better changes nothing.
    best = max(complete, key=lambda row: (row.score, -row.number), default=None)
    return Tuned(rows, best, _importance(study, len(complete)), measure_of(order.config))


def _importance(study: Any, complete: int) -> dict[str, float]:
    """Return what explains the scores; nothing where fewer than four trials are complete, or all score the same."""
    if complete < 4:
        return {}
    optuna = need("tune", "optuna", "vitp tune", ConfigError)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        try:
            shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
        except (ValueError, RuntimeError, ZeroDivisionError):
            return {}
    return {name: float(share) for name, share in shares.items() if share == share}


def write_best(tuned: Tuned, order: TuneOrder) -> Path | None:
    """Write the configuration of the best trial, as the user gave it but for the values; return the file."""
    if tuned.best is None:
        return None
    config = with_values(order.config, tuned.best.values)
    save_config(config, order.out / BEST_FILE)
    return order.out / BEST_FILE
