"""How a model sees an image of any size: as in training, or, where it is larger than those, through windows."""

from __future__ import annotations

from vitp.records.labels import LabelledSet
from vitp.runtime.views import SQUEEZED, seen_in_parts
from vitp.tasks.base import InputSize, TaskModel, TestSettings, WholeImageModel


def seen_settings(
    model: TaskModel, settings: TestSettings, size: tuple[int, int], factor: float | None
) -> tuple[TestSettings, float, str | None]:
    """Return how an image of any size is seen, and what is to be said about it where the settings don't tell.

    An image that is larger than those of training is never squeezed into one look: without `resize` it is seen through
    windows, its pixels as large as those of training were.

    Args:
        model: Any task's but classification's.
        settings: As given.
        size: Height and width of the image.
        factor: On the size, to get the wanted ground resolution; None: none is wanted.

    Returns:
        The settings, the factor on the size of the image before `settings.scales`, and a note.
    """
    resize, trained = settings.resize or model.input_size, model.description.get("trained")
    if factor is None and settings.resize is not None:
        return settings, 1.0, None
    side = resize.size or model.backbone.image_size[0]
    if factor is not None:
        scale, at = factor, "the resolution that was asked for"
        if settings.window is not None or max(size) * factor <= SQUEEZED * side:
            return settings.model_copy(update={"resize": InputSize()}), factor, None
    else:
        parts = seen_in_parts(resize.mode, side, settings.window, trained)
        if parts is None or max(size) <= parts[0]:
            return settings, 1.0, None
        scale, at = parts[1], "its own resolution"
        if trained is not None:
            at = f"{scale:.3g} times its own resolution, as in training"
    window = settings.window or side
    seen = settings.model_copy(update={"window": window, "resize": InputSize()})
    own = ""
    if settings.window is None and trained is not None:
        longest = round(float(trained["longest"]) * float(trained["scale"]))
        if longest != window:
            own = f", the side of the backbone (training images were up to {longest} px long, seen whole),"
    words = f"seen through windows of {window} px{own} at {at}; -s window=…, -s resize=… and --resolution choose otherwise"
    return seen, scale, words


def scored_settings(model: TaskModel, settings: TestSettings, size: tuple[int, int]) -> TestSettings:
    """Return how a labelled image is seen for its scores: as by `vitp predict`, so that they are of what that writes.

    Models that don't know how large their training images were are scored as their versions did.

    Args:
        model: Any task's.
        settings: As given.
        size: Height and width of the image.
    """
    whole = model.name == "classification" or isinstance(model, WholeImageModel)
    if whole or "trained" not in model.description:
        return settings
    seen, factor, note = seen_settings(model, settings, size, None)
    if note is None:
        return settings
    return seen.model_copy(update={"scales": tuple(scale * factor for scale in seen.scales)})


def larger_note(model: TaskModel, settings: TestSettings, labelled: LabelledSet) -> tuple[str, ...]:
    """Return a line about the images that are scored through windows because they are larger than those of training."""
    items = (
        labelled.items if isinstance(labelled.items, list | tuple) else ()
    )  # others would be generated for it
    sizes = [(item.height, item.width) for item in items]
    larger = [size for size in sizes if scored_settings(model, settings, size) is not settings]
    if not larger:
        return ()
    words = (seen_settings(model, settings, larger[0], None)[2] or "").partition("; ")[0]
    counted = f"{len(larger):,} of {len(sizes):,} images are larger than those of training, and "
    return (f"{counted}{words}; -s window=… and -s resize=… choose otherwise",)
