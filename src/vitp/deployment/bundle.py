"""What leaves when a model is pushed: a list of files for each kind of model, and nothing else.

Weights, configuration, card, test vectors, comparison and tokenizer leave. Checkpoints, logs, data, pictures and the
scores of single cases stay. Folders of this machine are cut down to names in the descriptions that leave; a file that
still names one is not sent.
"""

from __future__ import annotations

import fnmatch
import json
import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from vitp.checkpoints.card import evaluated, licence_keys, weights_card
from vitp.checkpoints.checkpoint import provenance_of
from vitp.checkpoints.description import (
    CONFIG,
    DESCRIPTION,
    EXTRA,
    GRAPH_DESCRIPTION,
    Provenance,
    is_task_config,
    is_vlm_config,
    read_config,
    without_places,
)
from vitp.checkpoints.export import TEST_VECTORS, features_of, vector_images
from vitp.checkpoints.loading import load_backbone
from vitp.checkpoints.origin import AnyOrigin, Origin, warn_of_licence
from vitp.checkpoints.tensors import INDEX, WEIGHTS
from vitp.core.config import CONFIG_FILE
from vitp.core.errors import CheckpointError, ConfigError
from vitp.core.files import check_inside, sha256, to_json
from vitp.core.reading import read_json, read_text
from vitp.core.sealed import SUMS, check, check_sums, write_sums
from vitp.core.tensors import save_tensors
from vitp.core.version import STARTER
from vitp.deployment.card import (
    PIPELINES,
    licences_text,
    limits_text,
    scores_text,
    shared_card,
    task_card,
    vectors_text,
    vision_of,
)
from vitp.deployment.export import CARD_FILE, PARITY_FILE
from vitp.models.vision import VisionSettings
from vitp.runs.finetune import SCORES_FILE
from vitp.tasks.model_folder import load_task

SharedKind = Literal["task", "language", "backbone", "layout", "graph"]

_WEIGHTS = (WEIGHTS, INDEX, "model-*-of-*.safetensors")
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json"),
    *("special_tokens_map.json", "chat_template.jinja", "generation_config.json"),
    *("preprocessor_config.json", "processor_config.json"),
)
ALLOWED: Mapping[SharedKind, tuple[str, ...]] = {
    "task": (*_WEIGHTS, CONFIG),
    "language": (*_WEIGHTS, CONFIG, *_TOKENIZER),
    "backbone": (*_WEIGHTS, CONFIG, DESCRIPTION, TEST_VECTORS),
    "layout": (*_WEIGHTS, CONFIG, *_TOKENIZER),
    "graph": ("*.onnx", "*.pt2", GRAPH_DESCRIPTION, PARITY_FILE),
}
"""Kind → names and patterns of the files that leave, beside card, test vectors and digests."""

OURS = tuple(dict.fromkeys(name for names in ALLOWED.values() for name in (*names, TEST_VECTORS, SUMS)))
"""Names and patterns of all files of models, of whatever kind."""

_DESCRIPTIONS = (CONFIG, DESCRIPTION, GRAPH_DESCRIPTION, PARITY_FILE)
_TRACE = re.compile(rb'(?:File \\*"|/home/|/Users/|[A-Z]:\\+Users\\+)[^"\x00-\x1f]{1,120}')
_IN_TEXT = re.compile(
    rb"(?<![\w:/.<~-])(?:file://)?(?:~|/(?:home|Users|Volumes|root|mnt|media|data\d*|tmp|var|opt|srv|work|workspace|scratch|"
    rb"export|nfs|gpfs|lustre|private))/[^\s\"'`<>|]{1,120}|[A-Za-z]:\\[^\s\"'`<>|]{1,120}"
)
"""Folders of a machine, as graphs hold them and as people write them."""

_TEXTS = (".md", ".txt", ".json", ".csv", ".yaml", ".yml", ".jsonl", ".html", ".py")


@dataclass(frozen=True)
class SharedFile:
    """A file that leaves.

    Attributes:
        name: Where it will be, with slashes.
        path: Where it is.
        size: Bytes.
        sha256: Digest.
    """

    name: str
    path: Path
    size: int
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """All that leaves of one model.

    Attributes:
        kind: Kind of the model.
        said: The same in words.
        files: In the order of their names.
        card: The card's text.
    """

    kind: SharedKind
    said: str
    files: tuple[SharedFile, ...]
    card: str

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class _Source:
    kind: SharedKind
    folder: Path
    run: Path
    config: dict[str, Any]


