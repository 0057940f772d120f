"""Colours of the plots: the page's own variables, which follow light and dark, or fixed ones for
pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Spec = dict[str, object]

# Told apart by those who do not see red or green too (after Okabe and Ito 2008), each with a
# contrast of 3:1 and more to the ground. The page has them as --c0 ... in its style sheet.
LIGHT = {
    "ground": "#ffffff", "text": "#16191d", "muted": "#56606d", "line": "#dde2e8",
    "accent": "#0b5cad", "warn": "#a83e00",
    "c0": "#0b62b0", "c1": "#b85c00", "c2": "#00775a", "c3": "#a0417e", "c4": "#2a85b5",
    "c5": "#5f4bb6", "c6": "#766b00", "c7": "#6b4a3a",
}  # fmt: skip
SHAPES = (
    "circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right",
    "triangle-left",
)  # fmt: skip
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_PICTURE_FONT = "Liberation Sans, Arial, Helvetica, DejaVu Sans, sans-serif"


@dataclass(frozen=True)
class Theme:
    """What colours are called, and the font."""

    fixed: bool
    """Colours as they are, in place of the page's variables."""

    def color(self, name: str) -> str:
        return LIGHT[name] if self.fixed else f"var(--{name})"

    def palette(self, names: Sequence[str]) -> list[str]:
        """Return a colour for each name, from the first again where there are too many."""
        return [self.color(f"c{number % len(SHAPES)}") for number in range(len(names))]

    @property
    def config(self) -> Spec:
        """Return Vega-Lite's config."""
        font = _PICTURE_FONT if self.fixed else FONT
        muted, line = self.color("muted"), self.color("line")
        return {
            "background": self.color("ground") if self.fixed else "transparent",
            "font": font,
            "view": {"stroke": None},
            "axis": {
                "labelColor": muted, "titleColor": muted, "gridColor": line, "domainColor": line,
                "tickColor": line, "labelFontSize": 11, "titleFontSize": 11,
                "titleFontWeight": "normal", "titlePadding": 8, "labelLimit": 170,
            },
            "legend": {
                "labelColor": self.color("text"), "titleColor": muted, "labelFontSize": 11,
                "titleFontSize": 11, "titleFontWeight": "normal", "orient": "top",
                "symbolStrokeWidth": 1.5, "symbolSize": 60, "columnPadding": 14, "labelLimit": 120,
            },
            "text": {"color": self.color("text"), "fontSize": 11},
            "aria": False,
        }  # fmt: skip


def shapes(names: Sequence[str]) -> list[str]:
    """Return a shape for each name: colour never tells alone."""
    return [SHAPES[number % len(SHAPES)] for number in range(len(names))]
