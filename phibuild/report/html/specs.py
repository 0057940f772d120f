"""The plots as Vega-Lite specifications: plain data, the same for the page and for pictures.

A specification names its data sets (`rows`, and others of `Figure.sets`) and its parameters; a
figure brings both. https://vega.github.io/vega-lite/docs/spec.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from phibuild.report.html.channels import BYTES, CLIPPED, DECADES, FLOOR, TIP, position
from phibuild.report.html.theme import Spec, Theme, shapes

Kind = Literal["tradeoff", "speed", "sizes", "layers", "positions", "steps", "memory"]
STEP_KINDS = ("build", "prepare", "judge", "original")
_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_GOOD = "datum.verdict == 'ship' || datum.verdict == 'good'"
_RING = "rgba(0,0,0,0)"


@dataclass(frozen=True)
class Drawing:
    """What all plots of a report share: the backends and the roles of matrices, each with a colour
    and a shape of its own, and the theme."""

    backends: tuple[str, ...]
    roles: tuple[str, ...]
    theme: Theme

    def specs(self) -> dict[Kind, Spec]:
        """Return the specification of each kind of plot."""
        return {
            "tradeoff": self.tradeoff(),
            "speed": self.speed(),
            "sizes": self.sizes(),
            "layers": self.layers(),
            "positions": self.positions(),
            "steps": self.steps(),
            "memory": self.memory(),
        }

    def tradeoff(self) -> Spec:
        """Size against loss: error bars, the line of those that none beats in both, budget and
        limits. Points are full where the cell could be shipped; that to ship is larger."""
        front: Spec = {
            "transform": [{"filter": "datum.pareto"}],
            "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 1,
                     "color": self.theme.color("muted"), "opacity": 0.8},
            "encoding": {"x": self._size(), "y": self._loss("y"), "order": {"field": "size"}},
        }  # fmt: skip
        name: Spec = {
            "transform": [{"filter": "datum.verdict == 'ship'"}],
            "mark": {"type": "text", "align": "left", "dx": -6, "dy": -12, "fontWeight": 600,
                     "color": self.theme.color("text")},
            "encoding": {"x": self._size(), "y": self._loss("y"), "text": {"field": "name"}},
        }  # fmt: skip
        return self._spec(
            layer=[
                *self._limit("budget", "x", self._size(), "warn"),
                *self._limit("gates", "y", self._loss("y"), "muted"),
                front,
                self._errors(self._size()),
                self._points(self._size()),
                name,
            ],
            transform=CLIPPED,
            height=250,
        )

    def speed(self) -> Spec:
        """Decoding speed against loss."""
        speed = position("decode", "decoding, tokens per second", "log", {"format": "~s"})
        return self._spec(
            layer=[self._errors(speed), self._points(speed)], transform=CLIPPED, height=250
        )

    def sizes(self) -> Spec:
        """Sizes as bars, the plan as a tick on each, the source as a line."""
        y: Spec = {"field": "label", "type": "nominal", "sort": None, "title": None}
        plan: Spec = {
            "mark": {"type": "tick", "thickness": 2, "size": 14,
                     "color": self.theme.color("text")},
            "encoding": {"y": y, "x": {**self._size(zero=True), "field": "plan"}},
        }  # fmt: skip
        bars: Spec = {
            "mark": {"type": "bar", "height": 9, **TIP},
            "encoding": {
                "y": y,
                "x": self._size(zero=True),
                "color": self._color("backend", self.backends),
            },
        }
        return self._spec(
            layer=[bars, plan, *self._limit("source", "x", self._size(zero=True), "warn")],
            height={"step": 18},
        )

    def layers(self) -> Spec:
        """The loss with each matrix alone on the grid, layer by layer."""
        x = position("layer", "layer", "linear", {"tickMinStep": 1, "format": "d"})
        y = position("kl", "KL, nats", "linear", {})
        color = self._color("role", self.roles)
        bars: Spec = {"mark": {"type": "rule", "strokeWidth": 1, "opacity": 0.7},
                      "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"},
                                   "color": color}}  # fmt: skip
        lines: Spec = {"mark": {"type": "line", "strokeWidth": 1.5},
                       "encoding": {"x": x, "y": y, "color": color}}  # fmt: skip
        points: Spec = {
            "mark": {"type": "point", "filled": True, "size": 45, "opacity": 1, **TIP},
            "encoding": {"x": x, "y": y, "color": color, "shape": self._shape("role", self.roles)},
        }
        return self._spec(layer=[bars, lines, points], height=230)

    def positions(self) -> Spec:
        """The loss by position in the window, a line for each artifact."""
        x = position("at", "position in the window, from", "linear", {"format": "d"})
        color = self._color("backend", self.backends)
        line: Spec = {
            "mark": {"type": "line", "strokeWidth": 1.5, "interpolate": "linear"},
            "encoding": {"x": x, "y": self._loss("y"), "color": color,
                         "detail": {"field": "id"}},
        }  # fmt: skip
        points: Spec = {
            "mark": {"type": "point", "filled": True, "size": 40, "opacity": 1, **TIP},
            "encoding": {"x": x, "y": self._loss("y"), "color": color,
                         "shape": self._shape("backend", self.backends)},
        }  # fmt: skip
        # The loss at a position in place of that of the cell.
        return self._spec(
            layer=[line, points],
            transform=[
                {"flatten": ["pos", "at"]},
                {"calculate": "max(datum.pos, floor)", "as": "y"},
            ],
            height=230,
        )

    def steps(self) -> Spec:
        """When each step ran."""
        y: Spec = {"field": "step", "type": "nominal", "sort": None, "title": None}
        x = position("start", "seconds from the start of the run", "linear", {"format": ",d"})
        bars: Spec = {
            "mark": {"type": "bar", "height": 10, **TIP},
            "encoding": {"y": y, "x": x, "x2": {"field": "end"},
                         "color": self._color("kind", STEP_KINDS)},
        }  # fmt: skip
        return self._spec(layer=[bars], height={"step": 18})

    def memory(self) -> Spec:
        """Memory that was planned for what ran, and what it took, over time."""
        x = position("start", "seconds from the start of the run", "linear", {"format": ",d"})
        y = position("planned", "memory", "linear", {"labelExpr": BYTES}, zero=True)
        planned: Spec = {
            "mark": {"type": "rect", "opacity": 0.25, "color": self.theme.color("c0"), **TIP},
            "encoding": {"x": x, "x2": {"field": "end"}, "y": y, "y2": {"datum": 0}},
        }
        taken: Spec = {
            "mark": {"type": "rect", "opacity": 0.8, "color": self.theme.color("c0"), **TIP},
            "encoding": {"x": x, "x2": {"field": "end"}, "y": {**y, "field": "taken"},
                         "y2": {"datum": 0}},
        }  # fmt: skip
        return self._spec(layer=[planned, taken], height=150)

    def _spec(self, **parts: object) -> Spec:
        return {
            "$schema": _SCHEMA,
            "data": {"name": "rows"},
            "width": "container",
            "autosize": {"type": "fit-x", "contains": "padding"},
            "params": [{"name": "floor", "value": 1e-9}],
            "config": self.theme.config,
            **parts,
        }

    def _size(self, *, zero: bool = False) -> Spec:
        return position("size", "size of the artifact", "linear", {"labelExpr": BYTES}, zero=zero)

    def _loss(self, field: str) -> Spec:
        return position(field, "KL, nats", "log", {"labelExpr": FLOOR, "values": DECADES})

    def _color(self, field: str, domain: Sequence[str]) -> Spec:
        scale = {"domain": list(domain), "range": self.theme.palette(domain)}
        return {"field": field, "type": "nominal", "title": None, "scale": scale,
                **self._legend(field)}  # fmt: skip

    def _legend(self, field: str) -> Spec:
        """Return no legend for a page: it has its own, which no narrow screen cuts off."""
        return {} if self.theme.fixed else {"legend": None}

    def _shape(self, field: str, domain: Sequence[str]) -> Spec:
        scale = {"domain": list(domain), "range": shapes(domain)}
        return {"field": field, "type": "nominal", "title": None, "scale": scale,
                **self._legend(field)}  # fmt: skip

    def _errors(self, x: Spec) -> Spec:
        return {
            "transform": [{"filter": "isValid(datum.err)"}],
            "mark": {"type": "rule", "strokeWidth": 1},
            "encoding": {"x": x, "y": self._loss("low"), "y2": {"field": "high"},
                         "color": self._color("backend", self.backends)},
        }  # fmt: skip

    def _points(self, x: Spec) -> Spec:
        color = self._color("backend", self.backends)
        return {
            "mark": {"type": "point", "strokeWidth": 1.5, "opacity": 1, "cursor": "pointer", **TIP},
            "encoding": {
                "x": x,
                "y": self._loss("y"),
                "shape": self._shape("backend", self.backends),
                "stroke": color,
                "fill": {"condition": {"test": _GOOD, **color}, "value": _RING},
                "size": {
                    "condition": {"test": "datum.verdict == 'ship'", "value": 150},
                    "value": 60,
                },
            },
        }

    def _limit(self, data: str, axis: Literal["x", "y"], place: Spec, color: str) -> list[Spec]:
        """Return a dashed line at `at` for each of a data set, with its label."""
        where = {**place, "field": "at"}
        text: Spec = {"type": "text", "fontSize": 10, "color": self.theme.color(color)}
        text |= (
            {"align": "right", "dx": -4, "baseline": "top"}
            if axis == "x"
            else {"align": "right", "dy": -5}
        )
        end: Spec = {"y": {"value": 2}} if axis == "x" else {"x": {"value": "width"}}
        if data == "source":  # below, where the bars are short
            end, text = {"y": {"value": "height"}}, {**text, "align": "left", "dx": 4, "dy": -14}
        return [
            {
                "data": {"name": data},
                "mark": {"type": "rule", "strokeDash": [5, 4], "color": self.theme.color(color)},
                "encoding": {axis: where},
            },
            {
                "data": {"name": data},
                "mark": text,
                "encoding": {axis: where, "text": {"field": "label"}, **end},
            },
        ]
