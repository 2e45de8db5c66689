"""Label Studio's JSON and JSON-MIN: choices, rectangles (turned, too), polygons, ellipses, brushes and texts.

A task is unlabelled where its annotations were cancelled (skipped) or there are only drafts or predictions; an
annotation that was submitted without a region says that there is nothing. Shapes are in percent of the image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.image_labels import ImageLabels
from vitp.data.formats.label_studio_files import is_image_name, label_studio_files, refuse_unannotated
from vitp.data.formats.tool_labels import NamedImages, ToolImage, ToolSet, class_names, percent_shape
from vitp.data.formats.walk import comma_list, parse_label_json, read_label_text, read_label_xml
from vitp.records.labels import LabelledSet
from vitp.records.tool_shapes import CLASSES_KEY, TASK_KEY

_REGIONS = ("rectanglelabels", "polygonlabels", "ellipselabels", "brushlabels", "keypointlabels", "labels")
"""Keys of a value that name the class of a region."""

_SHAPES = ("rectangle", "polygon", "ellipse", "brush", "keypoint", *_REGIONS)
_AFTER = ("annotator", "annotation_id")
"""Keys of JSON-MIN that stand behind those of the controls."""

Several = Literal["", "latest", "first"]


@dataclass(frozen=True)
class _Annotation:
    """One annotation of a task: results with `type`, `value` and the like, who made them, and where they stand."""

    results: tuple[dict[str, Any], ...]
    by: str = ""
    cancelled: bool = False
    truth: bool = False
    updated: str = ""
    where: str = ""


@dataclass
class _Task:
    """A task of a file: what it is about, its annotations, and the classes that its predictions name."""

    where: str
    data: dict[str, Any]
    annotations: list[_Annotation] = field(default_factory=list)
    waiting: str = "without an annotation"
    predicted: tuple[str, ...] = ()


def read_label_studio(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    semantic: bool | str | None = None,
    several: Several = "",
    annotator: str = "",
    choices: str = "",
    image: str = "",
    before: str = "",
    after: str = "",
) -> LabelledSet:
    """Read what Label Studio exported as JSON or JSON-MIN.

    Args:
        root: A file, or a folder with files in itself or in `annotations/`; images lie anywhere below, and are found by
            the ends of their paths and by the names that uploads get.
        options: Name, licence, splits.
        classes: The object classes in order; the places of others are ignored. Those of whole images that aren't named
            are left out.
        semantic: True: masks of classes instead of objects; "both": beside them; by default as the files say.
        several: Which of several different annotations of a task counts: the `latest` or the `first`.
        annotator: Number or e-mail of the one whose annotations count.
        choices: Name of the control that holds the class of an image, where there are several.
        image: Key of the task's data that names the image, where there are several.
        before: Of the earlier date, where labels are of what changed.
        after: Of the later date.

    Raises:
        DataError: A file can't be understood, has two readings, or too many labels can't be used.
        ConfigError: An option doesn't fit.
    """
    if several not in ("", "latest", "first"):
        raise ConfigError(f'is "{several}"', where="several", fix="choose latest or first")
    if bool(before) != bool(after):
        raise ConfigError("needs both", where="before, after", fix="name the keys of both dates")
    base = root if root.is_dir() else root.parent
    # The tool turns images as EXIF says before they are labelled.
    builder = SetBuilder(base, options, shown=True)
    tasks = [task for path in label_studio_files(root) for task in _tasks(builder, path)]
    if not tasks:
        refuse_unannotated(root)
        raise DataError("no export of Label Studio found", where=str(root), fix="export the project as JSON")
    known = comma_list(classes)
    said = {str(task.data[TASK_KEY]) for task in tasks if TASK_KEY in task.data}
    task_name = said.pop() if len(said) == 1 else ""
    tools = ToolSet(builder, "change" if before else task_name)
    if tools.task == "change":
        before, after = before or "before", after or "after"
    reading = _Reading(tools, NamedImages(base), known, several, annotator, choices, image, (before, after))
    tools.made_with = {} if known else _made_with(base, tasks)
    for paths, task in reading.one_an_image(tasks):
        reading.take(paths, task)
    counted = f"Label Studio: {len(tasks):,} tasks, {len(reading.tools.images):,} annotated"
    builder.understand(counted + (f"; labels for {task_name}, as the files say" if task_name else ""))
    return tools.build(known or sorted(reading.seen), semantic, class_names(known))


def _tasks(builder: SetBuilder, path: Path) -> Iterator[_Task]:
    """Yield the tasks of a file; rows of JSON-MIN that are of one task are its annotations.

    Raises:
        DataError: A row can't be understood.
    """
    minimal: dict[str, _Task] = {}
    for number, row in enumerate(parse_label_json(read_label_text(path), path), 1):
        where = builder.place(path, number)
        if isinstance(row, dict) and "annotation_id" in row:
            task = _minimal(row, where)
            first = minimal.setdefault(f"{row.get('id', where)} {task.data}", task)
            if first is not task:
                first.annotations += [replace(one, where=first.where) for one in task.annotations]
            continue
        if not isinstance(row, dict) or not isinstance(row.get("data"), dict):
            what = f"is no task: {'its data names no image' if isinstance(row, dict) else repr(row)[:40]}"
            raise DataError(what, where=where, fix="remove it, or export the project again")
        rows = row.get("annotations")
        if rows is None:
            builder.note(where, "has no annotations; unlabelled")
            rows = []
        if not isinstance(rows, list) or not all(isinstance(each, dict) for each in rows):
            raise DataError(
                '"annotations" is no list of annotations', where=where, fix="export the project again"
            )
        task = _Task(
            where, row["data"], [_annotation(each, where) for each in rows], predicted=_predicted(row)
        )
        if not rows and row.get("drafts"):
            task.waiting = "with a draft that wasn't submitted"
        yield task
    yield from minimal.values()


def _annotation(row: dict[str, Any], where: str) -> _Annotation:
    results = row.get("result", [])
    if not isinstance(results, list) or not all(isinstance(one, dict) for one in results):
        raise DataError('"result" is no list of results', where=where, fix="export the project again")
    by = row.get("completed_by")
    by = by.get("email") or by.get("id") if isinstance(by, dict) else by
    return _Annotation(
        tuple(results),
        "" if by is None else str(by),
        bool(row.get("was_cancelled")),
        bool(row.get("ground_truth")),
        str(row.get("updated_at") or row.get("created_at") or ""),
        where,
    )


def _predicted(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of what the predictions of a task found."""
    made = row.get("predictions")
    results = [one for each in (made if isinstance(made, list) else ()) if isinstance(each, dict)
               for one in (each.get("result") or ())]  # fmt: skip
    values = [one["value"] for one in results if isinstance(one, dict) and isinstance(one.get("value"), dict)]
    names = [name for value in values for key in (*_REGIONS, "choices") for name in value.get(key) or ()]
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str)))


