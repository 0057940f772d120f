"""kill -9 at random moments: builds of the quickstart, its workers and phibuild itself.

A store is worked on like this: kill, check, start again, until all is built and judged. The moments
are drawn from a seed, and biased to what is delicate. `--kills N` says how many of each seed.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path

import pytest

from phibuild.store.manifest import read_artifact
from support.faults import (
    QUICK,
    Running,
    Site,
    Tally,
    digests,
    files_are_written,
    killed,
    reasons,
    wait_until,
)
from support.faulty import misbehave
from support.kinds import some
from support.processes import kill_worker, parent
from support.quickstart import QUICKSTART

BUILD = ("build", "recipe=quickstart", *QUICK)
# Moment -> seconds after it, at most.
MOMENTS = {
    "while it starts": 0.6,
    "while a worker starts": 0.3,
    "while workers work": 2.0,
    "while files are written": 0.5,
    "while an artifact is published": 0.05,
    "while it is judged": 1.0,
    "while the report is written": 0.03,
}
WEIGHTS = (1, 1, 4, 3, 3, 3, 1)
SHARES = {"llamacpp": 6, "ort_genai": 1, "openvino": 4, "mlx": 6}
"""How often a backend is built anew, of those whose builds are not middling."""


def has_come(moment: str, site: Site) -> Callable[[], bool]:
    """Return whether a moment has come since now."""
    artifacts, measures, began = len(site.artifacts()), _count(site, "measures"), time.monotonic()
    runs = set(site.folder.glob("outputs/*/*/report.md"))

    def come() -> bool:
        match moment:
            case "while it starts":
                return True
            case "while a worker starts":
                return bool(site.workers())
            case "while workers work":
                return time.monotonic() > began + 0.6
            case "while files are written":
                return files_are_written(site)
            case "while an artifact is published":
                return len(site.artifacts()) > artifacts
            case "while it is judged":
                return _count(site, "measures") > measures
            case _:
                return bool(set(site.folder.glob("outputs/*/*/report.md")) - runs) or bool(
                    list(site.folder.glob("outputs/*/*/artifacts"))[len(runs) :]
                )

    return come


def _count(site: Site, name: str) -> int:
    return len(os.listdir(site.store / name)) if (site.store / name).is_dir() else 0


def test_kill_9_over_a_build_from_nothing(
    undisturbed: Site, tmp_path: Path, tally: Tally, every: bool
) -> None:
    """Of all backends, or of two: the source and the original are read for them too."""
    site = Site(tmp_path, tmp_path / "store")
    backends = QUICKSTART if every else ("llamacpp", "mlx")
    chance = random.Random(0)
    assert torment_until_finished(site, chance, 5, undisturbed, tally, *backends) >= 3


@pytest.mark.parametrize("seed", some(range(1, 5), [4]))
def test_kill_9_over_builds_that_have_got_somewhere(
    seed: int, undisturbed: Site, tmp_path: Path, tally: Tally, pytestconfig: pytest.Config
) -> None:
    wanted = pytestconfig.getoption("--kills")
    chance = random.Random(seed)
    kills = number = 0
    while kills < wanted:
        number += 1
        (tmp_path / f"{number}").mkdir()
        site = Site(tmp_path / f"{number}", tmp_path / f"{number}" / "store")
        begin_halfway(site, undisturbed, chance)
        most = min(5, wanted - kills)
        kills += torment_until_finished(site, chance, most, undisturbed, tally)
        shutil.rmtree(site.folder)  # pytest would keep them all


def begin_halfway(site: Site, undisturbed: Site, chance: random.Random) -> None:
    """Give a site the store of a finished build, less what has not been done yet: artifacts of
    one or two backends, some judgements, sometimes the original's logits."""
    shutil.copytree(undisturbed.store, site.store, copy_function=os.link)
    undone = chance.choices(QUICKSTART, [SHARES.get(name, 3) for name in QUICKSTART], k=2)
    for folder in site.artifacts():
        artifact = read_artifact(folder)
        assert artifact is not None
        if artifact.manifest.backend in undone and chance.random() < 0.7:
            shutil.rmtree(folder)
    for path in chance.sample(sorted((site.store / "measures").iterdir()), 2):
        path.unlink()
    if chance.random() < 0.25:
        shutil.rmtree(site.store / "references")
    site.check_store()


