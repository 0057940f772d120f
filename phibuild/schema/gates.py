"""Gates: the limits that a cell must keep."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, WithJsonSchema, model_validator

from phibuild.schema.base import PRECISIONS, Frozen, Precision
from phibuild.schema.limits import (
    FIGURES,
    Comparison,
    Figure,
    FigureName,
    absolute,
    as_float,
    by_precision,
    check_bound,
    comparison,
    is_bound,
)
from phibuild.units import SIZE_TEXT, parse_size
from phibuild.worker.json_values import is_number


def _quality_limit(figure: Figure) -> Callable[[object], object]:
    """Return a check of a figure's limit: a positive number, a bound (limits.py), or a mapping of
    precisions, or of their variants (int4.Q4_K_M), to these."""

    def check(value: object) -> object:
        match value:
            case dict() if is_bound(value):
                return check_bound(value, figure)
            case dict():
                return {key: check_one(str(key), one) for key, one in value.items()}
        if not is_number(value):
            raise ValueError("a limit is a number, or a mapping of precisions to numbers")
        limit = as_float(value)
        if not 0 < limit < float("inf"):
            wanted = "a finite number" if limit > 0 else "greater than 0"
            raise ValueError(f"a limit must be {wanted}")
        return limit

    def check_one(key: str, value: object) -> object:
        precision, dot, variant = key.partition(".")
        if precision not in PRECISIONS:
            raise ValueError(f"unknown precision {key!r}; known: {', '.join(PRECISIONS)}")
        if dot and not variant:
            raise ValueError(f"{key!r} names no variant; write for example int4.Q4_K_M")
        if isinstance(value, dict) and not is_bound(value):
            raise ValueError(f"the limit of {key} must be a number, or a bound")
        try:
            return check(value)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error

    return check


def _size_limit(value: object) -> object:
    """Check a limit of size: bytes as people write them, or a bound."""
    match value:
        case dict():
            return check_bound(value, FIGURES["size"])
    size = parse_size(value)
    if not size:
        raise ValueError(f"must be greater than 0, not {value!r}")
    return size


def _named(value: object) -> object:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            "must be text: a run's folder, a report.json, latest, or a recipe; put it in quotes"
        )
    return value


def _limit_schema(figure: Figure) -> WithJsonSchema:
    """Return what a limit may be: a number or a bound, or these by precision or variant."""
    number = {"type": "number", "exclusiveMinimum": 0, "maximum": sys.float_info.max}
    amount = {"anyOf": [{"type": "integer", "minimum": 1}, SIZE_TEXT]}
    plain = amount if figure.name == "size" else number
    factor = {**number, **({"minimum": 1} if figure.sign > 0 else {"maximum": 1})}
    bound = {
        "type": "object",
        "properties": {figure.bound: plain, figure.than: factor, figure.by: plain},
        "additionalProperties": False,
        "minProperties": 1,
    }
    one = [plain, bound]
    if figure.name == "size":
        return WithJsonSchema({"anyOf": one}, mode="validation")
    by_precision = {
        "type": "object",
        "patternProperties": {rf"^({'|'.join(PRECISIONS)})(\..+)?$": {"anyOf": one}},
        "additionalProperties": False,
    }
    return WithJsonSchema({"anyOf": [*one, by_precision]}, mode="validation")


KlLimit = Annotated[
    Any, BeforeValidator(_quality_limit(FIGURES["kl"])), _limit_schema(FIGURES["kl"])
]
Top1Limit = Annotated[
    Any, BeforeValidator(_quality_limit(FIGURES["top1"])), _limit_schema(FIGURES["top1"])
]
SizeLimit = Annotated[Any, BeforeValidator(_size_limit), _limit_schema(FIGURES["size"])]


class Gates(Frozen):
    """Limits that a cell must keep. `kl`: mean KL in nats, at most; `top1`: share of equal top-1
    tokens, at least; `size`: bytes of the artifact, at most; `fits_budget`: the artifact with its
    KV cache fits the device's budget. `kl` and `top1` may differ by precision (int4), and by
    variant (int4.Q4_K_M), which counts before the precision. A limit may be what a `baseline` has,
    a run that is named as `phibuild report` names it: docs/recipes.md."""

    baseline: Annotated[str, BeforeValidator(_named)] | None = None
    """A run that limits may compare with: its folder or report.json, latest, or a recipe."""
    kl: KlLimit | None = None
    """Mean KL divergence from the original, in nats, at most: a number, how far it may be from the
    baseline's (not_worse_than: 1.05), or one for each precision (int4) or variant (int4.Q4_K_M)."""
    top1: Top1Limit | None = None
    """Share of tokens whose most probable successor is the original's, at least."""
    size: SizeLimit | None = None
    """Size of the artifact, at most, such as 2.5 GB, or how far it may be from the baseline's
    (not_larger_than: 1.02)."""
    fits_budget: bool | None = None
    """true: the artifact with its KV cache must fit the device's budget."""

    @model_validator(mode="after")
    def _has_what_it_compares_with(self) -> Gates:
        compares = [
            name
            for name, figure in FIGURES.items()
            for limit in _each(getattr(self, name))
            if comparison(limit, figure)
        ]
        if compares and self.baseline is None:
            raise ValueError(
                f"{compares[0]!r} compares with a baseline, and none is named; "
                "add for example baseline: latest"
            )
        if self.baseline is not None and not compares:
            raise ValueError(
                "no gate compares with 'baseline'; add for example kl: {not_worse_than: 1.05}"
            )
        return self

    def quality_limits(
        self, precision: Precision, variant: str | None
    ) -> dict[Literal["kl", "top1"], float | None]:
        """Return the limits of `kl` and of `top1` that hold for a variant of a precision: its own
        before those of the precision."""
        return {
            "kl": absolute(_limit_for(self.kl, precision, variant), FIGURES["kl"]),
            "top1": absolute(_limit_for(self.top1, precision, variant), FIGURES["top1"]),
        }

    @property
    def size_limit(self) -> int | None:
        """The bytes of an artifact, at most."""
        limit = absolute(self.size, FIGURES["size"])
        return None if limit is None else int(limit)

    def comparisons(
        self, precision: Precision, variant: str | None
    ) -> dict[FigureName, Comparison]:
        """Return how a variant of a precision is compared with the baseline, by figure."""
        found = {
            name: comparison(_limit_for(getattr(self, name), precision, variant), figure)
            for name, figure in FIGURES.items()
        }
        return {name: one for name, one in found.items() if one}


def _each(limit: object) -> list[object]:
    """Return all limits that stand in one by precision, or it alone."""
    return list(by_precision(limit).values()) or [limit]


def _limit_for(limit: object, precision: Precision, variant: str | None) -> object:
    own = by_precision(limit)
    return own.get(f"{precision}.{variant}", own.get(precision)) if own else limit
