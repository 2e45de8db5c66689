"""Two rounds of annotation: what the model is least sure of is labelled next, against as many images picked at random.

    python examples/annotation_walk.py OUT [STEPS] [SEED]

The scenes are generated, seen from above as from a drone, and the annotator is simulated: it answers the tasks of
`vitp predict --for label-studio` from the truth, in the JSON that Label Studio exports. The commands are those that anybody
would type, and are printed.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

from vitp.cli import run
from vitp.records.labels import LabelledImage
from vitp.scenes import scene_set, write_scenes

SIZE = 64
FIRST, POOL, TEST, A_ROUND = 8, 40, 24, 8
ROUNDS = 2


def vitp(*words: object) -> None:
    """Run a command in this process."""
    print("$ vitp", *words, flush=True)
    if run([str(word) for word in words]):
        raise SystemExit(f"vitp {words[0]} failed")


def name_of(task: dict[str, Any]) -> str:
    """Return the file name of a task's image, which stands behind `?d=`."""
    return Path(task["data"]["image"].rpartition("?d=")[2]).name


def answer(task: dict[str, Any], truth: dict[str, LabelledImage]) -> dict[str, Any]:
    """Return a task as an annotator leaves it who draws every object: a scene without any is submitted empty."""
    scene = truth[name_of(task)]
    results = []
    for number, label in enumerate(scene.objects or ()):
        x1, y1, x2, y2 = label.box
        value = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
        value = {key: 100 * pixels / SIZE for key, pixels in value.items()}
        named = {"rotation": 0, "rectanglelabels": [label.category]}
        size = {"original_width": scene.width, "original_height": scene.height}
        about = {"id": f"r{number}", "from_name": "label", "to_name": "image", "type": "rectanglelabels"}
        results.append({**about, **size, "value": {**value, **named}})
    return {**task, "annotations": [{"result": results, "was_cancelled": False}]}


class Annotation:
    """The images that wait for labels, and who labels them.

    Args:
        out: Folder of all that is written.
        seed: Of the scenes and of what is picked at random.
        steps: Of each finetuning.
    """

    def __init__(self, out: Path, seed: int, steps: int) -> None:
        self.out, self.steps, self.chance = out, steps, random.Random(seed)
        known = [
            scene_set("port", seed=seed, count=count, size=SIZE, split=split)
            for split, count in (("train", FIRST), ("test", TEST))
        ]
        write_scenes(known, out / "first", layout="coco")
        waiting = scene_set("port", seed=seed + 1, count=POOL, size=SIZE, split="train")
        write_scenes(waiting, out / "unlabelled", layout="coco")
        self.pool = sorted((out / "unlabelled").rglob("*.png"))
        self.truth = {path.name: item for path, item in zip(self.pool, waiting.items, strict=True)}
        self.classes = ",".join(waiting.object_classes)

    def learn(self, data: Path, name: str) -> float:
        """Finetune on a compiled set, and return the AP50 of the test images."""
        made = ("--data", data, "--backbone", "starter", "--out", self.out / name)
        vitp("finetune", "detection", *made, "--steps", self.steps, "-s", "data.global_batch=4")
        values = json.loads((self.out / name / "scores.json").read_text(encoding="utf-8"))["values"]
        return float(values["AP50"])

    def round(self, before: Path, model: str, name: str, *, uncertain: bool, taken: set[str]) -> Path:
        """Label some images more, and return the compiled set that holds them, too."""
        left = [path for path in self.pool if path.name not in taken]
        vitp("predict", self.out / model, *left, "--for", "label-studio", "--out", self.out / f"{name}-tasks")
        text = (self.out / f"{name}-tasks" / "label-studio" / "tasks.json").read_text(encoding="utf-8")
        tasks = json.loads(text)
        chosen = tasks[:A_ROUND] if uncertain else self.chance.sample(tasks, A_ROUND)
        folder = self.out / f"{name}-export"
        folder.mkdir()
        for task in chosen:
            image = name_of(task)
            taken.add(image)
            shutil.copy(next(path for path in left if path.name == image), folder)
        answers = [answer(task, self.truth) for task in chosen]
        (folder / "project.json").write_text(json.dumps(answers), encoding="utf-8")
        labelled, merged = self.out / f"{name}-labelled", self.out / f"{name}-data"
        vitp("data", "compile", folder, "--out", labelled, "-o", f"classes={self.classes}")
        vitp("data", "merge", before, labelled, "--splits", "train", "--out", merged)
        return merged


def main(out: Path, steps: int = 150, seed: int = 0) -> dict[str, list[float]]:
    """Write everything under OUT; return the AP50 after each round, of what is picked by uncertainty and by chance."""
    work = Annotation(out, seed, steps)
    vitp("data", "compile", out / "first", "--out", out / "data")
    start = work.learn(out / "data", "model")
    scores: dict[str, list[float]] = {}
    for way in ("uncertain", "random"):
        data, model, taken = out / "data", "model", set[str]()
        scores[way] = [start]
        for number in range(1, ROUNDS + 1):
            name = f"{way}-{number}"
            data = work.round(data, model, name, uncertain=way == "uncertain", taken=taken)
            model = f"{name}-model"
            scores[way].append(work.learn(data, model))
    print(f"AP50 of {TEST} test scenes, {steps} steps, seed {seed}")
    print("labelled   uncertain   random")
    for number, (one, two) in enumerate(zip(scores["uncertain"], scores["random"], strict=True)):
        print(f"{FIRST + number * A_ROUND:8}   {100 * one:9.1f}   {100 * two:6.1f}")
    ends = scores["uncertain"][-1] - scores["random"][-1]
    print(f"uncertain less random at the end: {100 * ends:+.1f}; one seed says little, so try some")
    return scores


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), *map(int, sys.argv[2:])))
