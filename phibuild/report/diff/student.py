"""Whether a mean difference is more than chance: Student's t."""

from __future__ import annotations

import math

LEVEL = 0.05
"""How often chance alone is taken for a difference: of twenty figures that changed, once. Judging
that stops after four windows knows no better: at a hundredth, half as much loss again is noise."""


def chance(t: float, freedom: int) -> float:
    """Return how often chance alone gives |t| or more with so many degrees of freedom, 1 or more:
    the two-sided tail of Student's t for whole numbers of these (Abramowitz and Stegun, 26.7.3 and
    26.7.4)."""
    if math.isinf(t):
        return 0.0
    angle = math.atan2(abs(t), math.sqrt(freedom))
    cosine = math.cos(angle)
    term, total = (cosine if freedom % 2 else 1.0), 0.0
    for number in range(1 if freedom % 2 else 0, freedom - 1, 2):
        total += term
        term *= cosine * cosine * (number + 1) / (number + 2)
    inside = math.sin(angle) * total
    if freedom % 2:
        inside = (angle + inside) * 2 / math.pi
    return max(0.0, 1.0 - inside)


def is_beyond_noise(change: float, error: float, freedom: float, level: float = LEVEL) -> bool:
    """Whether a change with this standard error is more than chance, which is taken for one so
    often. Degrees of freedom are rounded down, which asks for more."""
    if change == 0:
        return False
    return chance(math.inf if error == 0 else change / error, max(1, int(freedom))) < level


def welch(one: float, one_count: int, other: float, other_count: int) -> tuple[float, float]:
    """Return the standard error of the difference of two means with these standard errors, of so
    many values each, two or more, and its degrees of freedom (Welch 1947, Satterthwaite 1946)."""
    error = math.hypot(one, other)
    if error == 0:
        return 0.0, float(one_count + other_count - 2)
    parts = one**4 / (one_count - 1) + other**4 / (other_count - 1)
    return error, error**4 / parts