def _made_with(base: Path, tasks: Sequence[_Task]) -> dict[str, None]:
    """Return the classes that tasks of `vitp predict` were made with: of themselves, labels.xml, or predictions."""
    own = [task for task in tasks if TASK_KEY in task.data]
    told = [name for task in own for name in task.data.get(CLASSES_KEY) or () if isinstance(name, str)]
    config = base / "labels.xml"
    if own and not told and config.is_file():
        nodes = read_label_xml(config).iter()
        told = [node.get("value", "") for node in nodes if node.tag in ("Label", "Choice")]
    return dict.fromkeys(told or [name for task in own for name in task.predicted])


def _minimal(row: dict[str, Any], where: str) -> _Task:
    """Return a row of JSON-MIN: data first, then `id`, the controls, and who made them."""
    keys = list(row)
    begin = keys.index("id") + 1 if "id" in keys else 0
    end = min((keys.index(key) for key in _AFTER if key in keys), default=len(keys))
    results: list[dict[str, Any]] = []
    for key in keys[begin:end] if begin else [k for k in keys[:end] if isinstance(row[k], list)]:
        for value in row[key] if isinstance(row[key], list) else [row[key]]:
            result: dict[str, Any] = {"from_name": key, "value": value}
            if isinstance(value, str):
                # A single choice, or a single text, which has nothing else around it.
                result |= {"type": "choices", "value": {"choices": [value]}}
            elif isinstance(value, dict):
                result |= {
                    name: value[name] for name in ("original_width", "original_height") if name in value
                }
                result["type"] = next((name for name in (*_REGIONS, "choices", "text") if name in value), "")
            else:
                raise DataError(f'"{key}" holds {value!r:.40}', where=where, fix="export the project again")
            results.append(result)
    data = {key: row[key] for key in (keys[: begin - 1] if begin else keys) if key not in _AFTER}
    by = str(row.get("annotator", ""))
    return _Task(
        where, data, [_Annotation(tuple(results), by, updated=str(row.get("updated_at", "")), where=where)]
    )