def torment_until_finished(
    site: Site, chance: random.Random, most: int, undisturbed: Site, tally: Tally, *backends: str
) -> int:
    """Kill, check and start again, until there is nothing left to build of some backends (none
    named: of all); return the kills."""
    kills = 0
    expected = digests(undisturbed.report(), *backends)
    words = ("-m", f"backend={','.join(backends)}") if backends else ()
    while True:
        with site.start(*BUILD, *words) as running:
            done = torment(running, site, chance, tally) if kills < most else 0
            kills += abs(done)
            if done >= 0:
                running.wait()
        site.check()
        if done >= 0 and finished(running, site, expected):
            return kills


def torment(running: Running, site: Site, chance: random.Random, tally: Tally) -> int:
    """Kill something at a random moment. Return the kills: of workers, or -1 for phibuild."""
    workers = 0
    while True:
        (moment,) = chance.choices(list(MOMENTS), WEIGHTS)
        delay = chance.uniform(0, MOMENTS[moment])
        own = chance.random() < 0.5
        if not wait_until(has_come(moment, site), running):
            return workers
        time.sleep(delay)
        victim = "phibuild" if own else "a worker"
        print(f"{moment}, {delay:.3f} s later: {victim}")
        site.note()
        if own:
            if not killed(running):
                return workers
            tally.add("kill -9 of phibuild", moment)
            return -1 - workers
        pid = kill_worker(site.workers(), chance.choice)
        if pid is None:
            continue  # none at this moment
        tally.add("kill -9 of a worker", moment)
        workers += 1
        if workers == 2:
            return workers


def finished(running: Running, site: Site, expected: Mapping[str, str]) -> bool:
    """Check a build that ended by itself; return whether it has everything. A cell whose worker
    was killed twice has failed, and says so."""
    code = running.wait()
    assert "Traceback" not in running.output
    site.check_swept()
    failed = reasons(site.report())
    if failed:
        assert code == 1, running.output
        assert all("killed by SIGKILL" in reason for reason in failed.values()), failed
        return False
    assert code == 0, running.output
    site.check_all_built(expected)
    return True


def workers_with_a_child(site: Site) -> set[int]:
    workers = site.workers()  # a child that was forked has its parent's command line
    parents = {parent(pid) for pid in workers}
    return {pid for pid in workers if pid in parents}


@pytest.mark.parametrize(
    ("child", "victim"),
    some(
        product(("leaves a child", "leaves a child in a session of its own"),
                ("phibuild", "a worker")),
        [("leaves a child in a session of its own", "phibuild")],
    ),
)  # fmt: skip
def test_kill_9_while_a_worker_has_a_child(
    child: str, victim: str, undisturbed: Site, tmp_path: Path, tally: Tally
) -> None:
    """The child ignores SIGTERM and holds the worker's event stream open."""
    site = Site(tmp_path, tmp_path / "store")
    words = ("build", "recipe=quickstart", "backend=mlx", "evaluation=none")
    misbehave(site, "mlx", child, times=1)
    with site.start(*words) as running:
        seen: list[set[int]] = []

        def come() -> bool:
            seen.append(workers_with_a_child(site))
            return bool(seen[-1])

        assert wait_until(come, running), running.output
        if victim == "phibuild":
            assert killed(running)
        else:
            # As it was seen: /proc shows no command line of a process that is in execve() now.
            assert kill_worker(list(seen[-1]), random.choice)
            assert running.wait(60) == 0, running.output
        tally.add(f"kill -9 of {victim}", f"a worker {child}")
        site.check()
    again = site.run(*words)
    assert again.wait() == 0, again.output
    site.check()
    site.check_swept()
    site.check_all_built(digests(undisturbed.report(), "mlx"))
