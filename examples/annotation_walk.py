"""Two rounds of annotation: what the model is least sure of is labelled next, against as many images picked at random.

    python examples/annotation_walk.py OUT [STEPS] [SEED]

The scenes are generated, seen from above as from a drone, and the annotator is simulated: it answers the tasks of
`vitp predict --for label-studio` from the truth, in the JSON that Label Studio exports. The commands are those that anybody
would type, and are printed. `benchmarks/annotation.py` goes the same way over several seeds.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitp.cli import run
from vitp.records.labels import LabelledImage
from vitp.scenes import scene_set, write_scenes

WAYS = ("uncertain", "random")


@dataclass(frozen=True)
class Plan:
    """How much is labelled, and how it is learned.

    Attributes:
        first: Scenes that are labelled at the start.
        pool: Scenes that wait for labels.
        test: Scenes that scores are computed on.
        a_round: Scenes that are labelled in a round.
        size: Of a scene in pixels.
        steps: Of each finetuning.
        settings: Of each finetuning, beside the steps.
    """

    first: int = 8
    pool: int = 40
    test: int = 24
    a_round: int = 8
    rounds: int = 2
    size: int = 64
    steps: int = 150
    settings: tuple[str, ...] = ("data.global_batch=4",)


def vitp(*words: object) -> None:
    """Run a command in this process."""
    print("$ vitp", *words, flush=True)
    if run([str(word) for word in words]):
        raise SystemExit(f"vitp {words[0]} failed")


def name_of(task: dict[str, Any]) -> str:
    """Return the file name of a task's image, which stands behind `?d=`."""
    return Path(task["data"]["image"].rpartition("?d=")[2]).name


def answer(task: dict[str, Any], scene: LabelledImage) -> dict[str, Any]:
    """Return a task as an annotator leaves it who draws every object: a scene without any is submitted empty."""
    results = []
    for number, label in enumerate(scene.objects or ()):
        x1, y1, x2, y2 = label.box
        value = {"x": x1 / scene.width, "y": y1 / scene.height}
        value |= {"width": (x2 - x1) / scene.width, "height": (y2 - y1) / scene.height}
        value = {key: 100 * share for key, share in value.items()}
        named = {"rotation": 0, "rectanglelabels": [label.category]}
        size = {"original_width": scene.width, "original_height": scene.height}
        about = {"id": f"r{number}", "from_name": "label", "to_name": "image", "type": "rectanglelabels"}
        results.append({**about, **size, "value": {**value, **named}})
    return {**task, "annotations": [{"result": results, "was_cancelled": False}]}


class Annotation:
    """The images that wait for labels, and who labels them.

    Args:
        out: Folder of all that is written.
        plan: How much is labelled.
        seed: Of the scenes and of what is picked at random.
    """

    def __init__(self, out: Path, plan: Plan, seed: int) -> None:
        self.out, self.plan, self.seed = out, plan, seed
        known = [
            scene_set("port", seed=seed, count=count, size=plan.size, split=split)
            for split, count in (("train", plan.first), ("test", plan.test))
        ]
        waiting = scene_set("port", seed=seed + 1000, count=plan.pool, size=plan.size, split="train")
        if not (out / "data").exists():
            write_scenes(known, out / "first", layout="coco")
            write_scenes(waiting, out / "unlabelled", layout="coco")
            vitp("data", "compile", out / "first", "--out", out / "data")
        self.pool = sorted((out / "unlabelled").rglob("*.png"))
        self.truth = {path.name: item for path, item in zip(self.pool, waiting.items, strict=True)}
        self.classes = ",".join(waiting.object_classes)

    def learn(self, data: Path, name: str) -> float:
        """Finetune on a compiled set, and return the AP50 of the test images."""
        scores = self.out / name / "scores.json"
        if not scores.exists():
            made = (
                "--data",
                data,
                "--backbone",
                "starter",
                "--out",
                self.out / name,
                "--steps",
                self.plan.steps,
            )
            settings = (word for setting in self.plan.settings for word in ("-s", setting))
            vitp("finetune", "detection", *made, *settings, "-s", f"seed={self.seed}")
        return float(json.loads(scores.read_text(encoding="utf-8"))["values"]["AP50"])

    def choose(self, way: str, model: str, name: str, taken: list[str]) -> list[dict[str, Any]]:
        """Return the tasks of a round: the least sure first, or picked at random."""
        left = [path for path in self.pool if path.name not in taken]
        vitp("predict", self.out / model, *left, "--for", "label-studio", "--out", self.out / f"{name}-tasks")
        text = (self.out / f"{name}-tasks" / "label-studio" / "tasks.json").read_text(encoding="utf-8")
        tasks: list[dict[str, Any]] = json.loads(text)
        if way == "uncertain":
            return tasks[: self.plan.a_round]
        return random.Random(f"{self.seed} {name}").sample(sorted(tasks, key=name_of), self.plan.a_round)

    def label(self, before: Path, name: str, tasks: list[dict[str, Any]]) -> Path:
        """Let the tasks be answered, and return the compiled set that holds these images, too."""
        folder = self.out / f"{name}-export"
        folder.mkdir()
        for task in tasks:
            shutil.copy(next(path for path in self.pool if path.name == name_of(task)), folder)
        answers = [answer(task, self.truth[name_of(task)]) for task in tasks]
        (folder / "project.json").write_text(json.dumps(answers), encoding="utf-8")
        labelled, merged = self.out / f"{name}-labelled", self.out / f"{name}-data"
        vitp("data", "compile", folder, "--out", labelled, "-o", f"classes={self.classes}")
        vitp("data", "merge", before, labelled, "--splits", "train", "--out", merged)
        return merged

    def go(self, way: str) -> tuple[list[float], list[int]]:
        """Return the AP50 at the start and after each round, and how many objects were drawn in each round."""
        data, model, taken = self.out / "data", "model", list[str]()
        scores, drawn = [self.learn(data, model)], []
        for number in range(1, self.plan.rounds + 1):
            name = f"{way}-{number}"
            tasks = self.choose(way, model, name, taken)
            data, model = self.label(data, name, tasks), f"{name}-model"
            taken += map(name_of, tasks)
            drawn.append(sum(len(self.truth[name_of(task)].objects or ()) for task in tasks))
            scores.append(self.learn(data, model))
        return scores, drawn


def main(out: Path, steps: int = 150, seed: int = 0) -> dict[str, list[float]]:
    """Write everything under OUT; return the AP50 after each round, of what is picked by uncertainty and by chance."""
    plan = Plan(steps=steps)
    work = Annotation(out, plan, seed)
    found = {way: work.go(way) for way in WAYS}
    scores = {way: values for way, (values, _) in found.items()}
    print(f"AP50 of {plan.test} test scenes, {steps} steps, seed {seed}")
    print("labelled   uncertain   random")
    for number, (one, two) in enumerate(zip(scores["uncertain"], scores["random"], strict=True)):
        print(f"{plan.first + number * plan.a_round:8}   {100 * one:9.1f}   {100 * two:6.1f}")
    ends = scores["uncertain"][-1] - scores["random"][-1]
    print(f"uncertain less random at the end: {100 * ends:+.1f}; one seed says little, so try some")
    print("objects drawn:", ", ".join(f"{sum(drawn)} {way}" for way, (_, drawn) in found.items()))
    return scores


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
