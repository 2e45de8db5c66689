"""How a graph sees images of other sizes, and what of its output is an object: cards say it, `vitp.runtime` does it."""

from __future__ import annotations

from vitp.runtime.contract import GraphContract
from vitp.runtime.objects import SAME_BOX, SAME_PART, SAME_QUAD
from vitp.runtime.views import WEIGHT_FLOOR


def seen_rows(contract: GraphContract) -> list[tuple[str, str]]:
    """Return which images get which size, and what becomes of what then isn't of the graph's size."""
    mode, side = contract.resize["mode"], contract.resize["size"]
    first = {
        "none": "their own size",
        "fixed": f"{side} × {side} px",
        "long": f"{side} px on the long side",
        "short": f"{side} px on the short side",
    }[mode]
    rows = [("Images first get", first if mode == "none" else f"{first}, bilinear with antialiasing")]
    if contract.parts is not None:
        longest, factor = contract.parts
        size = "their own size" if factor == 1 else f"{factor:.4g} times their own size"
        which = f"But those longer than {longest:g} px" if longest else "Images first get"
        rows = [*(rows if longest else []), (which, f"{size}, and are seen through windows")]
    larger = {
        "classification": "made as small as the graph, whatever their shape",
        "panoptic": "refused: segments aren't merged over windows",
    }.get(contract.task)
    windows = [("Larger than the graph", larger)] if larger else _window_rows(contract)
    return [
        *rows,
        *windows,
        ("Smaller than the graph", "black at the bottom and the right"),
    ]


def _window_rows(contract: GraphContract) -> list[tuple[str, str]]:
    """Return where windows lie and how they are merged, as `vitp.runtime.views` and `vitp.runtime.objects` do it."""
    down, across = (side - int(contract.overlap * side) for side in contract.size)
    begin = f"{down} px" if down == across else f"{down} px down and {across} px across"
    merged = (
        f"an object within 1 px of its window's edge, where the image goes on, is left out if {SAME_PART:.0%} of its box "
        "lie in the box of one of its class that no edge cuts; then of two of one class that overlap by more than "
        f"{SAME_QUAD if contract.task == 'oriented' else SAME_BOX:g} the surer one stays"
    )
    if contract.task in ("segmentation", "change"):
        merged = (
            "outputs get the window's size in the image (bilinear) and are added up, each times its weight: for pixel i "
            f"of n from 0, max(sin²(π(i + ½) / n), {WEIGHT_FLOOR:g}) across times the same down, but 1 in the half that "
            "ends at a border of the image. The class is that of the largest sum"
        )
    return [
        (
            "Larger than the graph",
            f"windows that overlap by {contract.overlap:.0%}, merged by the runtime: they begin each {begin} from 0, the "
            "last one ends with the image",
        ),
        ("Windows are merged", merged),
    ]


def said_of_objects(contract: GraphContract) -> list[tuple[str, str]]:
    """Return what of the output is an object, as `vitp.runtime` takes it."""
    if contract.task == "panoptic":
        words = (
            f"queries whose class has {contract.least_score:g} and more, and more than no class; a pixel is of the query "
            "with the largest class × sigmoid of the mask, if the mask is 0.5 there; queries that keep less than "
            f"{contract.least_share:g} of their mask are none; those of one class are one segment, but for "
            f"{', '.join(contract.things) or 'no class'}"
        )
    elif contract.mask_patch:
        words = (
            f"the {contract.most_objects} surest pairs of a query and a class; their pixels are those whose logit is above "
            "0, and their score is that of the class × the mean sigmoid of these pixels"
        )
    elif contract.task == "instance":
        words = f"rows with a score above {contract.least_score:g}; a mask is stretched over its box and cut at 0.5"
    elif contract.task in ("detection", "oriented"):
        fewer = (
            "none is suppressed"
            if contract.iou >= 1
            else f"of two of one class that overlap by more than {contract.iou:g} the surer one stays"
        )
        words = (
            f"each class of a row with a score above {contract.least_score:g}; {fewer}; the {contract.most_objects} "
            "surest of a window"
        )
    else:
        return []
    return [("Objects", f"{words}. Files hold those of {contract.shown_score:g} and more")]
