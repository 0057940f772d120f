"""Limits of gates as recipes write them: a figure, or how far it may be from a baseline's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from phibuild.units import parse_size
from phibuild.worker.json_values import is_number, object_or_empty

FigureName = Literal["kl", "top1", "size"]


@dataclass(frozen=True)
class Figure:
    """How the limits of a figure are written: the keys of a limit (`bound`), of a factor of the
    baseline's figure (`than`), of a distance from it (`by`). `sign`: 1 where more is worse."""

    name: FigureName
    bound: str
    than: str
    by: str
    sign: Literal[1, -1]

    @property
    def keys(self) -> tuple[str, str, str]:
        return self.bound, self.than, self.by


FIGURES: dict[FigureName, Figure] = {
    "kl": Figure("kl", "at_most", "not_worse_than", "not_worse_by", 1),
    "top1": Figure("top1", "at_least", "not_worse_than", "not_worse_by", -1),
    "size": Figure("size", "at_most", "not_larger_than", "not_larger_by", 1),
}


@dataclass(frozen=True)
class Comparison:
    """What a figure may be beside a baseline's: `factor` times it and `margin` more, which is
    negative where less is worse."""

    factor: float = 1.0
    margin: float = 0.0

    def limit(self, baseline: float) -> float:
        """Return the figure that is just allowed."""
        return self.factor * baseline + self.margin


def is_bound(value: object) -> bool:
    """Whether a limit is written with the keys of a bound, and not by precision."""
    known = {key for figure in FIGURES.values() for key in figure.keys}
    return bool(known & {str(key) for key in object_or_empty(value)})


def by_precision(limit: object) -> Mapping[str, object]:
    """Return the limits of one that differs by precision or variant, {} of any other."""
    return {} if is_bound(limit) else object_or_empty(limit)


def check_bound(value: Mapping[object, object], figure: Figure) -> dict[str, float]:
    """Return a limit that is written with keys, checked. Raises ValueError."""
    bound = {str(key): number for key, number in value.items()}
    for key in bound:
        if key not in figure.keys:
            raise ValueError(f"unknown key {key!r} of a limit; known: {', '.join(figure.keys)}")
    if figure.than in bound and figure.by in bound:
        raise ValueError(f"{figure.than!r} and {figure.by!r} say the same: leave one out")
    return {key: _number(key, number, figure) for key, number in bound.items()}


def _number(key: str, value: object, figure: Figure) -> float:
    """Return a number of a bound; sizes are bytes, but for a factor."""
    if figure.name == "size" and key != figure.than:
        try:
            size = parse_size(value)
        except ValueError as error:
            raise ValueError(f"{key!r}: {error}") from error
        return float(_positive(key, size))
    if not is_number(value):
        raise ValueError(f"{key!r} must be a number, not {value!r}")
    number = as_float(value)
    if key == figure.than and (number - 1) * figure.sign < 0:
        more, one = ("more", "1.05") if figure.sign > 0 else ("less", "0.99")
        worse = f"at {'least' if figure.sign > 0 else 'most'} 1: {one} allows that much {more}"
        raise ValueError(f"{key!r} is a factor of the baseline's figure, {worse}")
    return _positive(key, number)


def _positive(key: str, number: float) -> float:
    if not 0 < number < float("inf"):
        raise ValueError(f"{key!r} must be {'a finite number' if number > 0 else 'greater than 0'}")
    return number


def as_float(value: float) -> float:
    """Return a number, which may be a whole one, as a float: an infinite one if it is too large."""
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else -float("inf")


def absolute(limit: object, figure: Figure) -> float | None:
    """Return the figure that a checked limit names, if it names one."""
    match limit:
        case {figure.bound: number} | float(number) | int(number):
            return float(number)
    return None


def comparison(limit: object, figure: Figure) -> Comparison | None:
    """Return how a checked limit compares with a baseline, if it does."""
    match limit:
        case {figure.than: factor}:
            return Comparison(factor=float(factor))
        case {figure.by: margin}:
            return Comparison(margin=figure.sign * float(margin))
    return None
