"""How a graph sees images of other sizes than its own, in words: what the card says, and `vitp.runtime` does."""

from __future__ import annotations

from vitp.runtime.contract import GraphContract


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
    }.get(contract.task, f"windows that overlap by {contract.overlap:.0%}, merged by the runtime")
    return [
        *rows,
        ("Larger than the graph", larger),
        ("Smaller than the graph", "black at the bottom and the right"),
    ]