def understood(source: str | Path) -> tuple[SharedKind, Path]:
    """Return which kind of model a source is, and its folder.

    Raises:
        CheckpointError: It holds none.
    """
    found = _source(source)
    return found.kind, found.folder


def _source(source: str | Path) -> _Source:
    path = STARTER if str(source) == "starter" else Path(source)
    if path.is_file() and (path.parent / GRAPH_DESCRIPTION).is_file():
        path = path.parent
    if (path / GRAPH_DESCRIPTION).is_file():
        return _Source("graph", path, path, _json(path / GRAPH_DESCRIPTION))
    for folder in (path / "model", path):
        run = folder.resolve().parent if folder.resolve().name == "model" else folder
        if (folder / DESCRIPTION).is_file():
            return _Source("backbone", folder, run, _json(folder / DESCRIPTION))
        if any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
            config = read_config(folder)
            kinds: dict[SharedKind, bool] = {
                "task": is_task_config(config),
                "language": is_vlm_config(config),
                "layout": EXTRA in config,
            }
            if kind := next((kind for kind, fits in kinds.items() if fits), None):
                return _Source(kind, folder, run, config)
    if (path / CONFIG_FILE).is_file():
        raise CheckpointError(
            "is a run without a finished model", where=str(source), fix="name one that has finished"
        )
    raise CheckpointError(
        "holds nothing to push" if path.exists() else "is no file or folder",
        where=str(source),
        fix="name a run, a model folder, or a folder that `vitp export` or `vitp convert` wrote",
    )


@contextmanager
def gathered(
    source: str | Path, repository: str, *, hub: bool = True, licence: str = "", also: Sequence[str] = ()
) -> Iterator[Bundle]:
    """Give what leaves of a model; files that are made for it are there within the block.

    Args:
        source: Run, model folder or export.
        repository: What it will be called; the card's code runs beside a folder of its last part.
        hub: Whether it goes to the hub; the card then says how it is fetched.
        licence: Licence of these weights, as their owner states it; "": that of the weights they go back to.
        also: Further files to send, relative to the source.

    Raises:
        CheckpointError: There is no model, a file of it is damaged, or it names folders of this machine.
        ConfigError: A file of `also` is missing or lies elsewhere.
    """
    found, name = _source(source), PurePosixPath(repository.replace("\\", "/")).name
    if found.kind == "graph":
        check_sums(found.folder, fix="export it anew")
    with TemporaryDirectory(prefix="vitp-push-") as made:
        staging = Path(made)
        paths = _listed(found)
        for file in paths.values():
            if file.suffix == ".safetensors":
                check(file)
        _without_folders(paths, staging)
        card = _card(found, staging, paths, name, repository if hub else "", licence)
        (staging / CARD_FILE).write_text(card, encoding="utf-8")
        paths[CARD_FILE] = staging / CARD_FILE
        _add(paths, also, Path(source) if Path(source).is_dir() else found.folder)
        for shown, file in paths.items():
            # Vocabularies hold pieces of text that look like paths.
            if shown not in _TOKENIZER:
                _check_places(shown, file)
        digests = {shown: sha256(file) for shown, file in paths.items()}
        write_sums(staging, known=digests)
        paths[SUMS], digests[SUMS] = staging / SUMS, sha256(staging / SUMS)
        files = tuple(SharedFile(n, paths[n], paths[n].stat().st_size, digests[n]) for n in sorted(paths))
        yield Bundle(found.kind, _said(found), files, card)


