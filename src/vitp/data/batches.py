"""The batches of a run, of every objective and every task: a pure function of the place in the run.

An order says which sample comes at which position, a collate makes the batch of some samples, and `SampledBatches` says
which positions belong to a step, a micro-batch and a rank. None of them has a state, so neither workers nor ranks nor a
resume change what is learned from. Fetching ahead is the engine's (`vitp.engine.loading`).
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol

import numpy as np
from typing_extensions import TypeVar

from vitp.core.errors import ConfigError
from vitp.data.fingerprint import fingerprint, json_digest, labels_digest
from vitp.data.lengths import balanced
from vitp.data.mixture import Item, Sample
from vitp.records.labels import LabelledImage, LabelledSet

Batch = TypeVar("Batch", default=Any)


class Order(Protocol[Item]):
    """Position in the run → sample."""

    def __len__(self) -> int:
        """Return the samples of an epoch."""
        ...

    def __getitem__(self, position: int) -> Sample[Item]: ...

    def contents(self, *, former: bool = False) -> list[str]:
        """Return hashes of what the samples are: labels, texts and image files; see `labels_digest`."""
        ...


class Collate(ABC, Generic[Item, Batch]):
    """Makes the batch of some samples: what an objective or a task sees of them."""

    @abstractmethod
    def __call__(self, samples: Sequence[Sample[Item]], step: int) -> Batch:
        """Return the batch.

        Args:
            samples: With their positions, which decide all that is random about them.
            step: Optimizer step, for what follows a schedule.

        Raises:
            DataError: A sample can't be used.
        """

    @abstractmethod
    def facts(self, order: Any, global_batch: int) -> Any:
        """Return order and options that decide the batches, as JSON in the form that saved runs have hashed."""

    def contents(self, order: Any) -> list[Any]:
        """Return what else decides the batches, as JSON: texts, the tokenizer, options that `facts` leaves out."""
        return []


def check_global_batch(global_batch: int, micro_batches: int, ranks: int) -> None:
    """Do nothing when all micro-batches of all ranks get as many samples of a step.

    Raises:
        ConfigError: They don't. Contrastive losses gather rows over ranks, which must be as many on each, and which
            samples share a batch would depend on the number of parts.
    """
    parts = micro_batches * ranks
    if global_batch % parts:
        raise ConfigError(
            f"a step of {global_batch} samples can't be cut into {parts} equal parts ({micro_batches} micro-batches "
            f"× {ranks} ranks)",
            where="data.global_batch",
            fix=f"choose a multiple of {parts}, or another train.micro_batches",
        )


class SampledBatches(Generic[Item, Batch]):
    """The batches of a run: step, micro-batch and rank → batch.

    Step s takes positions s · G … (s + 1) · G − 1 of the order, which its micro-batches and ranks share out.

    Args:
        order: Samples by position.
        collate: Samples → batch.
        global_batch: Samples an optimizer step (G), over all micro-batches and ranks.
        micro_batches: Parts that a rank cuts its share of a step into.
        cost: What computing a sample costs; with it the samples of a step are shared out so that all ranks and
            micro-batches have about the same to do (`vitp.data.lengths.balanced`).
        interleaved: Without a cost: deal the positions out in turn, instead of in slices of neighbours. The samples of
            a step are the same either way.
    """

    def __init__(
        self,
        order: Order[Item],
        collate: Collate[Item, Batch],
        global_batch: int,
        micro_batches: int = 1,
        *,
        cost: Callable[[Sample[Item]], float] | None = None,
        interleaved: bool = False,
    ) -> None:
        self.order, self.collate = order, collate
        self.global_batch, self.micro_batches = global_batch, micro_batches
        self.cost, self.interleaved = cost, interleaved

    def __call__(self, step: int, micro: int, rank: int, world: int) -> Batch:
        """Return the `micro`-th batch of a step for a rank.

        Raises:
            ConfigError: A step can't be cut into equal parts.
            DataError: A sample can't be used.
        """
        check_global_batch(self.global_batch, self.micro_batches, world)
        parts = self.micro_batches * world
        positions = self._share(step, micro * world + rank, parts)
        return self.collate([self.order[position] for position in positions], step)

    def _share(self, step: int, part: int, parts: int) -> Sequence[int]:
        """Return the positions of one part of a step."""
        positions = range(step * self.global_batch, (step + 1) * self.global_batch)
        if self.cost is not None:
            costs = [self.cost(self.order[position]) for position in positions]
            return [positions[number] for number in balanced(costs, parts)[part]]
        if self.interleaved:
            return positions[part::parts]
        size = self.global_batch // parts
        return positions[part * size : (part + 1) * size]

    def fingerprint(self) -> str:
        """Return a hash of all that decides the batches: samples, labels, image files, order and options."""
        return fingerprint(self._facts(), self.order.contents(), self.collate.contents(self.order))

    def former_fingerprints(self) -> tuple[str, ...]:
        """Return the hashes that earlier versions saved with the same batches; those looked at less."""
        facts = self._facts()
        return fingerprint(facts, self.order.contents(former=True)), facts

    def _facts(self) -> str:
        return json_digest(self.collate.facts(self.order, self.global_batch))


class ShuffledImages:
    """The images of a labelled set, each of them once an epoch, in another order each time.

    Args:
        labelled: Images of the wanted split; may be lazy.
        seed: Seed of the order.
        repeats: How often each image comes in an epoch, on average, at least 1; None: once each. An epoch then has
            about their sum of samples, and each image in it as often as its number, rounded down or up by chance.
        partners: Other images of the epoch, drawn by chance, that come with each to be mixed with.

    Raises:
        ConfigError: There are none.
    """

    def __init__(
        self, labelled: LabelledSet, seed: int, repeats: Sequence[float] | None = None, *, partners: int = 0
    ) -> None:
        if not len(labelled):
            raise ConfigError("has no images", where=labelled.name, fix="choose another split or set")
        self.labelled, self.seed = labelled, seed
        self.repeats = None if repeats is None else tuple(repeats)
        self.partners = partners

    def __len__(self) -> int:
        return len(self.labelled) if self.repeats is None else round(sum(self.repeats))

    def __getitem__(self, position: int) -> Sample[LabelledImage]:
        start = position - position % len(self)
        others: tuple[LabelledImage, ...] = ()
        if self.partners:
            rng = np.random.default_rng([self.seed, position, 4])
            drawn = rng.integers(len(self), size=self.partners)
            others = tuple(self._item(start + offset) for offset in drawn.tolist())
        return Sample(self._item(position), None, False, 0, position, self.seed, others)

    def _item(self, position: int) -> LabelledImage:
        epoch, offset = divmod(position, len(self))
        if self.repeats is None:
            index = int(_permutation(self.seed, epoch, len(self.labelled))[offset])
        else:
            index = int(_repeated(self.seed, epoch, self.repeats)[offset])
        return self.labelled.items[index]

    def contents(self, *, former: bool = False) -> list[str]:
        """Return the hash of all labels and images; see `labels_digest`."""
        return [labels_digest(self.labelled, former=former)]

    def facts(self, image: Callable[[str], str] = str) -> dict[str, Any]:
        """Return name, size and images of the set for `Collate.facts`.

        Args:
            image: Address of an image → what of it counts.
        """
        labelled, count = self.labelled, len(self.labelled)
        # Items of a lazy set are rendered when they are touched: a few of them stand for all.
        eager = isinstance(labelled.items, list | tuple)
        items = [labelled.items[index] for index in range(0, count, 1 if eager else max(1, count // 8))]
        return {
            "set": labelled.name,
            "count": count,
            "items": [(item.id, image(item.image)) for item in items],
            **({} if self.repeats is None else {"repeats": [round(one, 6) for one in self.repeats]}),
        }


def repeat_factors(classes: Sequence[frozenset[str]], threshold: float) -> list[float]:
    """Return how often each image is to come so that rare classes come more often: max over its classes of √(t / f).

    Repeat factor sampling of LVIS (arXiv 1908.03195, appendix B.3); f is the share of the images that hold a class. An
    image without a class, and one of frequent classes alone, comes once.

    Args:
        classes: Classes of each image.
        threshold: t, the share below which a class counts as rare.
    """
    images = Counter(name for held in classes for name in held)
    rare = {name: max(1.0, math.sqrt(threshold * len(classes) / count)) for name, count in images.items()}
    return [max((rare[name] for name in held), default=1.0) for held in classes]


@functools.lru_cache(maxsize=4)
def _repeated(seed: int, epoch: int, repeats: tuple[float, ...]) -> np.ndarray:
    """Return the images of an epoch in their order, each as often as its number says, rounded down or up by chance.

    One random offset for all (systematic sampling) makes each mean exact and all epochs equally long.
    """
    rng = np.random.default_rng([seed, epoch, 3])
    ends = np.cumsum(repeats) * (round(sum(repeats)) / sum(repeats))
    marks = np.floor(ends + rng.random())
    marks[-1] = round(sum(repeats))
    indices = np.repeat(np.arange(len(repeats)), np.diff(marks, prepend=0.0).astype(int))
    return indices[rng.permutation(len(indices))]


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, 0]).permutation(count)
