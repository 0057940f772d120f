"""Workers that misbehave: each costs its own cells, with the reason; the others are built."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from support.faults import Site, Tally, digests, reasons
from support.faulty import mend, misbehave, misbehaved
from support.kinds import some

# mlx is made to misbehave; llamacpp is its neighbour.
BUILD = ("build", "-m", "recipe=quickstart", "backend=llamacpp,mlx", "precision=int4,int8",
         "evaluation=none")  # fmt: skip
ENDINGS = {
    "says nothing": "the runner ended without a result",
    "says only that it is done": "the runner said nothing about it",
    "prints text": "the runner wrote something that is no event: 'Segmentation fault",
    "prints bytes": "the runner wrote something that is no event",
    "prints half an event": "the runner wrote something that is no event",
    "prints a list": "the runner wrote something that is no event: '[1, 2]",
    "prints brackets": "the runner wrote something that is no event",
    "prints a stage without a name": "the runner wrote something that is no event",
    "prints a result of the wrong shape": "the runner wrote something that is no event",
    "prints a result without figures": "the runner's result is not what it should be: types",
    "prints an error that is no text": "the runner wrote something that is no event",
    "prints an item that is no key": "the runner wrote something that is no event",
    "prints a line without an end": "the runner wrote something that is no event",
}


@pytest.fixture
def site(tmp_path: Path, undisturbed: Site) -> Site:
    site = Site(tmp_path, tmp_path / "store")
    site.lend_originals(undisturbed)
    return site


def built(site: Site, undisturbed: Site) -> None:
    """Build with the real toolchains; all is there, as in an undisturbed build."""
    mend(site)
    again = site.run(*BUILD)
    assert again.wait() == 0, again.output
    site.check()
    site.check_swept()
    expected = digests(undisturbed.report(), "llamacpp", "mlx")
    assert digests(site.report()) == {
        name: digest for name, digest in expected.items() if name.endswith(("int4", "int8"))
    }


def only_mlx_failed(site: Site, reason: str) -> None:
    found = reasons(site.report())
    assert sorted(name.split(".", 2)[2] for name in found) == ["mlx.int4", "mlx.int8"]
    assert all(reason in text for text in found.values()), found


@pytest.mark.parametrize(
    "what",
    some(
        ENDINGS,
        [
            "says nothing", "prints text", "prints a line without an end",
            "prints a result without figures",
        ],
    ),
)  # fmt: skip
def test_a_worker_that_ends_oddly(what: str, site: Site, undisturbed: Site, tally: Tally) -> None:
    misbehave(site, "mlx", what)
    done = site.run(*BUILD)
    tally.add("a worker that " + what.split()[0], what, misbehaved(site))
    # Both items, then each alone that has no answer yet.
    assert misbehaved(site) == (2 if "figures" in what else 3), done.output
    assert "Traceback" not in done.output
    assert done.wait() == 1, done.output
    site.check()
    only_mlx_failed(site, ENDINGS[what])
    built(site, undisturbed)


@pytest.mark.parametrize("what", some(["hangs", "is stopped"], ["hangs"]))
def test_a_worker_that_never_ends(what: str, site: Site, undisturbed: Site, tally: Tally) -> None:
    # llamacpp is built first: its time must not run out, however busy the machine is.
    assert site.run(*BUILD, "--only", "*.llamacpp.*").wait() == 0
    misbehave(site, "mlx", what)
    began = time.monotonic()
    done = site.run(*BUILD, "executor.timeout=2")
    assert misbehaved(site) == 1  # the time is out: nothing is tried again
    assert time.monotonic() - began < 60
    tally.add("a worker that " + what, "until its step's time is out", misbehaved(site))
    assert done.wait() == 1, done.output
    site.check()
    only_mlx_failed(site, "timed out after 2 s")
    built(site, undisturbed)


@pytest.mark.parametrize(
    "what",
    some(
        ["leaves a child", "leaves a child in a session of its own"],
        ["leaves a child in a session of its own"],
    ),
)
def test_a_worker_that_leaves_a_child(
    what: str, site: Site, undisturbed: Site, tally: Tally
) -> None:
    """The child ignores SIGTERM and holds the event stream open; the work itself is done."""
    misbehave(site, "mlx", what)
    with site.start(*BUILD) as running:
        code = running.wait(60)
        left = [pid for pid in site.processes() if pid != running.process.pid]
        assert misbehaved(site) == 1
        tally.add("a worker that leaves a child", what)
        assert code == 0, running.output
        site.check()
    assert not left or not site.processes()
    built(site, undisturbed)