def is_allowed(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a name is one of those that may leave."""
    return any(
        fnmatch.fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns
    )


def _listed(found: _Source) -> dict[str, Path]:
    folder = found.folder
    files = [
        path for path in folder.iterdir() if path.is_file() and is_allowed(path.name, ALLOWED[found.kind])
    ]
    listed = {path.name: path for path in files}
    if found.kind == "backbone" and (folder / TEST_VECTORS).is_file():
        listed[TEST_VECTORS] = folder / TEST_VECTORS
    return listed


def _add(paths: dict[str, Path], also: Sequence[str], root: Path) -> None:
    for name in also:
        shown = PurePosixPath(name.replace("\\", "/")).as_posix()
        file = root / name
        if not file.is_file():
            raise ConfigError("is no file there", where=f"--also {name}", fix=f"name a file in {root}")
        check_inside(file, root)
        if shown in paths:
            raise ConfigError("is sent in any case", where=f"--also {name}", fix="leave it out")
        paths[shown] = file


def _said(found: _Source) -> str:
    if found.kind == "task":
        return f"a model for {found.config['task']}"
    if found.kind == "graph":
        return f"a graph for {found.config.get('task', 'features')}"
    words = {"language": "a vision-language model", "backbone": "a backbone", "layout": "a converted model"}
    return words[found.kind]


def _json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"can't be read ({error})", where=str(path), fix="export it anew") from error
    if not isinstance(value, dict):
        raise CheckpointError("is no description of a model", where=str(path), fix="export it anew")
    return value


def _without_folders(paths: dict[str, Path], staging: Path) -> None:
    """Replace descriptions that name folders by copies that don't."""
    for name in [one for one in paths if one in _DESCRIPTIONS]:
        value = _json(paths[name])
        cut = without_places(value)
        if isinstance(configuration := cut.get("provenance", {}).get("configuration"), dict):
            cut["provenance"]["configuration"] = without_places(configuration, relative=True)
        if isinstance(card := cut.get("card"), dict):
            cut["card"] = without_places(card, relative=True)
        if cut != value:
            (staging / name).write_text(to_json(cut, indent=2) + "\n", encoding="utf-8")
            paths[name] = staging / name


def _check_places(shown: str, path: Path) -> None:
    """Refuse a file that names folders of a machine: a graph may hold where the code that made it lay.

    Raises:
        CheckpointError: It does.
    """
    if path.stat().st_size == 0:
        return
    # A short one, such as `/root`, could stand in any text.
    own = [str(folder).encode() for folder in (Path.home(), Path.cwd()) if len(folder.parts) > 2]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end = len(content)
        if path.suffix == ".safetensors":  # numbers say nothing
            end = min(end, 8 + int.from_bytes(content[:8], "little"))
        pattern = _IN_TEXT if path.suffix.lower() in _TEXTS else _TRACE
        match = pattern.search(content, 0, end) or _TRACE.search(content, 0, end)
        text = match[0] if match else next((one for one in own if content.find(one, 0, end) >= 0), None)
        del match  # holds on to the map
    if text is not None:
        raise CheckpointError(
            f'names a folder of this machine ("{text.decode(errors="replace")[:80]}")',
            where=shown,
            fix="export it anew, or take the name out of the file",
        )


def _card(
    found: _Source, staging: Path, paths: dict[str, Path], name: str, repository: str, licence: str
) -> str:
    """Return the card; test vectors are made on the way, where the folder has none."""
    own = found.folder / CARD_FILE
    written = read_text(own) if own.is_file() else ""
    description = without_places(found.config)
    origin: AnyOrigin = Origin()
    provenance, scores = None, None
    card = description.get("card") or {}
    kind = str(description.get("task", "")) or ("language" if found.kind == "language" else "backbone")
    if found.kind == "task":
        scores = _json(found.run / SCORES_FILE) if (found.run / SCORES_FILE).is_file() else None
        origin = vision_of(description) or origin
        made = _vectors_of_task(found.folder, staging)
        written = written or task_card(description, name, made)
    elif found.kind == "graph":
        provenance = (
            Provenance.model_validate(description["provenance"]) if "provenance" in description else None
        )
        origin = Origin(description.get("weights_of", ""), description.get("licence", ""))
        written = written or _graph_text(description, name)
    else:
        tower, provenance = load_backbone(found.folder), provenance_of(found.folder)
        origin = tower.config
        if TEST_VECTORS not in paths:
            images = vector_images(tower.image_size[0], tower.num_channels)
            _write_vectors(staging, {"images": images, **features_of(tower, images)})
        written = written or _weights_text(found, name, tower.config, provenance)
    if (staging / TEST_VECTORS).is_file():
        paths[TEST_VECTORS] = staging / TEST_VECTORS
    warn_of_licence(origin)
    data = _data_of(card, provenance)
    head = {"pipeline_tag": PIPELINES[kind], "library_name": "vitp", "tags": ["vitp"]}
    if scores is not None and data:
        split, values = str(scores.get("split", "test")), scores.get("values") or {}
        head |= evaluated(name, PIPELINES[kind], data[-1][0], split, values)
    return shared_card(
        written,
        {**licence_keys(licence or origin.licence), **head},
        {
            "Scores": scores_text(scores, str(card.get("data", ""))),
            "Licences": licences_text(origin.weights_of, origin.licence, data),
            "Test vectors": vectors_text(name, kind) if TEST_VECTORS in paths else "",
            "From the hub": f"```sh\nhf download {repository} --local-dir {name}\n```" if repository else "",
            "Intended use and limits": limits_text(
                kind, [of for of, _ in data], bool(scores) or PARITY_FILE in paths
            ),
        },
    )


def _data_of(card: Mapping[str, Any], provenance: Provenance | None) -> list[tuple[str, str]]:
    sets = () if provenance is None or provenance.mixture is None else provenance.mixture.sets
    named = [(one.name, one.licence) for one in sets]
    if card.get("data"):
        named.append((str(card["data"]), str(card.get("licence") or "")))
    return [(PureWindowsPath(name).name, licence) for name, licence in named]


def _vectors_of_task(folder: Path, staging: Path) -> int:
    """Write what a task model says of one image, and return the number of its weights."""
    model = load_task(folder)
    channels = 3 if model.in_channels is None else len(model.in_channels)
    side = model.input_size.size or getattr(getattr(model.backbone, "config", None), "image_size", None) or 64
    image, other = vector_images(int(side), channels)
    pair = model.name == "change"
    (found,) = model.predict([image], [other] if pair else None)
    known = {key: value for key, value in vars(found).items() if isinstance(value, torch.Tensor)}
    known = {
        key: value.to(torch.uint8) if value.dtype == torch.bool else value for key, value in known.items()
    }
    _write_vectors(staging, {"image": image, **({"later": other} if pair else {}), **known})
    return sum(parameter.numel() for parameter in model.parameters())


def _write_vectors(staging: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    (staging / TEST_VECTORS).parent.mkdir(exist_ok=True)
    save_tensors(staging / TEST_VECTORS, {key: value.contiguous() for key, value in tensors.items()})


def _graph_text(description: Mapping[str, Any], name: str) -> str:
    """Return the card of a tower's graph, which has none of its own."""
    graph_input, output = description["input"], description["output"]
    library = "onnx" if description["kind"] == "onnx" else "pytorch"
    load = (
        "import numpy as np, onnxruntime\n\n"
        f'session = onnxruntime.InferenceSession("{name}/{description["file"]}")\n'
        if library == "onnx"
        else f'import torch\n\nmodel = torch.export.load("{name}/{description["file"]}").module()\n'
    )
    shapes = json.dumps(graph_input["shape"]), json.dumps(output["shape"])
    return (
        f"---\nlibrary_name: {library}\ntags:\n- image-feature-extraction\n- vitp\n---\n\n# {name}\n\n"
        f"A vision tower as a graph. `{graph_input['name']}` {shapes[0]} float32: {graph_input['values']}; "
        f"`{output['name']}` {shapes[1]} float32: features of the last layer. Compared with the tower: "
        f"{description['checked']}.\n\n## Use\n\n```python\n{load}```\n"
    )


def _weights_text(found: _Source, name: str, vision: VisionSettings, provenance: Provenance) -> str:
    whole = found.kind == "language" or "tokenizer.json" in {path.name for path in found.folder.iterdir()}
    own = found.kind == "language"
    kind = "A vision-language model" if whole else "A vision tower"
    layout = "vitp's own layout" if own else "the layout of InternVL or transformers"
    load = f'from vitp import load_backbone\n\ntower = load_backbone("{name}")'
    if whole:
        load = (
            f'from vitp import Assistant, load_vlm\n\nloaded = load_vlm("{name}")\n'
            'print(Assistant(loaded.vlm, loaded.chat).answer(["image.png"], "What is here?"))'
        )
    library = "vitp" if own else "transformers" if "model_type" in found.config else "timm"
    pipeline = PIPELINES["language" if whole else "backbone"]
    head = {
        "library_name": library,
        "tags": ["vitp", "visual-instruction-pretraining"],
        "pipeline_tag": pipeline,
    }
    return weights_card(name, f"{kind} in {layout}.", head, vision, provenance, f"```python\n{load}\n```")
