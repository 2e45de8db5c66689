"""The training loop: `train → train_step → forward_backward`.

It knows an objective (batch → named loss sums) and a source (place in the run → batch), nothing else.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from vitp.core import distributed
from vitp.core.distributed import RankReport
from vitp.core.errors import VitpError
from vitp.engine import checkpoint, numerics, recovery, sharding
from vitp.engine.average import WeightAverage
from vitp.engine.checkpoint import RunState
from vitp.engine.config import OptimSettings, TrainSettings
from vitp.engine.evidence import VisionEvidence, summary
from vitp.engine.exchange import StepExchange
from vitp.engine.gradients import Gradients
from vitp.engine.hooks import Hook, StepMetrics, TrainResult
from vitp.engine.loading import StepLoader, read_step, to_device
from vitp.engine.logging import Meter, RunLog, metrics_row
from vitp.engine.optim import (
    build_optimizer,
    check_groups,
    check_trainable,
    describe_parts,
    lr_factor,
    set_lr,
)
from vitp.engine.patience import Patience
from vitp.engine.saving import Saver, save_pretrained
from vitp.engine.scaling import LossScale
from vitp.engine.stopping import Interrupted, StopSignals
from vitp.engine.trackers import Trackers
from vitp.models.compilation import CompileWatch
from vitp.objectives.base import BatchSource, Objective, is_of_source


class Trainer:
    """Trains an objective on a source of batches.

    Args:
        objective: Model and losses. It is moved to the device.
        source: Place in the run → batch.
        optim: Optimizer and schedule.
        train: Length, precision, bookkeeping.
        run_dir: Gets `checkpoints/`, `metrics.jsonl`, `start_vision.safetensors`, `evidence.json` and `model/`.
        hooks: Called in order.
        console: Where rank 0 prints; None: standard output.
        resume: Continue from the newest checkpoint in `run_dir`; from step 0 where there is none.
        trackers: Are told the numbers, too; closing them is the caller's.

    Attributes:
        step: Optimizer steps done.
        objective: The model. Of a sharded one (`train.parallel`) rank 0 has the weights, and only when hooks
            are told that they may look at them; see `Hook`. With `train.ema` hooks see the averaged weights, and it
            has them when `train` returns.
        evidence: Watches the vision tower; a hook may set `evidence.features`.

    Raises:
        ConfigError: Parts, precision or device don't fit.
    """

    def __init__(
        self,
        objective: Objective,
        source: BatchSource,
        optim: OptimSettings,
        train: TrainSettings,
        run_dir: str | Path,
        *,
        hooks: Sequence[Hook] = (),
        console: Console | None = None,
        resume: bool = False,
        trackers: Trackers | None = None,
    ) -> None:
        self.source, self.optim, self.config = source, optim, train
        self.run_dir, self.hooks, self.resume = Path(run_dir), tuple(hooks), resume
        self.device = distributed.resolve_device(train.device)
        distributed.initialize(self.device)
        self.rank, self.world = distributed.rank(), distributed.world_size()
        self.sharded = sharding.is_wanted(train)
        self.objective = objective
        self._amp_dtype = numerics.amp_dtype(train.precision, self.device)
        self._trained = (
            sharding.shard(objective, train, self.device, self._amp_dtype)
            if self.sharded
            else objective.to(self.device)
        )
        groups = self._trained.parameter_groups()
        check_groups(self._trained, groups, optim)
        self.loss_scale = LossScale(self._amp_dtype)
        self.parts = describe_parts(groups, optim)
        check_trainable(self.parts, train.must_train)
        self.optimizer, self._names = build_optimizer(self._trained, groups, optim)
        self.gradients = Gradients(groups, self._trained.vision_tower)
        # Without shards the weights of all processes are the same, and one of them keeps the average.
        averages = train.ema is not None and (self.sharded or self.rank == 0)
        self.average = WeightAverage(self._trained, train.ema or 0, train.ema_warmup) if averages else None
        self.patience = Patience(train.patience, train.min_gain)
        self._trackers = trackers
        self._saver = Saver(self.run_dir, train.keep_last, sharded=self.sharded, background=train.async_save)
        self.evidence = VisionEvidence(objective.vision_tower, self.run_dir)
        self.step = 0
        self._console = console or Console()
        self._exchange = StepExchange()
        # A sharded optimizer takes no plain tensor for its mask.
        self._masks_steps = self.device.type == "cuda" and not self.sharded
        self._counters: dict[str, float] = {}
        self._saved_step: int | None = None
        self._last_loss = math.nan
        self._log: RunLog | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.rank == 0

    @property
    def saved_step(self) -> int | None:
        """Step of the newest checkpoint, which may still be being written; None before the first."""
        return self._saved_step

    # The spine.

    def train(self) -> TrainResult:
        """Run to the last step, save, and check that the vision tower learned.

        Raises:
            VitpError: Data, disk, a loss that is not finite, a vision tower that doesn't learn.
            Interrupted: SIGINT or SIGTERM came; the finished steps are saved.
        """
        with numerics.numerics(self.config), contextlib.ExitStack() as stack:
            self._begin(stack)
            with StopSignals() as self._signals:
                while self.step < self.config.steps and not self.patience.ended:
                    batches, report = self._next_batches()
                    metrics = self.train_step(batches, report.counts, report.work)
                    self._after_step(metrics)
                self.save()
            return self._finish()

    def train_step(
        self, batches: Sequence[Any], counts: Mapping[str, float], work: Mapping[str, float]
    ) -> StepMetrics:
        """Make one optimizer step.

        Args:
            batches: The micro-batches of this rank.
            counts: Loss name → terms in the whole step, over all micro-batches and ranks.
            work: What the whole step amounts to.

        Raises:
            VitpError: The loss or the gradient is not finite, and no smaller scale of an fp16 run can help. The
                weights are as before the step.
        """
        numerics.seed_step(self.config.seed, self.step, self.rank)
        lr = set_lr(self.optimizer, self.optim, lr_factor(self.step, self.config.steps, self.optim))
        # Ranks exchange gradients once a step, with the last micro-batch.
        syncs = [number == len(batches) for number in range(1, len(batches) + 1)]
        parts = [self.forward_backward(b, counts, sync=s) for b, s in zip(batches, syncs, strict=True)]
        losses_MK = torch.stack(parts)
        self.gradients.complete()
        self.loss_scale.unscale(self.gradients)
        norms = self.gradients.norms()
        losses_K = distributed.sum_tensor(losses_MK.sum(0))
        values_N = torch.cat([losses_K, norms])
        reading = numerics.HostReading(values_N)
        if self._masks_steps:
            # Applied only where all is finite, which the device itself knows: it goes on while the host reads.
            self.optimizer.found_inf = (~torch.isfinite(values_N).all()).float()  # type: ignore[attr-defined]
            self._apply(norms)
        # The one wait for the device in a step.
        values = reading.wait()
        losses = dict(zip(counts, values, strict=False))
        finite = all(math.isfinite(value) for value in values)
        if not finite:
            self._skip_or_refuse(batches, losses_MK, losses)
        elif not self._masks_steps:
            self._apply(norms)
        self.loss_scale.update(finite)
        self.step += 1
        if self.average is not None and finite:
            self.average.update(self.step)
        size = self.gradients.read(values[len(losses) :])
        total = sum(self._weight(name) * loss for name, loss in losses.items())
        sizes = (size.norm, size.share, size.vision_share)
        return StepMetrics(self.step, total, losses, lr, *sizes, dict(work), skipped=not finite)

    def _apply(self, norms: Tensor) -> None:
        """Clip the gradients, change the weights by them, and forget them."""
        if self.optim.clip_norm is not None:
            self.gradients.clip(self.optim.clip_norm, norms)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def forward_backward(self, batch: Any, counts: Mapping[str, float], *, sync: bool) -> Tensor:
        """Add one micro-batch's gradient.

        Args:
            batch: As the source gave it.
            counts: Loss name → terms in the whole step.
            sync: Whether the gradients are averaged over ranks with this batch, the last of the step.

        Returns:
            (K,) this batch's part of each mean loss, in the order of `counts`, without gradient.
        """
        batch = to_device(batch, self.device)
        with sharding.held_gradients(self._model, not sync):
            with numerics.autocast(self.device, self._amp_dtype):
                sums = self._model(batch)
            if unknown := sums.keys() - counts.keys():
                raise ValueError(f"forward returned {sorted(unknown)}, which loss_counts does not count")
            zero = torch.zeros((), device=self.device)
            # A name without any term has a sum of 0, which stays 0 rather than 0 / 0.
            shares = {
                name: sums[name].float() / (counts[name] or 1.0) if name in sums else zero for name in counts
            }
            # DDP and FSDP average over ranks, whereas the counts make these parts of a sum.
            total = sum((self._weight(name) * share for name, share in shares.items()), zero) * self.world
            if self.world > 1 and sync and not self.sharded:
                total = distributed.touch(total, self.gradients.parameters)
            if total.requires_grad:
                self.loss_scale.scaled(total).backward()
        return torch.stack([share.detach() for share in shares.values()])

    # What hangs on it.

    def _whole(self) -> contextlib.AbstractContextManager[Any]:
        """Within the context rank 0's `objective` has the current weights, averaged if wanted. A collective call."""
        averages = None if self.average is None else self.average.tensors
        if self.sharded:
            return sharding.published(self._trained, self.objective, self.device, averages)
        return contextlib.nullcontext() if self.average is None else self.average.in_place()

    def _weight(self, name: str) -> float:
        own = self.config.loss_weights.get(name)
        return self.objective.loss_weight(name) if own is None else own

    def _begin(self, stack: contextlib.ExitStack) -> None:
        # Files are hashed for it: once a run, and by one process.
        own = self._on_main(self.source.fingerprint)
        self._fingerprint = str(distributed.gather(own)[0])
        self._load_or_start()
        self._model: Any = self._trained if self.sharded else distributed.wrap(self.objective)
        stack.callback(self._saver.close)
        config, pinned = self.config, self.device.type == "cuda"
        place = (self.source, self.step, config.steps, config.micro_batches)
        ranks = {"rank": self.rank, "world": self.world, "num_workers": config.num_workers}
        self._loader = StepLoader(*place, **ranks, pin_memory=pinned)  # type: ignore[arg-type]
        stack.callback(self._loader.close)
        if self.is_main:
            self._log = RunLog(
                self.run_dir, self.step, self.config.steps, console=self._console, trackers=self._trackers
            )
            stack.callback(self._log.close)
            self._log.table(self.parts)
            for note in self._notes:
                self._log.say(note)
        with self._whole():
            for hook in self.hooks:
                hook.on_start(self)
            if self._saved_step is None:
                self._on_main(self.evidence.begin)
        self._trained.train()
        self._meter, self._began = Meter(), time.perf_counter()
        self._compiled = CompileWatch(self._trained)
        self._elapsed_before = self._counters.get("seconds", 0.0)
        self._window: list[float] = []
        if self._log is not None:
            self._log.start(self.step)

    def _load_or_start(self) -> None:
        path = checkpoint.latest(self.run_dir)
        if self.is_main and (self.resume or path is None):  # else it's refused, and nothing of it may change
            checkpoint.remove_leftovers(self.run_dir)
        self._notes: list[str] = []
        if path is None:
            if self.resume:
                self._notes.append(f"nothing to resume in {self.run_dir}, starting at step 0")
            return
        if not self.resume:
            raise VitpError(
                "already holds a run", where=str(self.run_dir), fix="resume it, or name another folder"
            )
        self._notes += self._on_main(self.evidence.mend) or []
        own = (self._trained, self.optimizer, self._names, self.average)
        found = recovery.load_newest(
            self.run_dir, lambda saved: is_of_source(saved, self.source, self._fingerprint), *own
        )
        assert found is not None
        state = found.state
        self.step = self._saved_step = state.step
        self._counters = state.counters
        self.evidence.load_state(state.evidence)
        self.patience.load_state(state.more.get("patience", {}))
        self.loss_scale.load_state(state.more.get("scaler", {}))
        self._notes += [*found.notes, f"resumed {found.path}"]
        settings = self._settings()
        self._notes += recovery.changes_on_resume(
            state, settings, self.optim, self.config, self.objective.scheduled
        )

    def _settings(self) -> dict[str, Any]:
        # As JSON, so that they compare with what a checkpoint holds.
        optim, train = self.optim.model_dump(mode="json"), self.config.model_dump(mode="json")
        return {"optim": optim, "train": train, "world": self.world}

    def _more(self) -> dict[str, Any]:
        """Return the state of what is switched on, for a checkpoint."""
        more = {"patience": self.patience.state(), "average": self.config.ema is not None}
        more["scaler"] = self.loss_scale.state()
        return {name: state for name, state in more.items() if state}

    def _next_batches(self) -> tuple[list[Any], RankReport]:
        """Return this rank's micro-batches of the next step and the sum over ranks of what they hold."""
        batches, counts, work, error = read_step(self._loader, self.objective)
        own = RankReport(counts, work, self._signals.received, error, self._saver.ready)
        reports = self._exchange(own)
        if self._saver.pending and all(report.saved for report in reports):
            self._saver.finish()
        for report in reports:
            if report.error is not None:
                raise error or report.error
        if stop := next((report.stop for report in reports if report.stop is not None), None):
            raise Interrupted(stop, self.step, self.save())
        counts = distributed.sum_dicts(report.counts for report in reports)
        numerics.check_loss_names(self.config, counts, self.objective.loss_weights)
        work = distributed.sum_dicts(report.work for report in reports)
        return batches, replace(own, counts=counts, work=work)

    def _after_step(self, metrics: StepMetrics) -> None:
        if not metrics.skipped:
            self.evidence.add_share(metrics.vision_share)
            self._last_loss = metrics.loss
            self._window.append(metrics.loss)
        self._meter.add(metrics.work)
        self._counters = distributed.sum_dicts([self._counters, metrics.work])
        self._counters["seconds"] = self._elapsed_before + time.perf_counter() - self._began
        self._report(metrics)
        steps = self.config.steps
        # Behind the warm-up: with rates near 0 a tower that learns well hasn't moved yet.
        early = self.config.check_at or min(50, self.optim.warmup(steps) + 5)
        check, last = self.step == min(early, steps), self.step == steps
        looks = check or any(last or (hook.every and self.step % hook.every == 0) for hook in self.hooks)
        with self._whole() if looks else contextlib.nullcontext():
            for hook in self.hooks:
                hook.on_step_end(self, self.step, metrics)
            if check:
                self._on_main(lambda: self.evidence.check(self.step))
        if self.hooks:
            # Hooks may have left it in evaluation mode.
            self._trained.train()
        if looks and self.patience.judge(self.step, self.hooks):
            self.save(wait=False)
        if self.config.save_every and self.step % self.config.save_every == 0:
            self.save(wait=False)

    def _report(self, metrics: StepMetrics) -> None:
        if self._log is None:
            return
        self._log.advance(self.step)
        if metrics.skipped or (self.step % self.config.log_every and self.step != self.config.steps):
            return
        rates = self._meter.read(self._loader.wait_s) | {"elapsed_s": self._counters["seconds"]}
        rates |= self.loss_scale.row()
        self._log.row(metrics_row(metrics, self._window, rates, self.device))
        self._window = []
        if news := self._compiled.news():
            self._log.say(news)

    def _skip_or_refuse(self, batches: Sequence[Any], losses_MK: Tensor, losses: Mapping[str, float]) -> None:
        """Throw the gradients away; where the loss scale can't fall, save the last good state and raise."""
        self.optimizer.zero_grad()
        what, suspects = numerics.what_is_not_finite(batches, losses_MK, losses)
        names = [name for batch in suspects for name in getattr(batch, "record_names", ()) or ()]
        names = [name for of_rank in distributed.gather(names) for name in of_rank]
        # Running statistics (batch norm) see a batch before its loss does.
        whole = sharding.all_finite(self._trained)
        if whole and self.loss_scale.can_fall:
            scale = self.loss_scale.value
            self.say(f"step {self.step + 1} skipped: {what} at a loss scale of {scale:g}, which is halved")
            return
        kept = (
            f"the state before it is saved in {self.save()}" if whole else "earlier checkpoints are untouched"
        )
        raise numerics.not_finite_error(what, names, kept, self.step + 1, self.run_dir)

    def save(self, *, wait: bool = True) -> Path:
        """Write a checkpoint of the current step, unless there is one; return its folder.

        Args:
            wait: Whether it is there on return; else, with `train.async_save`, it is written meanwhile.

        Raises:
            VitpError: The disk is full or can't be written.
        """
        if self._saved_step != self.step:
            told, evidence = (self._fingerprint, self._counters), self.evidence.state()
            state = RunState(self.step, *told, evidence, self._settings(), more=self._more())
            averages = None if self.average is None else self.average.tensors
            self._saver.save(state, self._trained, self.optimizer, self._names, averages)
            self._saved_step = self.step
        if wait:
            self._saver.finish()
        return checkpoint.folder(self.run_dir, self.step)

    def say(self, text: str) -> None:
        """Print one line on rank 0."""
        if self._log is not None:
            self._log.say(text)

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers that a hook measured to `metrics.jsonl` and TensorBoard; nothing on other ranks than 0."""
        if self._log is not None:
            self._log.scalars(step, values)

    def _on_main(self, action: Any) -> Any:
        return distributed.on_main(action, self.is_main)

    def _finish(self) -> TrainResult:
        if self.patience.ended:
            self.say(str(self.patience))
        if self.patience.is_behind(self.step, self.hooks):
            path = checkpoint.folder(self.run_dir, self.patience.best_step)
            self.say(recovery.load_best(path, self._trained, self.optimizer, self._names, self.average))
        with self._whole():
            for hook in self.hooks:
                hook.on_end(self)
            evidence = self._on_main(lambda: self.evidence.finish(self.step)) or {}
            if self._log is not None:
                self._log.say(summary(evidence))
            model = self._on_main(lambda: save_pretrained(self.objective, self.run_dir))
        if self.average is not None and not self.sharded:
            self.average.swap()  # the objective goes on with the weights that were written
        last = checkpoint.folder(self.run_dir, self.step)
        return TrainResult(
            self.step, self._last_loss, last, model, evidence, self._counters.get("seconds", 0.0)
        )
