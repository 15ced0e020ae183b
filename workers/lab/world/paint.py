"""The colours that objects are drawn with."""

from __future__ import annotations

from dataclasses import dataclass

from workers.lab.world.pen import Colour, shade

PALETTE: dict[str, Colour] = {
    "red": (214, 44, 44),
    "orange": (246, 132, 28),
    "yellow": (250, 216, 52),
    "green": (52, 158, 66),
    "blue": (44, 100, 216),
    "purple": (142, 66, 178),
    "white": (246, 246, 248),
    "black": (38, 36, 42),
}
EYE_WHITE, PUPIL, PINK, BEAK = (
    (252, 252, 252),
    (20, 18, 22),
    (240, 150, 160),
    (238, 168, 44),
)
WOOD, GLASS, FOAM, DUST = (
    (112, 74, 44),
    (190, 226, 244),
    (236, 246, 252),
    (226, 216, 200),
)


@dataclass(frozen=True, slots=True)
class Paint:
    """The shades of one colour that an object is drawn with."""

    base: Colour
    dark: Colour
    light: Colour
    outline: Colour

    @classmethod
    def of(cls, colour: str, jitter: float, *, night: bool) -> Paint:
        """The shades of a colour; `jitter` in [-1, 1] makes it a little darker or lighter."""
        base = shade(PALETTE[colour], 1 + 0.07 * jitter)
        if colour == "black":
            return cls(
                base,
                (24, 22, 28),
                (78, 76, 86),
                (150, 150, 168) if night else (10, 8, 12),
            )
        if colour == "white":
            return cls(base, (206, 208, 216), (255, 255, 255), (112, 116, 130))
        # A darkened yellow would be olive.
        dark = shade((224, 164, 24), 1 + 0.07 * jitter) if colour == "yellow" else shade(base, 0.74)
        return cls(base, dark, shade(base, 1.45), shade(dark, 0.45))
