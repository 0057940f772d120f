"""Gates: which apply, at which limit, and what is not held against a cell."""

from __future__ import annotations

from typing import Any

import pytest

from phibuild.report.documents import Gate
from phibuild.report.gates import check_gates
from phibuild.schema import Gates, Precision
from phibuild.store.documents import Quality
from support.documents import some_measure

QUALITY = some_measure(0.05).quality


def check(
    gates: dict[str, Any],
    precision: Precision = "int4",
    quality: Quality | None = QUALITY,
    size: int | None = 1000,
    fits: bool | None = True,
) -> dict[str, bool | None]:
    found = check_gates(
        Gates.model_validate(gates), precision, quality=quality, size_bytes=size, fits_budget=fits
    )
    return {gate.name: gate.passed for gate in found}


@pytest.mark.parametrize(
    ("gates", "passed"),
    [
        ({}, {}),
        ({"kl": 0.05}, {"kl": True}),
        ({"kl": 0.0499}, {"kl": False}),
        ({"kl": {"int4": 0.04, "int8": 1}}, {"kl": False}),
        ({"kl": {"int8": 0.001}}, {}),
        ({"top1": 0.9}, {"top1": True}),
        ({"top1": 0.91}, {"top1": False}),
        ({"size": 1000}, {"size": True}),
        ({"size": "999 B"}, {"size": False}),
        ({"fits_budget": True}, {"fits_budget": True}),
        ({"fits_budget": False}, {}),
        ({"kl": 1, "top1": 1, "size": 1, "fits_budget": True},
         {"kl": True, "top1": False, "size": False, "fits_budget": True}),
    ],
)  # fmt: skip
def test_limits(gates: dict[str, Any], passed: dict[str, bool]) -> None:
    assert check(gates) == passed


def test_what_was_not_measured_is_not_held_against_a_cell() -> None:
    gates = {"kl": 0.01, "top1": 0.99, "size": 10, "fits_budget": True}
    assert check(gates, quality=None, size=None, fits=None) == dict.fromkeys(gates)


def test_a_cell_that_does_not_fit() -> None:
    assert check({"fits_budget": True}, fits=False) == {"fits_budget": False}


def test_limit_and_value_are_told() -> None:
    (gate,) = check_gates(
        Gates(kl={"int4": 0.01}), "int4", quality=QUALITY, size_bytes=None, fits_budget=None
    )
    assert gate == Gate(name="kl", limit=0.01, value=0.05, passed=False)


@pytest.mark.parametrize(
    "gates",
    [{"kl": 0}, {"kl": -1}, {"kl": True}, {"kl": "low"}, {"kl": {"int5": 1}}, {"kl": float("inf")},
     {"kl": float("nan")}, {"kl": {"int4": {"int4": 1}}}, {"size": 0}, {"size": "-1"}, {"kll": 1}],
)  # fmt: skip
def test_nonsense_is_refused(gates: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        Gates.model_validate(gates)