@dataclass
class _Reading:
    """Reads tasks into a `ToolSet`; the arguments are those of `read_label_studio`."""

    tools: ToolSet
    images: NamedImages
    known: tuple[str, ...] | None
    several: Several
    annotator: str
    choices: str
    image: str
    dates: tuple[str, str]
    seen: set[str] = field(default_factory=set)
    controls: set[str] = field(default_factory=set)

    def one_an_image(self, tasks: Sequence[_Task]) -> Iterable[tuple[tuple[Path, ...], _Task]]:
        """Return the annotated tasks with their images; annotations of one image are those of one task."""
        found: dict[tuple[Path, ...], _Task] = {}
        for task in tasks:
            if state := self._state(task):
                self.tools.states[state] += 1
                continue
            names = self._references(task)
            paths = {name: self.images.find(name, task.where) for name in names}
            if gone := [name for name, path in paths.items() if path is None]:
                self.tools.builder.lose(task.where, f"{gone[0]} is missing; image left out", absent=True)
                continue
            first = found.setdefault(tuple(path for name in names if (path := paths[name])), task)
            if first is not task:
                first.annotations += task.annotations
                self.tools.builder.note(task.where, f"is of the same image as {first.where}; counted once")
        return found.items()

    def take(self, paths: Sequence[Path], task: _Task) -> None:
        """Add the image of a task with what its annotation says."""
        builder, tools = self.tools.builder, self.tools
        chosen = self._chosen(task)
        path, *later = paths
        size = builder.size_of(path, task.where)
        if size is None:
            return
        image = ToolImage(path, task.where, builder.labels_of(size, chosen.where.rpartition(":")[0]))
        image.later = later[0] if later else None
        results = _joined(chosen.results)
        regions = {str(one.get("id")) for one in results if _kind(one) in _SHAPES}
        for number, result in enumerate(results, 1):
            self._take_result(image, result, f"{chosen.where}: result {number}", regions)
        tools.images.append(image)

    def _done(self, task: _Task) -> list[_Annotation]:
        wanted = [one for one in task.annotations if self.annotator in ("", one.by)]
        return [one for one in wanted if not one.cancelled]

    def _state(self, task: _Task) -> str:
        """Return what a task is that has no annotation to read; "": it has one."""
        if self._done(task):
            return ""
        own = any(self.annotator in ("", one.by) for one in task.annotations)
        return "skipped" if own else task.waiting if not task.annotations else "of other annotators"

    def _chosen(self, task: _Task) -> _Annotation:
        """Return the annotation that counts.

        Raises:
            DataError: Two that differ may be meant.
        """
        done = self._done(task)
        done = [one for one in done if one.truth] or done
        if len(done) > 1 and any(_said(one) != _said(done[0]) for one in done):
            if not self.several:
                several = len({one.where for one in done}) > 1
                told = [f"{one.by or 'somebody'}{f' in {one.where}' if several else ''}" for one in done]
                names = " and ".join(dict.fromkeys(told))
                raise DataError(
                    f"has {len(done)} different annotations, of {names}",
                    where=task.where,
                    fix="-o several=latest or -o several=first takes one, -o annotator=WHO those of one; or mark one as "
                    "ground truth",
                )
            done.sort(key=lambda one: one.updated)
        return done[-1 if self.several == "latest" else 0]

    def _references(self, task: _Task) -> list[str]:
        """Return the names of a task's images.

        Raises:
            DataError: There is none, or there are several.
        """
        if self.tools.task == "change":
            names = [task.data.get(key) for key in self.dates]
            if not all(isinstance(name, str) and name for name in names):
                what = f'has no image under "{self.dates[0]}" and "{self.dates[1]}"'
                raise DataError(what, where=task.where, fix="name the keys with -o before=KEY -o after=KEY")
            return [str(name) for name in names]
        keys = [self.image] if self.image else [k for k, value in task.data.items() if is_image_name(value)]
        if not self.image and not keys and isinstance(task.data.get("image"), str):
            keys = ["image"]
        if len(keys) != 1 or not isinstance(task.data.get(keys[0]), str):
            listed = " and ".join(f'"{key}"' for key in keys)
            fix = "-o image=KEY names the one that is labelled; -o before=KEY -o after=KEY those of two dates"
            what = f"has images under {listed}"
            if len(keys) < 2:
                held = ", ".join(f'"{key}"' for key in task.data) or "nothing"
                what = f"names no image{f' under {listed}' if keys else ''}: its data holds {held}"
                fix = "add the image's name to its data, remove the task, or name its key with -o image=KEY"
            raise DataError(what, where=task.where, fix=fix)
        return [str(task.data[keys[0]])]

    def _take_result(self, image: ToolImage, result: dict[str, Any], where: str, regions: set[str]) -> None:
        kind, value = _kind(result), result.get("value")
        if not isinstance(value, dict):
            image.found.lose(where, "has no value")
        elif kind in ("choices", "taxonomy"):
            # A choice about a region is no class of the image.
            if str(result.get("id")) not in regions and "x" not in value and "points" not in value:
                self._take_choices(image, result, value, where)
        elif kind in ("textarea", "text"):
            texts = value.get("text")
            image.captions += [
                " ".join(str(one).split()) for one in (texts if isinstance(texts, list) else [texts]) if one
            ]
        elif kind in _SHAPES:
            image.drawn = True
            self._take_region(image.found, result, value, where)
        elif kind not in ("relation", "rating", "number", "datetime"):
            image.drawn = True
            image.found.lose(where, f'is of the kind "{kind}", which no reader knows')

    def _take_choices(
        self, image: ToolImage, result: dict[str, Any], value: dict[str, Any], where: str
    ) -> None:
        control = str(result.get("from_name", ""))
        if self.choices and control != self.choices:
            return
        self.controls.add(control)
        if len(self.controls) > 1:
            names = " and ".join(sorted(self.controls))
            fix = "-o choices=NAME says which one is the class of the image"
            raise DataError(f"choices are made in {names}", where=where, fix=fix)
        found = value.get("choices", value.get("taxonomy"))
        for name in found if isinstance(found, list) else [found]:
            chosen = name[-1] if isinstance(name, list) and name else name
            if isinstance(chosen, str) and chosen.strip():
                image.classes.append(" ".join(chosen.split()))

    def _take_region(
        self, found: ImageLabels, result: dict[str, Any], value: dict[str, Any], where: str
    ) -> None:
        told_names: Any = next((value[key] for key in _REGIONS if value.get(key)), [])
        several = told_names if isinstance(told_names, list) else [told_names]
        names = [" ".join(str(name).split()) for name in several]
        named = " or ".join(names) or "an object without a class"
        if result.get("image_rotation"):
            found.lose(where, f"{named} was drawn on an image turned by {result['image_rotation']}°")
            return
        told = [result.get(key) for key in ("original_width", "original_height")]
        if any(told) and tuple(told) != found.size:
            width, height = found.size
            found.lose(
                where, f"{named} is of an image of {told[0]}×{told[1]}, and this one has {width}×{height}"
            )
            return
        try:
            shape = percent_shape(value, found.size)
        except ValueError as error:
            found.lose(where, f"{named} can't be understood: {error}")
            return
        if shape is None:
            return
        if len(names) != 1:
            why = (
                "a region without a class" if not names else f"may be of several classes ({', '.join(names)})"
            )
            found.ignore(where, why, "unknown", shape)
            return
        if found.add(where, names[0], shape, known=self.known) is not None:
            self.seen.add(names[0])


def _kind(result: dict[str, Any]) -> str:
    return str(result.get("type", "")).lower()


def _said(annotation: _Annotation) -> list[str]:
    """Return what an annotation says, without names and numbers of its parts."""
    return sorted(f"{_kind(one)} {one.get('to_name')} {one.get('value')}" for one in annotation.results)


def _joined(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return results without the doubles of regions whose class stands in a result of its own."""
    labelled = {
        str(one.get("id"))
        for one in results
        if isinstance(one.get("value"), dict) and any(key in one["value"] for key in _REGIONS)
    }
    return [
        one
        for one in results
        if _kind(one) not in _SHAPES[:5] or str(one.get("id")) not in labelled or "id" not in one
    ]
