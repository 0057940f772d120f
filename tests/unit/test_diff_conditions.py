"""--fail-if: what is a condition, and which cells it applies to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phibuild.errors import ConfigError
from phibuild.report.diff.conditions import read_condition, read_conditions
from phibuild.report.diff.making import NamedReport, make_difference
from phibuild.report.documents import Gate, ReportCell
from support.report_cells import LOSSES, lost, some_cell, some_quality, some_report, timed


def fails(condition: str, a: list[ReportCell], b: list[ReportCell]) -> list[str]:
    """Return why a condition applies to cells."""
    found = make_difference(NamedReport("a", some_report(*a)), NamedReport("b", some_report(*b)))
    return [one.why for one in read_condition(condition).failures(found).cells]


def judged(factor: float) -> ReportCell:
    quality = some_quality([factor * kl for kl in LOSSES])
    return some_cell(quality=quality, artifact_digest="other")


NOISY = some_cell(
    quality=some_quality([kl * (1.3 if n % 2 else 0.9) for n, kl in enumerate(LOSSES)])
)


@pytest.mark.parametrize(
    ("condition", "count"),
    [
        ("kl>+5%", 1), ("kl>+12%", 0), ("kl > +5 %", 1), ("kl>=+5%", 1), ("kl>+0.005", 1),
        ("kl>+.005", 1), ("kl>+0.02", 0), ("kl<-5%", 0), ("kl>-5%", 1), ("kl<+12%", 1),
        ("size>+1%", 0), ("ppl>+0.1%", 1), ("top1<-0.5%", 0), ("speed<-20%", 0),
    ],
)  # fmt: skip
def test_a_tenth_more_loss(condition: str, count: int) -> None:
    assert len(fails(condition, [some_cell()], [judged(1.1)])) == count


@pytest.mark.parametrize(
    ("condition", "size", "count"),
    [("size>+1%", 2_020_001, 1), ("size>+1%", 2_020_000, 0), ("size>=+1%", 2_020_000, 1),
     ("size>+1kB", 2_001_001, 1), ("size>+1KiB", 2_001_001, 0), ("size>+0%", 2_000_001, 1),
     ("size>+0%", 2_000_000, 0), ("size<-10%", 1_700_000, 1)],
)  # fmt: skip
def test_sizes(condition: str, size: int, count: int) -> None:
    assert len(fails(condition, [some_cell()], [some_cell(size_bytes=size)])) == count


def test_only_what_is_beyond_noise_counts_unless_it_is_asked_for() -> None:
    assert fails("kl>+5%", [some_cell()], [NOISY]) == []
    (why,) = fails("kl>+5%!", [some_cell()], [NOISY])
    assert why.startswith("KL 0.1000 -> ")
    slow = timed(some_cell(artifact_digest="other"), decode=60.0)
    assert fails("speed<-20%", [some_cell()], [slow]) == []
    assert fails("speed<-20%!", [some_cell()], [slow]) == [
        "decode 100 tok/s -> 60 tok/s, -40.0 % noise"
    ]
    assert fails("prefill<-20%!", [some_cell()], [slow]) == []


def test_a_condition_that_no_change_breaks_counts_noise_too() -> None:
    """kl<-5% wants nothing; kl>-5% wants it better by so much, which the same is not."""
    assert len(fails("kl>-5%", [some_cell()], [some_cell()])) == 1
    assert len(fails("kl>-5%", [some_cell()], [judged(0.9)])) == 0


def test_from_nothing_every_loss_is_endless() -> None:
    nothing = some_cell(quality=some_quality([0.0] * 8))
    assert len(fails("kl>+1000%", [nothing], [some_cell()])) == 1
    assert fails("kl>+1000%", [nothing], [nothing]) == []


def test_what_nobody_can_check_is_not_kept() -> None:
    name = some_cell().id
    for cell, why in (
        (lost(name, "failed", "x"), "nothing to compare: it failed"),
        (lost(name, "skipped", "x"), "nothing to compare: it was skipped"),
        (some_cell(quality=None, speed=None), "nothing to compare: it was not judged"),
    ):
        assert fails("kl>+5%", [some_cell()], [cell]) == [why]
        assert fails("speed<-20%", [some_cell()], [cell]) == [why]
        assert fails("size>+1%", [some_cell()], [cell]) == (
            [why] if cell.size_bytes is None else []
        )
    # What was not there before is not missing, and what the recipe has no more is `gone`.
    assert fails("kl>+5%", [some_cell(quality=None)], [some_cell(quality=None)]) == []
    assert fails("kl>+5%", [lost(name, "failed", "x")], [lost(name, "failed", "x")]) == []
    assert fails("kl>+5%", [], [some_cell()]) == []
    assert fails("kl>+5%", [some_cell()], []) == []
    assert fails("gone", [some_cell()], []) == ["gone"]


def test_events() -> None:
    name = some_cell().id
    failed = lost(name, "failed", "killed by SIGKILL")
    assert fails("failed", [some_cell()], [failed]) == ["killed by SIGKILL"]
    assert fails("failed", [], [failed]) == ["killed by SIGKILL"]
    assert fails("failed", [failed], [failed]) == []
    missed = Gate(name="kl", limit=0.2, value=0.3, passed=False)
    assert fails("gate", [some_cell()], [some_cell(gates=[missed])]) == [
        "kl 0.3 of at most 0.2 nats"
    ]


@pytest.mark.parametrize(
    "text",
    ["", "kl", "kl>", "kl>5%", "kl>0.1", "kl=+5%", "kl>+5%%", "kk>+5%", "KL>+5%", "kl>+five",
     "kl>+5 nats", "size>+1potato", "top1<-1e-3", "kl>+5%!!", "quickstart", ">+5%", "kl>+-5%"],
)  # fmt: skip
def test_what_is_no_condition_is_told_with_the_grammar(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_conditions([text, "kl>+5%"])
    (problem,) = error.value.problems
    assert problem.where == "command line: --fail-if"
    assert problem.remedy is not None
    assert "FIGURE > or < CHANGE" in problem.remedy


@given(st.text(max_size=30))
def test_no_words_are_a_crash(text: str) -> None:
    try:
        condition = read_condition(text)
    except ValueError:
        return
    assert condition.text == text.strip()


@given(
    st.sampled_from(["kl", "top1", "ppl", "speed"]),
    st.sampled_from(["<", ">", "<=", ">="]),
    st.sampled_from(["+", "-"]),
    st.decimals(0, 1000, places=3),
    st.booleans(),
)
def test_conditions_say_what_they_say(
    figure: str, sign: str, direction: str, number: object, percent: bool
) -> None:
    unit = "%" if percent else ""
    condition = read_condition(f"{figure}{sign}{direction}{number}{unit}")
    wanted = float(f"{direction}{number}") / (100 if percent else 1)
    assert condition.limit == pytest.approx(wanted)
    assert condition.is_relative is percent
    assert condition.compare(wanted + 1, condition.limit) is (">" in sign)
    assert condition.compare(wanted, condition.limit) is ("=" in sign)
