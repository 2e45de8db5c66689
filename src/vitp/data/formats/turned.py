"""Images that EXIF turns: labels lie on them as viewers show them, or as they are stored, and not all tell which."""

from __future__ import annotations

from collections.abc import Sequence

from vitp.core.errors import DataError

AS_STORED = "remove the images' EXIF orientation (exiftool -Orientation= FILE)"


def swaps_sides(orientation: int, size: tuple[int, int]) -> bool:
    """Return whether an EXIF orientation gives an image of a width and height others: then sizes tell what is meant."""
    return orientation > 4 and size[0] != size[1]


def turned_line(
    turned: Sequence[str], decided: bool, *, what: str, where: str, count: int, orientation: str
) -> str:
    """Return a line on labels of images that EXIF turns, which lie on them as these are shown; "" where there are none.

    Args:
        turned: Such images, with what labels them.
        decided: Whether the size of one tells it. It doesn't of square images and turns by 180°, nor do labels without
            a size.
        what: What lies on them: "masks".
        where: The set.
        count: Its labelled images.
        orientation: "shown" where the user says it.

    Raises:
        DataError: Labels fit both ways, and nothing tells which is meant.
    """
    if not turned:
        return ""
    if not (decided or orientation):
        raise DataError(
            f"{len(turned):,} of {count:,} images are turned by their EXIF orientation, and their {what}, which are not, "
            f"fit them as they are stored and as they are shown ({turned[0]}, for example)",
            where=where,
            fix=f"-o orientation=shown if the {what} were drawn on the images as viewers show them; else {AS_STORED}",
        )
    return f"the {what} of {len(turned):,} images that EXIF turns lie on them as they are shown"
