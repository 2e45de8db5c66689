"""Command lines on changed inputs: all commands, each with inputs that it reads and options that it takes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import yaml

from tests.fuzz import mutate
from tests.fuzz.seeds import LAYOUTS, finetune_settings, pretrain_settings


@dataclass(frozen=True)
class Template:
    """A command and what it is tried on.

    Attributes:
        command: Its words; `{in}` is the folder of the inputs, `{out}` what is to be written.
        inputs: Names of the seeds that are copied into `{in}`.
        numbers: Options that take a number.
        words: Options that take a text.
        marker: A file that a whole output folder has; "file" for an output that is one file; None: nothing is checked.
        weight: How often it is tried, relative to others.
        own: The command changes its inputs, as a resumed run does.
        valid: It succeeds when nothing is wrong with its input.
    """

    command: tuple[str, ...]
    inputs: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    marker: str | None = None
    weight: float = 1.0
    own: bool = False
    valid: bool = True


@dataclass
class Case:
    """A command line that is ready to be run.

    Attributes:
        name: Of the command.
        arguments: Of `vitp`.
        folder: Where it runs; inputs are in `in`.
        out: What it is to write.
        marker, own: Of the template.
        whole: Nothing was changed: it must succeed.
    """

    name: str
    arguments: list[str]
    folder: Path
    out: Path
    marker: str | None
    own: bool
    whole: bool
    before: dict[str, tuple[int, int]] = field(default_factory=dict)


_COMPILE = tuple(
    Template(
        ("data", "compile", f"{{in}}/{layout}", "--out", "{out}", "--format", fmt),
        (f"labels/{layout}",),
        ("--seed", "--crop", "--overlap", "--empty", "--questions", "--grid", "--max-tiles"),
        ("--task", "--option", "--format"),
        "summary.json",
        weight,
    )
    for layout in (*LAYOUTS, "captions")
    for fmt, weight in ((layout, 2.0), ("auto", 1.0))
)

_CHECKED = ("rows.jsonl", "array.json", "chat.jsonl", "mixture.json", "range.json", "shards/mixture.json")

TEMPLATES: tuple[Template, ...] = (
    *_COMPILE,
    Template(("data", "compile", "{in}/compiled", "--out", "{out}"), ("compiled",), (), ("--format",), "summary.json"),
    *(
        Template(("data", "check", f"{{in}}/rows/{name}"), ("rows",), ("--max-length", "--max-tiles"), ("--against",), weight=1.5)
        for name in _CHECKED
    ),
    Template(("data", "check", "{in}/compiled"), ("compiled",), ("--max-length",), ("--against", "--model")),
    Template(("data", "show", "{in}/compiled", "--out", "{out}.html"), ("compiled",), ("--count", "--seed", "--max-tiles"), (), "file", 2),
    Template(("data", "show", "{in}/rows/mixture.json", "--out", "{out}.html"), ("rows",), ("--count",), (), "file", 2),
    Template(("data", "scenes", "port", "--count", "2", "--size", "32", "--out", "{out}"), (), ("--size", "--seed"), ("--layout",)),
    Template(("data", "leaks", "{in}/rows/rows.jsonl", "--test", "{in}/compiled"), ("rows", "compiled"), (), ("--test",), valid=False),
    Template(("data", "merge", "{in}/compiled", "{in}/compiled", "--out", "{out}"), ("compiled",), ("--val", "--seed"), ("--other-patients",), "summary.json", 0.5),
    Template(("data", "sets"), (), (), (), weight=0.2),
    Template(("data", "prepare", "dior", "--root", "{in}/voc", "--out", "{out}"), ("labels/voc",), ("--crop", "--overlap"), ("--option", "--protocol"), valid=False),
    Template(("data", "prepare", "loveda", "--root", "{in}/masks", "--out", "{out}"), ("labels/masks",), ("--crop",), ("--option",), valid=False),
    Template(("plan", "{in}/pretrain.yaml", "--samples", "10"), ("rows", "pretrain.yaml"), ("--samples", "--price", "--utilisation"), ("--gpu", "--init", "--data", "--set"), weight=1.5),
    Template(("plan", "{in}/classification.yaml", "--data", "{in}/folders"), ("labels/folders", "classification.yaml"), ("--images",), ("--set", "--gpu"), weight=1.5),
    Template(("recipes", "show", "loveda"), (), (), ("--set",), weight=0.5),
    Template(("recipes", "run", "loveda", "--out", "{out}", "--dry-run", "--data", "{in}/masks"), ("labels/masks",), ("--scale",), ("--set", "--init"), weight=0.5),
    Template(("study", "paradigms", "--plan", "--out", "/dev/null/x"), (), ("--minutes",), ("--set", "--data", "--scale", "--rows"), weight=0.5, valid=False),
    Template(("tune", "classification", "--data", "{in}/folders", "--out", "/dev/null/x"), ("labels/folders",), ("--trials", "--minutes"), ("--set", "--space", "--backbone"), weight=0.2, valid=False),
    Template(("serve", "{in}/folders"), ("labels/folders",), ("--port", "--queue"), ("--root", "--host"), weight=0.2, valid=False),
    Template(("demo", "--out", "/dev/null/x"), (), ("--seeds", "--ceiling"), (), weight=0.2, valid=False),
    Template(("doctor", "--json"), (), (), (), weight=0.1),
    Template(("pretrain", "{in}/pretrain.yaml", "--out", "{out}"), ("rows", "pretrain.yaml"), ("--steps",), ("--set", "--init", "--objective"), weight=4),
    Template(("pretrain", "{in}/mae.yaml", "--out", "{out}"), ("compiled", "mae.yaml"), (), ("--set", "--init"), weight=1),
    Template(("pretrain", "--resume", "--out", "{in}/run"), ("run", "rows"), (), ("--set",), weight=2, own=True),
    Template(("finetune", "classification", "{in}/classification.yaml", "--out", "{out}"), ("labels/folders", "classification.yaml"), ("--steps",), ("--set", "--backbone"), weight=2),
    Template(("finetune", "detection", "{in}/detection.yaml", "--out", "{out}"), ("labels/coco", "detection.yaml"), (), ("--set",), weight=1),
    Template(("finetune", "segmentation", "--resume", "--out", "{in}/segmentation"), ("segmentation",), (), ("--set",), own=True),
    Template(("eval", "{in}/classification", "{in}/folders", "--out", "{out}.json", "--split", "all"), ("classification", "labels/folders"), (), ("--set", "--option", "--split"), "file", 1.5),
    Template(("eval", "{in}/segmentation", "{in}/masks", "--out", "{out}.json"), ("segmentation", "labels/masks"), (), ("--set",), "file"),
    Template(("predict", "{in}/segmentation", "{in}/rows", "--out", "{out}"), ("segmentation", "rows"), (), ("--set", "--later"), weight=2),
    Template(("predict", "{in}/detection", "{in}/rows", "--out", "{out}"), ("detection", "rows"), (), ("--set",), weight=1),
    Template(("ask", "{in}/run", "{in}/rows/{image}", "How many?", "--max-tokens", "2"), ("run", "rows"), ("--max-tokens", "--max-tiles"), ("--draw",), weight=1.5),
    Template(("export", "{in}/run", "--out", "{out}"), ("run",), ("--image-size",), ("--format",), "vitp_backbone.json", 1.5),
    Template(("export", "{in}/export", "--verify"), ("export",), (), ("--against",), weight=2),
    Template(("export", "{in}/model-timm", "--out", "{out}"), ("model-timm",), (), (), "vitp_backbone.json", 2),
    Template(("push", "{in}/export", "file:{out}"), ("export",), (), ("--license", "--also"), "config.json", 0.5),
    *(Template(("convert", f"{{in}}/model-{layout}", "{out}", "--to", "vitp"), (f"model-{layout}",), ("--heads", "--image-size"), ("--architecture", "--template", "--dtype"), "config.json") for layout in ("hf", "original")),
    Template(("swap", "{in}/run", "{out}", "--vision", "{in}/export"), ("run", "export"), ("--seed", "--shuffle"), ("--vision", "--language"), "config.json"),
    Template(("probe", "{in}/export", "{in}/compiled", "--seeds", "1", "--out", "{out}.json"), ("export", "compiled"), ("--labels", "--seeds", "--points"), ("--compare",), "file"),
    Template(("probe", "{in}/run", "{in}/compiled", "--looks", "--out", "{out}.json"), ("run", "compiled"), (), ("--compare",), "file", 0.2, valid=False),
    Template(("starter", "build", "--out", "/dev/null/x", "--quick"), (), (), ("--language",), weight=0.2, valid=False),
    Template(("features", "{in}/export", "--images", "{in}/rows", "--max-images", "1", "--out", "{out}.html"), ("export", "rows"), ("--max-images",), ("--patch",), "file"),
    Template(("robustness", "{in}/classification", "{in}/folders", "--split", "all", "--severities", "1", "--corruptions", "gaussian_noise", "--out", "{out}"), ("classification", "labels/folders"), ("--severities", "--seed"), ("--metric", "--corruptions")),
    Template(("report", "{in}/run", "--samples", "1", "--out", "{out}.html"), ("run", "rows"), ("--samples",), (), "file", 2, own=True),
    Template(("bench", "{in}/pretrain.yaml", "--steps", "1"), ("rows", "pretrain.yaml"), ("--steps",), ("--set",), weight=0.5),
    Template(("check", "{in}/pretrain.yaml", "--records", "1", "--only", "packed"), ("rows", "pretrain.yaml"), ("--records", "--ranks"), ("--only", "--set"), weight=0.5),
)  # fmt: skip

CHEAP = tuple(
    t for t in TEMPLATES if t.command[0] == "data" and t.command[1] != "show" and "--model" not in t.words
)
"""Commands that take a tenth of a second: they need no models, and so no torch."""


def make_case(
    seed: int, number: int, seeds: Path, folder: Path, port: int, templates: tuple[Template, ...]
) -> Case:
    """Return one case, its inputs written; the same for the same seed and number.

    Args:
        seed, number: Decide everything.
        seeds: Folder of `make_seeds`.
        folder: New; for this case alone.
        port: Where somebody listens whom nobody may call.
        templates: To choose from.
    """
    random = Random(f"{seed}:{number}")
    template = random.choices(templates, [t.weight for t in templates])[0]
    inputs = folder / "in"
    inputs.mkdir(parents=True)
    for name in template.inputs:
        source, target = seeds / name, inputs / Path(name).name
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True)
        else:
            shutil.copy(source, target)
    _settings(inputs)
    out = folder / "out"
    places = {"in": str(inputs), "out": str(out), "image": _image(inputs)}
    arguments = [_filled(word, places) for word in template.command]
    whole = random.random() < 0.04
    if not whole:
        _break(random, template, inputs, out, arguments, port)
    name = " ".join(template.command[: 2 if template.command[0] in ("data", "recipes") else 1])
    return Case(name, arguments, folder, out, template.marker, template.own, whole and template.valid)


def _settings(inputs: Path) -> None:
    """Let settings name the copies of the inputs."""
    if (path := inputs / "pretrain.yaml").exists():
        path.write_text(yaml.safe_dump(pretrain_settings(str(inputs / "rows" / "mixture.json"))))
    for task, layout in (("classification", "folders"), ("detection", "coco")):
        if (path := inputs / f"{task}.yaml").exists():
            path.write_text(yaml.safe_dump(finetune_settings(task, str(inputs / layout))))
    if (path := inputs / "mae.yaml").exists():
        values = yaml.safe_load(path.read_text())
        values["data"]["mixture"] = [str(inputs / "compiled")]
        path.write_text(yaml.safe_dump(values))
    if (path := inputs / "run" / "config.yaml").exists():
        path.write_text(path.read_text().replace(str(inputs.parent), str(inputs)))


def _image(inputs: Path) -> str:
    return next((path.name for path in sorted((inputs / "rows").glob("*.png"))), "none.png")


def _filled(word: str, places: dict[str, str]) -> str:
    for key, text in places.items():
        word = word.replace(f"{{{key}}}", text)
    return word


def _break(
    random: Random, template: Template, inputs: Path, out: Path, arguments: list[str], port: int
) -> None:
    ways: list[Callable[[], None]] = []
    files = sorted(path for path in inputs.rglob("*") if path.is_file() and not path.is_symlink())
    if files:
        # Descriptions are more telling than pixels, of which there are many.
        described = [path for path in files if path.suffix in (".json", ".jsonl", ".yaml", ".xml", ".txt")]
        ways += [lambda: mutate.file(random, random.choice(files), port)] * 2
        ways += [lambda: mutate.file(random, random.choice(described or files), port)] * 4
    if template.numbers or template.words:
        ways += [lambda: _option(random, template, arguments, port)] * 2
    if any(str(out) in word for word in arguments):
        ways.append(lambda: _output(random, out, arguments))
    if not ways:
        ways.append(lambda: arguments.append(random.choice(mutate.words(port)).replace("\x00", "")))
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        try:
            random.choice(ways)()
        except (OSError, ValueError):
            continue  # a change before made this one impossible


def _option(random: Random, template: Template, arguments: list[str], port: int) -> None:
    name = random.choice((*template.numbers, *template.words))
    text = random.choice(mutate.NUMBERS) if name in template.numbers else _word(random, name, port)
    # Arguments of a process hold no null bytes.
    arguments += [name, text.replace("\x00", "")]


def _word(random: Random, name: str, port: int) -> str:
    if name in ("--set", "--option", "--task") and random.random() < 0.85:
        keys = (
            *(
                "optim.lr",
                "train.num_workers",
                "data.rates",
                "data.sequence.max_tiles",
                "model.init",
                "objective.vrl.ratio",
                "window",
            ),
            *(
                "scales",
                "overlap",
                "classes",
                "val",
                "instances",
                "background",
                "caption",
                "seed",
                "x.y.z",
                "",
                "presence",
            ),
        )
        return f"{random.choice(keys)}={random.choice((*mutate.NUMBERS, *mutate.words(port), 'true', '[1, x]', '{a: *b}'))}"
    return random.choice(mutate.words(port))


def _output(random: Random, out: Path, arguments: list[str]) -> None:
    at = next((n for n, word in enumerate(arguments) if str(out) in word), None)
    if at is None:
        return  # a change before has taken it away
    way = random.randrange(7)
    if way == 0:
        Path(arguments[at]).write_text("mine")
    elif way == 1:
        (out.parent / "file").write_text("mine")
        arguments[at] = f"{out.parent / 'file'}/x"
    elif way == 2:
        arguments[at] = arguments[at].replace(out.name, "o" * 300)
    elif way == 3:
        Path(arguments[at]).mkdir()
        (Path(arguments[at]) / "mine.txt").write_text("mine")
    elif way == 4:
        arguments[at] = "/dev/null/x"
    elif way == 5:
        arguments[at] = arguments[at].replace(out.name, "out\udce4")
    else:
        arguments[at] = ""
