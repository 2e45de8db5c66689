"""Small valid inputs of every kind: label sets in all formats, records, mixtures, settings, runs, models, exports."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml

SIZE = 48
TASKS = {"classification": "folders", "segmentation": "masks", "detection": "coco"}
LAYOUTS = ("coco", "voc", "yolo", "dota", "masks", "folders", "pairs")

VISION: dict[str, Any] = {
    "arguments": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "final_norm": False},
    "image_size": 32,
}
LANGUAGE: dict[str, Any] = {
    "model_type": "qwen2",
    "arguments": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
}


def pretrain_settings(data: str) -> dict[str, Any]:
    """Return settings of a run of two steps."""
    return {
        "model": {
            "init": "scratch",
            "vocabulary": 400,
            "scratch": {"vision": VISION, "language": LANGUAGE, "shuffle": 1, "template": "micro"},
        },
        "data": {
            "mixture": [data],
            "global_batch": 2,
            "sequence": {"max_length": 512, "max_tiles": 1, "max_turns": 2},
        },
        "optim": {"lr": 1e-3},
        "train": {"steps": 2, "save_every": 1, "log_every": 1, "num_workers": 0},
        "seed": 1,
    }


def finetune_settings(task: str, data: str) -> dict[str, Any]:
    """Return settings of a finetuning of two steps."""
    return {
        "task": task,
        "data": {"root": data, "global_batch": 2},
        "backbone": {"init": "random", "vision": VISION},
        "neck": {"kind": "none" if task == "classification" else "simple"},
        "train": {"steps": 2, "num_workers": 0, "val_every": 0, "save_every": 2},
        "seed": 1,
    }


def make_seeds(root: Path, *, models: bool = True) -> None:
    """Write all inputs below a folder, in a process of its own: training in this one would spoil it for forks.

    Args:
        root: The folder.
        models: Train runs, and export and convert them.

    Raises:
        RuntimeError: One could not be made.
    """
    root.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _make_labels(root)
            if models:
                _make_models(root)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError("the inputs could not be made")


def _make_labels(root: Path) -> None:
    labels = root / "labels"
    for layout in LAYOUTS:
        _vitp(
            "data",
            "scenes",
            "port",
            "--layout",
            layout,
            "--count",
            6,
            "--size",
            SIZE,
            "--out",
            labels / layout,
        )
    images = sorted((labels / "coco").rglob("*.png"))
    captions = labels / "captions"
    (captions / "images").mkdir(parents=True)
    for image in images[:4]:
        (captions / "images" / image.name).write_bytes(image.read_bytes())
    rows = [{"image": image.name, "caption": f"A port with {n} ships."} for n, image in enumerate(images[:4])]
    (captions / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _vitp("data", "compile", labels / "coco", "--out", root / "compiled", "--option", "val=0.2")
    _records(root / "rows", images[:3])
    _settings(root)


def _make_models(root: Path) -> None:
    _vitp("pretrain", root / "pretrain.yaml", "--out", root / "run")
    for task in TASKS:
        _vitp("finetune", task, root / f"{task}.yaml", "--out", root / task)
    _vitp("export", root / "run", "--out", root / "export")
    for layout in ("timm", "hf", "original"):
        _vitp("convert", root / "run", root / f"model-{layout}", "--to", layout)


def _records(folder: Path, images: list[Path]) -> None:
    """Write the same rows in every form of records."""
    from vitp.data.shards import write_shards
    from vitp.data.sources import open_records

    folder.mkdir()
    rows = []
    for number, image in enumerate(images):
        (folder / image.name).write_bytes(image.read_bytes())
        said = [
            {"from": "human", "value": "<image>\nHow many ships are there?"},
            {"from": "gpt", "value": str(number)},
            {"from": "human", "value": "Is there a plane?"},
            {"from": "gpt", "value": "no"},
        ]
        rows.append(
            {"id": str(number), "image": image.name, "width": SIZE, "height": SIZE, "conversations": said}
        )
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines)
    (folder / "array.json").write_text(json.dumps(rows, indent=1))
    chat = [
        {
            "images": [row["image"]],
            "messages": [
                {"role": "user" if turn["from"] == "human" else "assistant", "content": turn["value"]}
                for turn in row["conversations"]
            ],
        }
        for row in rows
    ]
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat))
    entry = {
        "root": ".",
        "annotation": "rows.jsonl",
        "repeat_time": 1,
        "data_augment": False,
        "length": len(rows),
    }
    (folder / "mixture.json").write_text(json.dumps({"ports": {**entry, "max_dynamic_patch": 2}}, indent=1))
    write_shards(list(open_records(folder / "rows.jsonl")), folder / "shards", "set")
    (folder / "range.json").write_text(json.dumps({"s": {"annotation": "shards/set-{000000..000000}.tar"}}))


def _settings(root: Path) -> None:
    (root / "pretrain.yaml").write_text(
        yaml.safe_dump(pretrain_settings(str(root / "rows" / "mixture.json")))
    )
    other = {
        "objective": "mae",
        "model": {"init": "random", "vision": VISION},
        "data": {"mixture": [str(root / "compiled")], "global_batch": 2},
        "train": {"steps": 2, "num_workers": 0},
    }
    (root / "mae.yaml").write_text(yaml.safe_dump(other))
    for task, layout in TASKS.items():
        settings = finetune_settings(task, str(root / "labels" / layout))
        (root / f"{task}.yaml").write_text(yaml.safe_dump(settings))


def warm_up(root: Path) -> None:
    """Run commands of data in this process, so that what they import is there before cases are forked from it."""
    for layout in ("coco", "voc", "masks", "captions"):
        _vitp("data", "compile", root / "labels" / layout, "--out", root / f"warm-{layout}", "--force")
    _vitp("data", "check", root / "rows" / "mixture.json", "--against", root / "compiled", ends=1)


def _vitp(*arguments: object, ends: int = 0) -> None:
    from vitp.cli import run

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = run([str(argument) for argument in arguments])
    if code != ends:
        sys.stderr.write(printed.getvalue()[-2000:])
        raise RuntimeError(f"vitp {' '.join(map(str, arguments))} ended with {code}")
