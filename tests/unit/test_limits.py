"""Limits of gates as they are written: figures, bounds beside a baseline, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from phibuild.schema import Gates
from phibuild.schema.limits import Comparison


def gates(**given: Any) -> Gates:
    return Gates.model_validate({"baseline": "latest", **given})


def test_a_bound_beside_a_baseline() -> None:
    found = gates(
        kl={"int4": {"not_worse_than": 1.05}, "int4.Q4_0": {"not_worse_by": 0.002}, "int8": 0.01},
        top1={"not_worse_by": 0.005, "at_least": 0.8},
        size={"not_larger_than": 1.02, "at_most": "3 GB"},
    )
    assert found.comparisons("int4", "Q4_K_M") == {
        "kl": Comparison(factor=1.05), "top1": Comparison(margin=-0.005),
        "size": Comparison(factor=1.02),
    }  # fmt: skip
    assert found.comparisons("int4", "Q4_0")["kl"] == Comparison(margin=0.002)
    assert "kl" not in found.comparisons("int8", None)
    assert found.quality_limits("int8", None) == {"kl": 0.01, "top1": 0.8}
    assert found.quality_limits("int4", None) == {"kl": None, "top1": 0.8}
    assert found.size_limit == 3_000_000_000


@pytest.mark.parametrize(
    ("comparison", "baseline", "limit"),
    [(Comparison(factor=1.05), 0.2, 0.21), (Comparison(margin=0.002), 0.2, 0.202),
     (Comparison(margin=-0.005), 0.9, 0.895)],
)  # fmt: skip
def test_what_a_baseline_allows(comparison: Comparison, baseline: float, limit: float) -> None:
    assert comparison.limit(baseline) == pytest.approx(limit)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"kl": {"not_worse_then": 1.05, "not_worse_than": 1}}, "unknown key 'not_worse_then'"),
        ({"kl": {"not_larger_than": 1.05}}, "unknown key 'not_larger_than' of a limit; known: at_"),
        ({"kl": {"int4": 0.1, "not_worse_than": 1.05}}, "unknown key 'int4' of a limit"),
        ({"kl": {"not_worse_than": 0.95}}, "at least 1: 1.05 allows that much more"),
        ({"top1": {"not_worse_than": 1.05}}, "at most 1: 0.99 allows that much less"),
        ({"kl": {"not_worse_than": "5%"}}, "'not_worse_than' must be a number, not '5%'"),
        ({"kl": {"not_worse_than": True}}, "'not_worse_than' must be a number, not True"),
        ({"kl": {"not_worse_by": 0}}, "'not_worse_by' must be greater than 0"),
        ({"kl": {"not_worse_by": 1, "not_worse_than": 1}}, "say the same: leave one out"),
        ({"kl": {"int4": {"int8": 1}}}, "the limit of int4 must be a number, or a bound"),
        ({"kl": {"int4": {"not_worse_by": -1}}}, "int4: 'not_worse_by' must be greater than 0"),
        ({"size": {"not_larger_by": "many"}}, "'not_larger_by': 'many' is not a size"),
        ({"kl": 0.1}, "no gate compares with 'baseline'"),
        ({"baseline": None, "kl": {"int4": {"not_worse_than": 1.05}}},
         "'kl' compares with a baseline, and none is named"),
        ({"baseline": 1.3, "kl": {"not_worse_than": 1.05}}, "must be text: a run's folder"),
        ({"baseline": " ", "kl": {"not_worse_than": 1.05}}, "must be text: a run's folder"),
    ],
)  # fmt: skip
def test_what_is_no_bound_is_refused(given: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match="validation error") as error:
        gates(**given)
    assert what in str(error.value)


def test_a_bound_may_have_a_limit_alone() -> None:
    """No baseline is needed for that."""
    found = Gates.model_validate({"kl": {"at_most": 0.1}, "size": {"at_most": 5}})
    assert found.quality_limits("int4", None)["kl"] == 0.1
    assert (found.size_limit, found.comparisons("int4", None)) == (5, {})
