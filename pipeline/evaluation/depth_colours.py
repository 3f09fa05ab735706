"""The colour of a depth, the same in terminals, pages and figures: light for the shallowest, dark for the deepest."""

from __future__ import annotations

# Cividis from light to dark: order and steps survive colour blindness and a black-and-white print.
_LIGHT_TO_DARK = ((253, 234, 69), (203, 186, 105), (124, 123, 120), (87, 92, 109), (0, 34, 78))


def tint(depth: int, max_passes: int) -> str:
    """The depth's colour, #rrggbb."""
    red, green, blue = _colour(depth, max_passes)
    return f"#{red:02x}{green:02x}{blue:02x}"


def letters_on(depth: int, max_passes: int) -> str:
    """Black or white, whichever is read on that colour."""
    red, green, blue = _colour(depth, max_passes)
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "#ffffff"


def _colour(depth: int, max_passes: int) -> tuple[int, int, int]:
    place = (depth - 1) / max(max_passes - 1, 1) * (len(_LIGHT_TO_DARK) - 1)
    low = min(int(place), len(_LIGHT_TO_DARK) - 2)
    share = place - low
    pairs = zip(_LIGHT_TO_DARK[low], _LIGHT_TO_DARK[low + 1], strict=True)
    red, green, blue = (round(a + (b - a) * share) for a, b in pairs)
    return red, green, blue
