"""Early stop: when a run has gone without a better score for long enough."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vitp.core import distributed
from vitp.engine.hooks import Hook


@dataclass
class Patience:
    """Counts the looks at a score since the best one. All ranks have the same, and so has a resumed run.

    Attributes:
        most: Looks in a row without a better score after which a run ends; None: it never does.
        min_gain: By how much a score must be above the best one to be better.
        best: Best score so far, None before any.
        best_step: Its step.
        waited: Looks since then.
    """

    most: int | None
    min_gain: float = 0.0
    best: float | None = None
    best_step: int = 0
    waited: int = 0

    def look(self, step: int, score: float) -> bool:
        """Count the score of a step, and return whether it is the best so far. NaN says nothing, and isn't counted."""
        if math.isnan(score):
            return False
        if self.best is None or score > self.best + self.min_gain:
            self.best, self.best_step, self.waited = score, step, 0
            return True
        self.waited += 1
        return False

    def judge(self, step: int, hooks: Sequence[Hook]) -> bool:
        """Count what the hooks of rank 0 scored at this step, on all ranks alike. A collective call.

        Returns:
            Whether the engine is to keep these weights as the best.
        """
        if self.most is None:
            return False
        scores = [hook.score[1] for hook in hooks if hook.score is not None and hook.score[0] == step]
        better = [self.look(step, score) for score in distributed.gather(scores)[0]]
        return any(better) and not any(hook.keeps_best for hook in hooks)

    def is_behind(self, step: int, hooks: Sequence[Hook]) -> bool:
        """Return whether a run that ends at this step had better weights before, which the engine has kept."""
        return self.best_step not in (0, step) and not any(hook.keeps_best for hook in hooks)

    @property
    def ended(self) -> bool:
        """Whether the run is to end."""
        return self.most is not None and self.waited >= self.most

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of it; nothing where no run ends early."""
        kept = asdict(self)
        return {} if self.most is None else {name: kept[name] for name in ("best", "best_step", "waited")}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what a checkpoint kept; of one without it, begin to count."""
        best = state.get("best")
        self.best = None if best is None else float(best)
        self.best_step, self.waited = int(state.get("best_step", 0)), int(state.get("waited", 0))

    def __str__(self) -> str:
        """Return why the run ends, in words."""
        return (
            f"stopped early: no better score in {self.waited} looks since step {self.best_step} "
            f"({self.best:.4g}; train.patience {self.most})"
        )
