"""Two phibuilds on one store: the same cells, overlapping ones, and one that is killed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from support.faults import Running, Site, Tally, digests, killed, reasons, wait_until
from support.faulty import mend, misbehave
from support.kinds import some

BUILD = ("build", "-m", "recipe=quickstart", "evaluation=none")


@pytest.fixture
def sites(tmp_path: Path, undisturbed: Site) -> tuple[Site, Site]:
    """Return two folders with one store, in which the source is known."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = (Site(tmp_path / name, tmp_path / "store") for name in ("one", "two"))
    one.lend_originals(undisturbed)
    return one, two


def both_end_well(one: Running, two: Running) -> None:
    assert [one.wait(), two.wait()] == [0, 0], one.output + two.output
    assert "Traceback" not in one.output + two.output


def statuses(site: Site) -> dict[str, str]:
    return {cell["id"]: cell["status"] for cell in site.report()["cells"]}


def test_the_same_cells_at_once(sites: tuple[Site, Site], undisturbed: Site, tally: Tally) -> None:
    one, two = sites
    words = (*BUILD, "backend=llamacpp,mlx")
    with one.start(*words) as first, two.start(*words) as second:
        # Whichever is first at a cell builds it: all of them, perhaps.
        assert wait_until(lambda: (one.workers() or two.workers()) and second.runs, first), (
            first.output + second.output
        )
        both_end_well(first, second)
    tally.add("two phibuilds at once", "the same cells")
    for site in sites:
        site.check()
        site.check_swept()
        site.check_all_built(digests(undisturbed.report(), "llamacpp", "mlx"))
    found = statuses(one), statuses(two)
    assert all({found[0][cell], found[1][cell]} == {"built", "cached"} for cell in found[0])
    assert list((one.store / "damaged").iterdir()) == []


def test_cells_that_overlap_at_once(
    sites: tuple[Site, Site], undisturbed: Site, tally: Tally
) -> None:
    one, two = sites
    with (
        one.start(*BUILD, "backend=llamacpp,mlx") as first,
        two.start(*BUILD, "backend=mlx,executorch") as second,
    ):
        both_end_well(first, second)
    tally.add("two phibuilds at once", "cells that overlap")
    for site in sites:
        site.check()
        site.check_swept()
    one.check_all_built(digests(undisturbed.report(), "llamacpp", "mlx"))
    two.check_all_built(digests(undisturbed.report(), "mlx", "executorch"))
    shared = [cell for cell in statuses(one) if cell in statuses(two)]
    assert len(shared) == 4
    assert all({statuses(one)[c], statuses(two)[c]} == {"built", "cached"} for c in shared)


@pytest.mark.parametrize(
    "victim", some(["the one that builds", "the one that waits"], ["the one that builds"])
)
def test_one_is_killed_while_the_other_waits_for_it(
    victim: str, sites: tuple[Site, Site], undisturbed: Site, tally: Tally
) -> None:
    one, two = sites
    words = (*BUILD, "backend=mlx", "precision=int4,int8")
    # The source is known then: what hangs is the build, and nothing else's time can run out.
    assert one.run(*BUILD, "backend=mlx", "precision=fp16").wait() == 0
    misbehave(one, "mlx", "hangs", times=1)
    with one.start(*words, "executor.timeout=20") as first:
        assert wait_until(one.workers, first), first.output
        with two.start(*words) as second:
            assert wait_until(lambda: "mlx: build" in second.output, second), second.output
            time.sleep(1.0)
            assert not two.workers(), "it does not wait"
            if victim == "the one that builds":
                assert killed(first)
                one.check()
                assert second.wait() == 0, second.output
            else:
                assert killed(second)
                two.check()
                assert first.wait(120) == 1, first.output
                assert set(reasons(one.report()).values()) == {"timed out after 20 s"}
                mend(one)
                two.run(*words)
    tally.add("two phibuilds at once", f"kill -9 of {victim}")
    expected = digests(undisturbed.report(), "mlx")
    for site in sites:
        site.check()
    assert two.run(*words).wait() == 0  # what the killed one left is swept by the next
    two.check_swept()
    assert two.report()["totals"]["failed"] == 0
    assert digests(two.report()).items() <= expected.items()
