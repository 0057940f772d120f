"""File systems that fail: a full disk, a store elsewhere, a store that cannot be written."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from support.faults import Site, Tally, digests, reasons
from support.faulty import mounted, remount
from support.kinds import some

BUILD = ("build", "recipe=quickstart", "backend=llamacpp", "evaluation=none")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, tmp_path / "store")


def complete(site: Site, undisturbed: Site) -> None:
    """Build what is left; all is there, as in an undisturbed build."""
    again = site.run(*BUILD)
    assert again.wait() == 0, again.output
    site.check()
    site.check_swept()
    site.check_all_built(digests(undisturbed.report(), "llamacpp"))


@pytest.mark.parametrize("size", some(["1m", "4m", "9m", "20m"], ["9m"]))
def test_a_full_disk_under_the_store(
    size: str, site: Site, undisturbed: Site, tally: Tally
) -> None:
    with mounted(site, site.store, size) as inside:
        done = inside.run(*BUILD)
        tally.add("a full disk", f"under the store, {size.upper()}iB in all")
        assert "Traceback" not in done.output
        assert done.wait() == 1, done.output
        inside.check()
        failed = reasons(inside.report())
        assert 1 <= len(failed) <= 4
        assert all("No space left on device" in reason for reason in failed.values()), failed
        assert len(inside.artifacts()) == 4 - len(failed)
        inside.check_swept()
        remount(inside, site.store, "size=200m")
        complete(inside, undisturbed)


def test_a_disk_that_is_full_from_the_start(site: Site, undisturbed: Site, tally: Tally) -> None:
    with mounted(site, site.store, "64k") as inside:
        filler = inside.store / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        done = inside.run(*BUILD)
        tally.add("a full disk", "under the store, full from the start")
        assert "Traceback" not in done.output
        assert done.wait() in (1, 2), done.output
        assert "No space left on device" in done.output
        inside.check()
        filler.unlink()
        remount(inside, site.store, "size=200m")
        complete(inside, undisturbed)


@pytest.mark.parametrize("size", some(["16k", "200k", "8m"], ["8m"]))
def test_a_full_disk_under_the_outputs(
    size: str, site: Site, undisturbed: Site, tally: Tally
) -> None:
    """What was built is in the store; the run cannot be written, which is said."""
    site.lend_originals(undisturbed)
    outputs = site.folder / "outputs"
    with mounted(site, outputs, size) as inside:
        done = inside.run(*BUILD)
        tally.add(
            "a full disk",
            f"under the outputs, {size.replace('m', 'Mi').replace('k', 'Ki')}B in all",
        )
        assert "Traceback" not in done.output
        assert done.wait() in (1, 2), done.output
        assert "No space left on device" in done.output
        inside.check()
        remount(inside, outputs, "size=200m")
        complete(inside, undisturbed)
        assert len(inside.artifacts()) == 4


def test_a_store_on_another_file_system(site: Site, undisturbed: Site, tally: Tally) -> None:
    """Links become copies."""
    with mounted(site, site.store, "200m") as inside:
        complete(inside, undisturbed)
        tally.add("a store on another file system", "than the outputs")
        (run,) = {path.resolve() for path in site.folder.glob("outputs/*/latest")}
        files = [path for path in (run / "artifacts").rglob("*") if path.is_file()]
        assert len(files) > 8
        assert all(path.stat().st_nlink == 1 for path in files)
        verified = inside.run("verify")
        assert verified.wait() == 0, verified.output


def test_a_store_that_cannot_be_written(site: Site, undisturbed: Site, tally: Tally) -> None:
    """What is there can be used; a build that has more to do is refused."""
    with mounted(site, site.store, "200m") as inside:
        first = inside.run(*BUILD, "precision=int4")
        assert first.wait() == 0, first.output
        inside.check()
        remount(inside, site.store, "ro")
        cached = inside.run(*BUILD, "precision=int4")
        tally.add("a store that cannot be written", "all is cached")
        assert cached.wait() == 0, cached.output
        inside.check()
        (cell,) = inside.report()["cells"]
        assert cell["status"] == "cached"
        more = inside.run(*BUILD)
        tally.add("a store that cannot be written", "there is something to build")
        assert "Traceback" not in more.output
        assert more.wait() == 2, more.output
        assert "the store cannot be written: Read-only file system" in more.output
        inside.check()
        remount(inside, site.store, "rw")
        complete(inside, undisturbed)


@pytest.mark.skipif("os.geteuid() == 0", reason="root may write everywhere")
def test_a_store_without_permission(site: Site, tally: Tally) -> None:
    site.store.mkdir()
    os.chmod(site.store, 0o555)
    done = site.run(*BUILD)
    tally.add("a store that cannot be written", "no permission")
    assert done.wait() == 2, done.output
    assert "the store cannot be written: Permission denied" in done.output
